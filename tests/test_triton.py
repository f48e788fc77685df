"""Models of Triton's layout, from their folders to their answers."""

import logging
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from servekit.batcher import Backlog
from servekit.cli import main
from servekit.config import Settings
from servekit.desired import Entry
from servekit.ensemble import Ensemble
from servekit.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelLoadError,
    ModelNotFound,
    NotReady,
    Overloaded,
    VersionNotFound,
)
from servekit.follow import Poller
from servekit.loading import load_entry
from servekit.model import Model
from servekit.repository import Repository
from servekit.serving.index import list_models
from servekit.spec import scan
from servekit.state import State
from servekit.stores import entries_in, entries_of, listing
from servekit.tensors import bytes_tensor
from tests.triton_models import SIMPLE, graph, simple, unary, write
from tests.versions import write_regressor
from train.data import Digits

DOCS = Path(__file__).parent.parent / "docs" / "triton.md"
TENSORS = """
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
"""
ROW = np.arange(4, dtype=np.float32).reshape(1, 4)


def load(store: Path, name: str, version: str | None = None, settings: Settings | None = None, config: str = "") -> Model:
    (entry, *_) = entries_in(store, name, version, config=config)
    return load_entry(entry, settings or Settings(), Backlog(1000))


def soon() -> float:
    return time.monotonic() + 10


def test_tritons_own_example_is_served(tmp_path: Path) -> None:
    write(tmp_path, "simple", SIMPLE, onnx=simple())
    model = load(tmp_path, "simple")
    rows = np.arange(32, dtype=np.int32).reshape(2, 16)
    answer = model.predict({"INPUT0": rows, "INPUT1": np.ones_like(rows)}, soon())
    assert list(answer) == ["OUTPUT0", "OUTPUT1"]
    np.testing.assert_array_equal(answer["OUTPUT0"], rows + 1)
    np.testing.assert_array_equal(answer["OUTPUT1"], rows - 1)
    assert model.signature is not None and model.config is not None
    assert (model.signature.is_batched, model.signature.max_rows) == (True, 8)
    wanted = {"backend": "onnxruntime", "default_model_filename": "model.onnx", "max_batch_size": 8, "name": "simple"}
    assert {name: model.config[name] for name in wanted} == wanted
    assert model.config["instance_group"][0]["count"] == 1
    assert model.config["version_policy"] == {"latest": {"num_versions": 1}}


@pytest.mark.parametrize(
    ("config", "shape", "most", "dims"),
    [
        (None, ("rows", 4), 64, [4]),
        (None, (None, "width"), 64, [-1]),
        (None, (2, 4), 0, [2, 4]),
        ("max_batch_size: 16", ("rows", 4), 16, [4]),
        ('max_batch_size: 2 input { name: "x" }', ("rows", 4), 2, [4]),
        ('input { name: "x" data_type: TYPE_FP32 dims: [ -1, 4 ] }', ("rows", 4), 0, [-1, 4]),
    ],
)
def test_what_a_config_leaves_open_comes_from_the_file(
    tmp_path: Path, config: str | None, shape: tuple[Any, ...], most: int, dims: list[int]
) -> None:
    write(tmp_path, "m", config, onnx=unary(shape=shape))
    model = load(tmp_path, "m")
    assert model.config is not None and model.signature is not None
    assert model.config["max_batch_size"] == most and model.signature.is_batched == (most > 0)
    for field, name in (("input", "x"), ("output", "y")):
        (tensor,) = model.config[field]
        assert (tensor["name"], tensor["data_type"], tensor["dims"]) == (name, "TYPE_FP32", dims)


def test_a_model_without_rows_answers_one_request_at_a_time(tmp_path: Path) -> None:
    write(tmp_path, "m", None, onnx=unary(shape=(2, 4)))
    answer = load(tmp_path, "m").predict({"x": np.ones((1, 2, 4), np.float32)}, soon())
    assert answer["y"].tolist() == [[[-1] * 4] * 2]


