import threading
import time
from pathlib import Path

import numpy as np
import pytest

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.desired import Entry
from servekit.engines.echo import EchoEngine
from servekit.errors import DeadlineExceeded, InvalidInput, ModelLoadError, Overloaded
from servekit.handlers.base import Handler
from servekit.loading import load_entry, load_model
from servekit.model import Model
from servekit.signature import Signature
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import Tensors
from tests import networks
from tests.handler_archives import write
from tests.test_spec import SPEC
from tests.versions import edit, write_regressor
from train.linear import LinearSettings
from train.linear import train as train_linear


class PickyHandler(Handler):
    """Refuses negative rows before the network and hundreds after it."""

    def __init__(self, spec: ModelSpec = SPEC) -> None:
        super().__init__(spec)

    def preprocess(self, tensors: Tensors) -> Tensors:
        if (tensors["x"] < 0).any():
            raise InvalidInput("negative")
        return {"x": tensors["x"] + 1}

    def postprocess(self, tensors: Tensors) -> Tensors:
        if (tensors["x"] > 100).any():
            raise InvalidInput("hundred")
        return {"x": tensors["x"] * 10}


@pytest.fixture
def model() -> Model:
    return Model("picky", "1", SPEC, PickyHandler(), EchoEngine(), Backlog(100))


def soon() -> float:
    return time.monotonic() + 10


def test_a_request_goes_through_handler_and_engine(model: Model) -> None:
    assert model.predict({"x": np.array([1, 2])}, soon())["x"].tolist() == [20, 30]


def test_bad_rows_of_a_batch_fail_alone(model: Model) -> None:
    requests = [{"x": np.array(values)} for values in ([1], [-1], [2, 3], [100], [4])]
    answers = model.predict_each(requests, soon())
    shown = [str(answer) if isinstance(answer, InvalidInput) else answer["x"].tolist() for answer in answers]
    assert shown == [[20], "negative", [30, 40], "hundred", [50]]


def test_a_batch_of_bad_rows_only_runs_nothing(model: Model) -> None:
    answers = model.predict_each([{"x": np.array([-1])}] * 2, soon())
    assert [str(answer) for answer in answers] == ["negative", "negative"]


def test_a_batch_is_not_read_past_its_deadline(model: Model) -> None:
    with pytest.raises(DeadlineExceeded):
        model.predict_each([{"x": np.array([1])}], time.monotonic() - 1)


def test_a_late_request_is_refused(model: Model) -> None:
    with pytest.raises(DeadlineExceeded):
        model.predict({"x": np.array([1])}, time.monotonic() - 1)


def test_the_base_handler_hands_through() -> None:
    handler = networks.PlainHandler(SPEC)
    tensors = {"x": np.array([1])}
    assert handler.preprocess(tensors) is tensors
    assert handler.postprocess(tensors) is tensors


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"handler": "servekit.handlers.nothing:Handler"}, "the handler .* cannot be made: No module named"),
        ({"handler": "tests.networks:not_a_network"}, "the handler .* cannot be made"),
        ({"handler": "models.linear:LinearRegressor"}, "the handler .* cannot be made"),
        ({"options": {"colour": 1}}, "the handler .* cannot be made: .*colour"),
        ({"network": "tests.networks:TwoOutputs"}, "the network .* fails on its inputs"),
        ({"outputs": [{"name": "prediction", "dtype": "float32", "shape": [-1, 3]}]}, "promises prediction as float32"),
        ({"inputs": [{"name": "value", "dtype": "float32", "shape": [-1, 10**12]}]}, "the network .* fails on its inputs"),
        ({"handler": "servekit.handlers.image:ImageHandler"}, "its input must have the shape"),
        ({"outputs": [{"name": "prediction", "dtype": "int64", "shape": [-1, 1]}]}, "gives float32"),
    ],
)
def test_a_model_that_does_not_keep_its_word_is_not_loaded(tmp_path: Path, members: dict[str, object], reason: str) -> None:
    folder = write_regressor(tmp_path)
    edit(folder, **members)
    with pytest.raises(ModelLoadError, match=f"model.json.*{reason}"):
        load_model("linear", "1", folder, Settings(), Backlog(100))