def test_shapes_are_changed_on_the_way(tmp_path: Path) -> None:
    config = """
    max_batch_size: 4
    input { name: "x" data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } }
    output { name: "y" data_type: TYPE_FP32 dims: [ 1, 4 ] reshape { shape: [ 4 ] } }
    """
    write(tmp_path, "m", config, onnx=unary())
    assert load(tmp_path, "m").predict({"x": ROW.reshape(1, 2, 2)}, soon())["y"].shape == (1, 1, 4)
    write(tmp_path, "flat", "max_batch_size: 4", onnx=unary(shape=("rows",)))
    model = load(tmp_path, "flat")  # no dims cannot be said: clients see [1]
    assert model.config is not None and (model.config["input"][0]["dims"], model.config["input"][0]["reshape"]) == (
        [1],
        {"shape": []},
    )
    assert model.predict({"x": np.ones((3, 1), np.float32)}, soon())["y"].tolist() == [[-1], [-1], [-1]]


def test_texts_are_bytes_outside_and_text_inside(tmp_path: Path) -> None:
    write(tmp_path, "m", None, onnx=unary("Identity", TensorProto.STRING, ("rows", 1)))
    model = load(tmp_path, "m")
    assert model.signature is not None and model.signature.inputs[0].dtype == "bytes"
    texts = bytes_tensor(["é".encode(), b""]).reshape(2, 1)
    assert model.predict({"x": texts}, soon())["y"].tolist() == [["é".encode()], [b""]]
    with pytest.raises(InvalidInput, match="The texts of x must be UTF-8."):
        model.predict({"x": bytes_tensor([b"\xff"]).reshape(1, 1)}, soon())


def test_weights_may_lie_beside_the_file_and_nowhere_else(tmp_path: Path) -> None:
    weights = np.float32([1, 2, 3, 4])
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], weights.tobytes(), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    node = helper.make_node("Add", ["x", "w"], ["y"])
    values = [(name, TensorProto.FLOAT, ("rows", 4)) for name in "xy"]

    def content(location: str) -> bytes:
        model = onnx.load_from_string(graph([node], values[:1], values[1:]))
        external = onnx.TensorProto()
        external.CopyFrom(tensor)
        external.external_data.add(key="location", value=location)
        model.graph.initializer.append(external)
        return model.SerializeToString()

    folder = write(tmp_path, "m", None, onnx=content("weights.bin"))
    (folder / "1" / "weights.bin").write_bytes(weights.tobytes())
    assert load(tmp_path, "m").predict({"x": ROW}, soon())["y"].tolist() == [[1, 3, 5, 7]]
    (tmp_path / "secret").write_bytes(weights.tobytes())
    for location in ("../../secret", str(tmp_path / "secret")):
        write(tmp_path, "m", None, onnx=content(location))
        with pytest.raises(ModelLoadError, match="m/1/model.onnx cannot be served"):
            load(tmp_path, "m")


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("SequenceConstruct", ["x"], ["s"]), helper.make_node("Neg", ["x"], ["y"])]
    values = [(name, TensorProto.FLOAT, ("rows", 4)) for name in "xy"]
    model = onnx.load_from_string(graph(nodes, values[:1], values[1:]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    write(tmp_path, "m", None, onnx=model.SerializeToString())
    with pytest.raises(ModelLoadError, match="s is seq.* in the file, which is no tensor; name only the others"):
        load(tmp_path, "m")
    write(tmp_path, "m", f"max_batch_size: 1 {TENSORS}")
    assert load(tmp_path, "m").predict({"x": ROW}, soon())["y"].tolist() == (-ROW).tolist()
    write(tmp_path, "half", None, onnx=unary("Identity", TensorProto.BFLOAT16))
    with pytest.raises(ModelLoadError, match="TYPE_BF16, which numpy lacks"):
        load(tmp_path, "half")


def test_half_precision_is_served(tmp_path: Path) -> None:
    write(tmp_path, "m", None, onnx=unary(element=TensorProto.FLOAT16))
    assert load(tmp_path, "m").predict({"x": ROW.astype(np.float16)}, soon())["y"].dtype == np.float16


def test_what_does_not_fit_is_the_clients_fault(tmp_path: Path) -> None:
    write(tmp_path, "m", None, onnx=unary())
    model = load(tmp_path, "m")
    for tensors in ({"z": ROW}, {"x": ROW.astype(np.float64)}, {"x": ROW[:, :3]}, {"x": ROW[0]}):
        with pytest.raises(InvalidInput):
            model.predict(tensors, soon())


def test_labels_are_read_from_the_models_folder(tmp_path: Path) -> None:
    config = TENSORS.replace('dims: [ 4 ] }\n"""', "") + 'max_batch_size: 1\noutput { name: "z" label_filename: "l.txt" }'
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    values = [(name, TensorProto.FLOAT, ("rows", 4)) for name in "xyz"]
    folder = write(tmp_path, "m", config, onnx=graph(nodes, values[:1], values[1:]))
    (folder / "l.txt").write_text("zero\none\ntwo\r\nthree\n")
    model = load(tmp_path, "m")
    assert model.signature is not None and model.signature.labels == {"z": ("zero", "one", "two", "three")}
    (folder / "l.txt").write_bytes(b"\xff")
    with pytest.raises(ModelLoadError, match="l.txt cannot be read as lines of UTF-8"):
        load(tmp_path, "m")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ('name: "other"', "its name is other, but its folder is called m"),
        ("max_batch_size: -1", "max_batch_size must be 0 or more"),
        ("sequence_batching { }", "sequence_batching is set, and stateful models are not served"),
        ("batch_input { kind: BATCH_ITEM_SHAPE }", "batch_input is set"),
        ("model_operations { op_library_filename: 'x.so' }", "model_operations is set, and no operator libraries are loaded"),
        ("model_transaction_policy { decoupled: true }", "its model_transaction_policy is decoupled"),
        ('input { name: "z" }', "the inputs of model.onnx are called x; name all of them"),
        ('output { name: "z" }', "model.onnx has no output called z; it has y"),
        ('input { name: "x" } input { name: "x" }', "each input needs a name of its own"),
        ('max_batch_size: 1 input { name: "x" data_type: TYPE_INT8 }', "the input x is TYPE_INT8, but TYPE_FP32 in model.onnx"),
        ('max_batch_size: 1 input { name: "x" dims: [ 0 ] }', "the input x needs dims above 0"),
        ('max_batch_size: 1 input { name: "x" dims: [ 5 ] }', r"the input x is \[-1, 5\], but \[-1, 4\] in model.onnx"),
        ('input { name: "x" dims: [ 4 ] }', "without max_batch_size dims are the whole shape"),
        ('max_batch_size: 1 input { name: "x" reshape { shape: [ 5 ] } }', "must have as many elements as its dims"),
        ('max_batch_size: 1 input { name: "x" dims: [-1,-1] reshape { shape: [-1,-1] } }', "may leave one axis open, not 2"),
        ('default_model_filename: "../../secret" backend: "onnxruntime"', "default_model_filename leads out of the model"),
        ('default_model_filename: "/etc/passwd" backend: "onnxruntime"', "default_model_filename leads out"),
        ('default_model_filename: "other.onnx" backend: "onnxruntime"', "other.onnx is missing"),
        ('output { name: "y" label_filename: "../l" }', "label_filename leads out of the model's folder"),
        ('backend: "tensorrt"', "the backend tensorrt is not served here"),
        ('model_warmup { name: "w" batch_size: 1 }', "the model_warmup w must give each input: x"),
        (
            'max_batch_size: 2 model_warmup { name: "w" batch_size: 3 inputs { key: "x" value { } } }',
            "the batch_size of the model_warmup w must be 1 to max_batch_size",
        ),
        (
            'model_warmup { name: "w" batch_size: 1 count: 10001 inputs { key: "x" value { } } }',
            "the count of the model_warmup w may be 10000",
        ),
        (
            'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ -1 ] } } }',
            "the model_warmup of x needs dims above 0",
        ),
        (
            'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 5 ] } } }',
            "the network fails on the model_warmup w .*; correct one of them",
        ),
        (
            'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_FP32 dims: [ 4 ] '
            'input_data_file: "../../secret" } } }',
            "input_data_file leads out of the model's folder",
        ),
    ],
)
def test_a_config_that_cannot_be_served_is_refused_in_one_sentence(tmp_path: Path, config: str, reason: str) -> None:
    write(tmp_path, "m", config, onnx=unary())
    (tmp_path / "secret").write_bytes(unary())
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load(tmp_path, "m")
    assert "\n" not in str(caught.value) and f"{tmp_path}/m/" in str(caught.value)