def test_an_object_that_is_no_handler_is_refused(tmp_path: Path) -> None:
    folder = write_regressor(tmp_path)
    edit(folder, handler="types:SimpleNamespace", options={})
    with pytest.raises(ModelLoadError, match="the handler types:SimpleNamespace cannot be made"):
        load_model("linear", "1", folder, Settings(), Backlog(100))


def test_a_model_that_waits_for_too_many_rows_refuses_more_before_it_looks_at_them() -> None:
    backlog = Backlog(10)
    model = Model("picky", "1", SPEC, PickyHandler(), EchoEngine(), backlog)
    assert len(model.predict({"x": np.zeros(50)}, soon())["x"]) == 50  # alone, even a large request gets in
    backlog.enter(8)
    assert len(model.predict({"x": np.zeros(2)}, soon())["x"]) == 2
    with pytest.raises(Overloaded):
        model.predict({"x": np.array([-1, -1, -1])}, soon())  # not InvalidInput: it was not read
    with pytest.raises(Overloaded):
        model.predict_each([{"x": np.zeros(1)}] * 3, soon())
    backlog.leave(8)
    assert len(model.predict({"x": np.zeros(9)}, soon())["x"]) == 9


def test_onnx_is_taken_where_it_can_be(tmp_path: Path) -> None:
    train_linear(LinearSettings(epochs=1), Settings(model_store=tmp_path))
    folder = tmp_path / "linear" / "1"

    def engine(choice: str) -> str:
        model = load_model("linear", "1", folder, Settings(engine=choice), Backlog(1))
        return type(model._batcher.engine).__name__

    assert [engine(choice) for choice in ("auto", "onnx", "torch")] == ["OnnxEngine", "OnnxEngine", "TorchEngine"]
    plain = write_regressor(tmp_path, networks.Infinite())
    load_model("linear", "2", plain, Settings(), Backlog(1))  # it has no ONNX file
    with pytest.raises(ModelLoadError, match="names no model.onnx under files"):
        load_model("linear", "2", plain, Settings(engine="onnx"), Backlog(1))


def test_a_handler_that_never_starts_is_given_up(tmp_path: Path) -> None:
    text = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\ndef handle(data, context): return data"
    folder = write(tmp_path / "model", handler=text)
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "m", "handler": "handler.py"}}')
    options = {"handler": "handler.py", "startup_timeout": 1}
    entry = Entry("m", "1.0", "torchserve", "m.mar", str(folder), 1, 1, options)
    started = time.monotonic()
    with pytest.raises(ModelLoadError, match="^The model m was not loaded within 1 seconds; "):
        load_entry(entry, Settings(), Backlog(1))
    assert time.monotonic() - started < 10
    (folder / "go").touch()
    (loading,) = (thread for thread in threading.enumerate() if thread.name == "servekit-load")
    loading.join(10)
    assert not loading.is_alive()


def test_encoded_rows_are_read_one_by_one_and_not_past_the_deadline() -> None:
    read: list[int] = []

    class Decoder(Handler):
        @property
        def signature(self) -> Signature:
            return Signature((TensorSpec("x", "float32", (-1, 2)),), (), encoded=frozenset({"x"}))

        def preprocess(self, tensors: Tensors) -> Tensors:
            read.append(len(tensors["x"]))
            time.sleep(0.01)
            return {"x": np.array([[len(item), 0] for item in tensors["x"]], np.float32)}

    model = Model("decoder", "1", SPEC, Decoder(SPEC), EchoEngine(), Backlog(100))
    answer = model.predict({"x": np.array([b"a", b"bb"], object)}, soon())
    assert answer["x"].tolist() == [[1, 0], [2, 0]] and read == [1, 1]
    with pytest.raises(DeadlineExceeded):
        model.predict({"x": np.array([b"a"] * 100, object)}, time.monotonic() + 0.05)
    assert len(read) < 50