def test_a_file_with_a_fixed_number_of_rows_takes_no_batches(tmp_path: Path) -> None:
    write(tmp_path, "m", f"max_batch_size: 8 {TENSORS}", onnx=unary(shape=(1, 4)))
    with pytest.raises(ModelLoadError, match=r"takes x as \[1, 4\] only; set max_batch_size to 0 and give the whole shape"):
        load(tmp_path, "m")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "m", None, onnx=b"no graph")
    with pytest.raises(ModelLoadError, match="m/1/model.onnx cannot be served .*; put a file there that ONNX Runtime can run"):
        load(tmp_path, "m")


def test_warm_up_runs_before_a_model_is_ready(tmp_path: Path) -> None:
    def warmup(data: str) -> str:
        inputs = f'inputs {{ key: "x" value {{ data_type: TYPE_FP32 dims: [ 4 ] {data} }} }}'
        return f'max_batch_size: 4 model_warmup {{ name: "w" batch_size: 2 count: 3 {inputs} }}'

    folder = write(tmp_path, "m", warmup("random_data: true"), onnx=unary())
    load(tmp_path, "m")
    write(tmp_path, "m", warmup('input_data_file: "row.bin"'))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "row.bin").write_bytes(ROW.tobytes())
    load(tmp_path, "m")
    (folder / "warmup" / "row.bin").write_bytes(b"123")
    with pytest.raises(ModelLoadError, match="the input_data_file of x does not hold the 4 elements of its dims"):
        load(tmp_path, "m")
    config = """model_warmup { name: "w" batch_size: 1 inputs { key: "x" value { data_type: TYPE_STRING dims: [ 2 ]
    input_data_file: "texts" } } }"""
    folder = write(tmp_path, "texts", config, onnx=unary("Identity", TensorProto.STRING, ("rows", 2)))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "texts").write_bytes(b"\x02\0\0\0ab\0\0\0\0")
    load(tmp_path, "texts")


def test_the_queue_policy_bounds_how_many_wait_and_how_long(tmp_path: Path) -> None:
    policy = "default_queue_policy { max_queue_size: 2 default_timeout_microseconds: 1 }"
    write(tmp_path, "m", f"max_batch_size: 4 dynamic_batching {{ max_queue_delay_microseconds: 5000 {policy} }}", onnx=unary())
    model = load(tmp_path, "m")
    with pytest.raises(DeadlineExceeded):
        model.predict({"x": ROW}, soon())
    model._backlog.enter(5)
    with pytest.raises(Overloaded):
        model.predict({"x": np.repeat(ROW, 2, 0)}, soon())
    assert (model._batcher.max_delay, model._batcher.max_batch_rows, model._batcher.is_long) == (0.005, 4, True)


def test_what_has_no_effect_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = "dynamic_batching { preferred_batch_size: 4 } max_batch_size: 4 instance_group { kind: KIND_GPU } optimization { }"
    write(tmp_path, "m", config, onnx=unary())
    with caplog.at_level(logging.WARNING):
        load(tmp_path, "m")
    (record,) = caplog.records
    ignored = "dynamic_batching.preferred_batch_size, optimization, instance_group.kind (no GPU can be used)"
    assert record.getMessage() == f"{tmp_path}/m/config.pbtxt: what has no effect here is {ignored}."


class Two(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left - right, left + right


def script(network: torch.nn.Module) -> bytes:
    import io

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises torch.export
        torch.jit.save(torch.jit.script(network), stream)
    return stream.getvalue()


@pytest.mark.parametrize("names", [("INPUT__0", "INPUT__1"), ("left", "right"), ("first", "second")])
@pytest.mark.parametrize("is_turned", [False, True])
def test_torchscript_is_called_as_triton_does(tmp_path: Path, names: tuple[str, str], is_turned: bool) -> None:
    given = names[::-1] if is_turned else names
    config = 'platform: "pytorch_libtorch" max_batch_size: 4 '
    config += " ".join(f'input {{ name: "{name}" data_type: TYPE_FP32 dims: [ 4 ] }}' for name in given)
    config += ' output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 4 ] }'
    config += ' output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 4 ] }'
    write(tmp_path, "m", config, pt=script(Two()))
    answer = load(tmp_path, "m").predict({names[0]: ROW, names[1]: ROW * 2}, soon())
    sign = -1 if is_turned and names[0] == "first" else 1  # their order is all that there is to know
    np.testing.assert_array_equal(answer["OUTPUT__0"], -sign * ROW)
    np.testing.assert_array_equal(answer["OUTPUT__1"], 3 * ROW)


def test_torchscript_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    tensors = 'platform: "pytorch_libtorch" max_batch_size: 1 ' + TENSORS
    write(tmp_path, "m", tensors, pt=script(torch.nn.Flatten()))
    load(tmp_path, "m")
    with pytest.raises(ModelLoadError, match="model.pt is TorchScript, .* SERVEKIT_TRUSTED_MODELS_ONLY forbids it"):
        load(tmp_path, "m", settings=Settings(trusted_models_only=True))
    write(tmp_path, "m", tensors.replace('"y" data_type: TYPE_FP32', '"y" data_type: TYPE_INT64'))
    with pytest.raises(ModelLoadError, match="it promises y as int64 .-1, 4., but the network gives float32 .-1, 4."):
        load(tmp_path, "m")
    write(tmp_path, "m", tensors + 'input { name: "z" data_type: TYPE_FP32 dims: [ 4 ] }')
    with pytest.raises(ModelLoadError, match="its forward takes 1 tensors, not 2"):
        load(tmp_path, "m")
    write(tmp_path, "m", tensors.replace("TYPE_FP32", "TYPE_STRING"))
    with pytest.raises(ModelLoadError, match="its tensors cannot be texts"):
        load(tmp_path, "m")
    write(tmp_path, "m", None, pt=b"no module")
    (tmp_path / "m" / "config.pbtxt").unlink()
    with pytest.raises(ModelLoadError, match="it names no input; add one with name, data_type and dims"):
        load(tmp_path, "m")
    write(tmp_path, "m", tensors)
    with pytest.raises(ModelLoadError, match="model.pt cannot be served"):
        load(tmp_path, "m")


def test_bfloat16_is_computed_by_torch(tmp_path: Path) -> None:
    config = 'platform: "pytorch_libtorch" max_batch_size: 1 ' + TENSORS.replace("TYPE_FP32", "TYPE_BF16")
    write(tmp_path, "m", config, pt=script(torch.nn.ReLU()))
    assert load(tmp_path, "m").predict({"x": ROW + 1 / 512}, soon())["y"].tolist() == [[1 / 512, 1, 2, 3]]


# The store.


def test_a_store_holds_both_layouts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in (1, 2, 10):
        write(tmp_path, "many", "version_policy { specific { versions: [ 1, 10 ] } }", version, onnx=unary())
    write(tmp_path, "bare", None, onnx=unary())
    write(tmp_path, "pair", "instance_group { count: 2 }", onnx=unary())
    write_regressor(tmp_path, name="own")
    for stray in ("many/configs", "many/01", "many/0", "many/warmup"):
        (tmp_path / stray).mkdir()
    with caplog.at_level(logging.WARNING):
        entries = entries_of(Settings(model_store=tmp_path))
    assert not caplog.records
    found = [(entry.name, entry.version, entry.format, entry.workers) for entry in entries]
    assert found == [
        ("bare", "1", "triton", 1),
        ("many", "10", "triton", 1),
        ("many", "1", "triton", 1),
        ("own", "1", "servekit", 1),
        ("pair", "1", "triton", 2),
    ]
    assert listing(tmp_path) == {"bare": ["1"], "many": ["1", "2", "10"], "own": ["1"], "pair": ["1"]}
    repository = Repository.load(Settings(model_store=tmp_path))
    assert repository.get("many").version == "10" and repository.get("many", "1").version == "1"


def test_a_policy_that_names_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "m", "version_policy { specific { versions: 9 } }", onnx=unary())
    assert entries_of(Settings(model_store=tmp_path)) == []
    assert "Passed over m: none of the versions that its version_policy names is there." in caplog.text


def test_what_loading_a_model_registers(tmp_path: Path) -> None:
    for version in (1, 2):
        write(tmp_path, "m", TENSORS + "max_batch_size: 3", version, onnx=unary())
    write_regressor(tmp_path, name="own")

    def keys(name: str, version: str | None = None, config: str = "") -> list[tuple[str, str]]:
        return [entry.key for entry in entries_in(tmp_path, name, version, 1, config)]

    assert keys("m") == [("m", "2")] and keys("m", "1") == [("m", "1")]
    assert keys("own") == keys("own", "1") == [("own", "1")]
    assert keys("m", config='{"version_policy": {"all": {}}}') == [("m", "2"), ("m", "1")]
    for name in ("nothing", "..", "m/1", ""):
        with pytest.raises(ModelNotFound):
            keys(name)
    for version in ("3", "01", "x"):
        with pytest.raises(VersionNotFound):
            keys("m", version)
    with pytest.raises(VersionNotFound, match="None of the versions that the model's version_policy names"):
        keys("m", config='{"version_policy": {"specific": {"versions": [9]}}}')
    model = load(tmp_path, "m", config='{"max_batch_size": "16"}')
    assert model.config is not None and model.config["max_batch_size"] == 16


def test_new_versions_and_configs_are_followed(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write(store, "m", "version_policy { latest { num_versions: 2 } }", onnx=unary())
    settings = Settings(model_store=store)
    repository = Repository.load(settings, State.private(entries_of(settings)))
    poller = Poller(repository, store)
    first = repository.get("m")
    poller.look()
    assert repository.get("m") is first

    write(store, "m", version=2, onnx=unary("Abs"))
    poller.look()
    assert [model.version for model in repository.models] == ["1", "2"] and repository.get("m").version == "2"
    assert repository.get("m", "1") is first
    write(store, "m", version=3, onnx=unary("Abs"))
    poller.look()
    assert [model.version for model in repository.models] == ["2", "3"]

    write(store, "m", "max_batch_size: 7")
    poller.look()
    (model,) = repository.models
    assert model.version == "3" and model.config is not None and model.config["max_batch_size"] == 7

    write(store, "m", "max_batch_size: -7")
    poller.look()
    assert repository.get("m") is model
    assert "max_batch_size must be 0 or more" in repository.workers()[0].errors["m/3"]
    write(store, "m", "max_batch_size: 9")
    poller.look()
    assert repository.get("m").config["max_batch_size"] == 9  # type: ignore[index]
    write(store, "new", None, onnx=unary())
    poller.look()
    assert repository.get("new").version == "1"


def test_versions_are_served_together_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path, "m", "version_policy { all { } }", onnx=unary())
    repository = Repository.load(Settings(model_store=tmp_path))
    write(tmp_path, "m", version=2, onnx=b"damaged")
    with pytest.raises(ModelLoadError):
        repository.serve(entries_in(tmp_path, "m"))
    assert [model.version for model in repository.models] == ["1"] and repository.get("m").version == "1"


# Ensembles, end to end.


def pictures_store(store: Path, folder: Path) -> Path:
    """Write what docs/triton.md shows: the trained digits, untouched, behind a model that reads pictures."""
    shutil.copytree(store / "mnist", folder / "mnist")
    blocks = DOCS.read_text().split("```")
    (prepare,) = (block.removeprefix("json\n") for block in blocks if "PixelsHandler" in block and block.startswith("json"))
    (config,) = (block.removeprefix("protobuf\n") for block in blocks if 'name: "digits"' in block)
    for name in ("prepare/1", "digits/1"):
        (folder / name).mkdir(parents=True)
    (folder / "prepare" / "1" / "model.json").write_text(prepare)
    (folder / "digits" / "config.pbtxt").write_text(config)
    return folder


def test_the_documented_ensemble_reads_pictures(store: Path, digits: Digits, digit: bytes, tmp_path: Path) -> None:
    repository = Repository.load(Settings(model_store=pictures_store(store, tmp_path)))
    repository.require_ready()
    alone = repository.get("mnist").predict({"image": bytes_tensor([digit])}, soon())
    answer = repository.get("digits").predict({"IMAGE": bytes_tensor([digit, digit]).reshape(2, 1)}, soon())
    assert answer["CLASS"].tolist() == [[int(digits.test_labels[0])]] * 2 == [alone["predicted_class"].tolist()] * 2
    np.testing.assert_allclose(answer["PROBABILITIES"][0], alone["probabilities"][0], atol=1e-6)
    with pytest.raises(InvalidInput, match="not an image"):
        repository.get("digits").predict({"IMAGE": bytes_tensor([b"GIF"])}, soon())


def test_the_network_alone_serves_in_tritons_layout(store: Path, digit: bytes, digits: Digits, tmp_path: Path) -> None:
    pictures_store(store, tmp_path)
    content = (tmp_path / "mnist" / "1" / "model.onnx").read_bytes()
    shutil.rmtree(tmp_path / "mnist")
    folder = write(tmp_path, "mnist", 'max_batch_size: 32 output { name: "logits" label_filename: "l" }', onnx=content)
    (folder / "l").write_text("\n".join(map(str, range(10))))
    config = tmp_path / "digits" / "config.pbtxt"
    text = config.read_text().replace("probabilities", "logits")
    config.write_text("\n".join(line for line in text.splitlines() if "CLASS" not in line))
    repository = Repository.load(Settings(model_store=tmp_path))
    answer = repository.get("digits").predict({"IMAGE": bytes_tensor([digit])}, soon())
    assert answer["PROBABILITIES"].argmax(axis=1).tolist() == [digits.test_labels[0]]


def test_an_ensemble_is_as_ready_as_its_members(store: Path, tmp_path: Path) -> None:
    folder = pictures_store(store, tmp_path / "store")
    (folder / "mnist").rename(tmp_path / "mnist")
    repository = Repository.load(Settings(model_store=folder))
    with pytest.raises(NotReady, match="This ensemble needs the model mnist, which is not loaded."):
        repository.require_ready()
    with pytest.raises(NotReady):
        repository.get("digits").predict({"IMAGE": bytes_tensor([b""])}, soon())
    (row,) = list_models(repository, Settings(model_store=folder), only_ready=False)[:1]
    assert row["state"] == "UNAVAILABLE" and row["reason"] == "This ensemble needs the model mnist, which is not loaded."
    assert [row["name"] for row in list_models(repository, Settings(model_store=folder), only_ready=True)] == ["prepare"]
    (tmp_path / "mnist").rename(folder / "mnist")
    Poller(repository, folder).look()
    repository.require_ready()
    assert {row["state"] for row in list_models(repository, Settings(model_store=folder), only_ready=False)} == {"READY"}
    assert isinstance(repository.get("digits"), Ensemble)


def test_an_ensemble_that_does_not_fit_its_members_ends_the_start(store: Path, tmp_path: Path) -> None:
    folder = pictures_store(store, tmp_path)
    config = folder / "digits" / "config.pbtxt"
    config.write_text(config.read_text().replace('key: "predicted_class"', 'key: "class"'))
    with pytest.raises(ModelLoadError, match="digits/config.pbtxt: the model mnist has no output called class; it has pred"):
        Repository.load(Settings(model_store=folder))


def test_a_native_model_may_have_no_network(tmp_path: Path) -> None:
    folder = write_regressor(tmp_path, name="same")
    (folder / "model.json").write_text(
        '{"handler": "servekit.handlers.base:Handler", "files": {}, '
        '"inputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}], '
        '"outputs": [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]}'
    )
    entry = Entry("same", "1", "servekit", "same/1", str(folder))
    assert load_entry(entry, Settings(), Backlog(9)).predict({"x": ROW}, soon())["x"] is ROW
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"outputs": [{"name": "x"', '"outputs": [{"name": "y"'))
    with pytest.raises(ModelLoadError, match="promises y, which is none of its inputs"):
        load_entry(entry, Settings(), Backlog(9))
    (folder / "model.json").write_text(text.replace('"files": {}', '"files": {"model.pth": "00"}'))
    with pytest.raises(ModelLoadError, match="names files and no network to load them into"):
        load_entry(entry, Settings(), Backlog(9))


@pytest.mark.parametrize("path", ["digits", "digits/1", "m", "m/1"])
def test_the_check_command_knows_the_layout(
    store: Path, tmp_path: Path, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures_store(store, tmp_path)
    write(tmp_path, "m", None, onnx=unary())
    assert main(["check", str(tmp_path / path)]) == 0
    assert f"{tmp_path / path} is fine: {path.partition('/')[0]}, version 1" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "mnist")
    write(tmp_path, "m", "max_batch_size: -1")
    assert main(["check", str(tmp_path / path)]) == 1
    assert scan(tmp_path) and os.listdir(tmp_path / "m" / "1") == ["model.onnx"]
