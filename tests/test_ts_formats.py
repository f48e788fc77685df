"""The handlers built in and those that derive from them, with models of every format."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from textwrap import dedent
from typing import Any

import onnx
import pytest
import torch

from servekit.errors import HandlerFailed, ModelLoadError
from servekit.imports import Modules
from servekit.ts.torch_handler.formats import compile_options
from tests.handler_archives import LINEAR, ask, request, start, write
from tests.server import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.starts]

EAGER = {"modelFile": "model.py", "serializedFile": "model.pth"}


def save_state(path: Path, weight: float = 2, bias: float = -1) -> None:
    """Write the state dict of `y = weight * x + bias`."""
    torch.save({"layer.weight": torch.tensor([[weight]]), "layer.bias": torch.tensor([bias])}, path)


def save_script(network: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(network.eval()), str(path))


def predict(engine: Any, body: bytes, content_type: str = "application/json") -> Any:
    return json.loads(ask(engine, request(body, content_type))[0].body)


def test_a_handler_of_the_books_first_chapter(tmp_path: Path) -> None:
    handler = """
        import logging
        import os

        import torch
        from linear import Line
        from ts.torch_handler.base_handler import BaseHandler

        logger = logging.getLogger(__name__)

        class LineHandler(BaseHandler):
            def __init__(self):
                super().__init__()
                self.initialized = False

            def initialize(self, ctx):
                self.manifest = ctx.manifest
                folder = ctx.system_properties.get("model_dir")
                self.device = torch.device("cpu")
                self.model = Line()
                self.model.load_state_dict(torch.load(os.path.join(folder, "model.pth"), weights_only=True))
                self.model.to(self.device).eval()
                self.initialized = True
                return self

            def preprocess(self, data):
                return torch.tensor([[float(data[0].get("body"))]])

            def inference(self, data):
                with torch.no_grad():
                    return self.model(data)

            def postprocess(self, output):
                return output.tolist()
        """
    write(tmp_path, model_handler=handler, linear=LINEAR.replace("Doubler", "Line"), __init__="")
    save_state(tmp_path / "model.pth")
    seen: list[str] = []
    model = {"modelFile": "linear.py", "serializedFile": "model.pth"}
    engine = start(tmp_path, "model_handler.py", model, sink=lambda name, *_: seen.append(name))
    assert predict(engine, b"5.0", "text/plain") == [9.0]
    assert engine.device == "cpu" and seen == ["WorkerLoadTime", "HandlerTime", "PredictionTime"]


def test_a_state_dict_in_the_network_of_the_model_file(tmp_path: Path) -> None:
    write(tmp_path, model=LINEAR)
    save_state(tmp_path / "model.pth")
    engine = start(tmp_path, "base_handler", EAGER)
    answers = ask(engine, request(b"[5.0]", "application/json"), request(b"[0.5]", "application/json"))
    assert [json.loads(answer.body) for answer in answers] == [[9.0], [0.0]]
    nested = start(tmp_path, "base_handler", {**EAGER, "modelFile": "models/model.py"})
    assert predict(nested, b"[5.0]") == [9.0]


def test_helpers_beside_the_network_do_not_matter_but_a_second_network_does(tmp_path: Path) -> None:
    write(tmp_path / "a", model=LINEAR + "\n    class Options:\n        pass")
    save_state(tmp_path / "a" / "model.pth")
    assert predict(start(tmp_path / "a", "base_handler", EAGER), b"[5.0]") == [9.0]
    write(tmp_path / "b", model=LINEAR + "\n    class Other(torch.nn.Module):\n        pass")
    with pytest.raises(ModelLoadError, match="ValueError: Expected only one class as model definition"):
        start(tmp_path / "b", "base_handler", EAGER)


def test_a_network_without_weights_is_served_as_it_is_made(tmp_path: Path) -> None:
    text = LINEAR + "\n            \n    torch.manual_seed(0)"
    engine = start(write(tmp_path, model=text), "base_handler", {"modelFile": "model.py"})
    assert isinstance(predict(engine, b"[5.0]")[0], float)


@pytest.mark.parametrize("suffix", ["pt", "pth"])
def test_torchscript(tmp_path: Path, suffix: str) -> None:
    network = torch.nn.Linear(1, 1)
    save_script(network, tmp_path / f"model.{suffix}")
    engine = start(tmp_path, "base_handler", {"serializedFile": f"model.{suffix}"})
    assert predict(engine, b"[5.0]") == pytest.approx(network(torch.tensor([[5.0]])).tolist()[0])


def save_onnx(path: Path) -> None:
    """Write the graph of `y = 2x`."""
    tensor = onnx.helper.make_tensor_value_info
    x, y = (tensor(name, onnx.TensorProto.FLOAT, [None, 1]) for name in "xy")
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    graph = onnx.helper.make_graph([node], "double", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), path)


def test_onnx(tmp_path: Path) -> None:
    save_onnx(tmp_path / "model.onnx")
    for trusted_only in (False, True):
        packages = str(tmp_path / f"packages-{trusted_only}")
        options = {"trusted_only": trusted_only, "requirements": packages}
        engine = start(tmp_path, "base_handler", {"serializedFile": "model.onnx"}, **options)
        assert predict(engine, b"[5.0]") == [10.0]
        assert (packages in sys.path) is not trusted_only


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_an_aotinductor_package(tmp_path: Path) -> None:
    network = torch.nn.Linear(1, 1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.ones(1, 1),))
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
        engine = start(tmp_path, "base_handler", {"serializedFile": "model.pt2"})
    assert predict(engine, b"[5.0]") == pytest.approx(network(torch.tensor([[5.0]])).tolist()[0])


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return self.marker.write_text, ("x",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save(Attack(marker), write(tmp_path, model=LINEAR) / "model.pth")
    with pytest.raises(ModelLoadError, match="model.pth is no state dict that can be read without running code; save"):
        start(tmp_path, "base_handler", EAGER)
    assert not marker.exists()


def test_models_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    write(tmp_path, model=LINEAR)
    save_state(tmp_path / "model.pth")
    torch.save({"other": torch.ones(1)}, tmp_path / "wrong.pth")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    cases = [
        ({"serializedFile": "model.pth"}, "model.pth is not TorchScript; a state dict needs a model file"),
        ({**EAGER, "modelFile": "no.py"}, "The model file no.py is missing"),
        ({**EAGER, "serializedFile": "no.pth"}, "FileNotFoundError.*no.pth"),
        ({**EAGER, "serializedFile": "wrong.pth"}, "Missing key"),
        ({"serializedFile": "bad.onnx"}, "bad.onnx"),
        ({"serializedFile": "model.bin"}, "No model weights could be loaded"),
        ({}, "No model weights could be loaded"),
    ]
    for model, reason in cases:
        with pytest.raises(ModelLoadError, match=reason):
            start(tmp_path, "base_handler", model)


def test_whole_models_pickled_with_a_class_of_the_archive(tmp_path: Path) -> None:
    handler = """
        import os
        import torch
        from ts.torch_handler.base_handler import BaseHandler

        class Whole(BaseHandler):
            def initialize(self, context):
                path = os.path.join(context.system_properties["model_dir"], "model.pth")
                self.model = torch.load(path, weights_only=False)

            def handle(self, data, context):
                return [self.model(torch.tensor([[5.0]])).tolist() for _ in data]
        """
    write(tmp_path, handler=handler, net=LINEAR)
    modules = Modules([tmp_path])
    with modules.scope():  # pickled by name, as a script beside net.py would do it
        module = modules.load("net")
        module.Doubler.__module__ = "net"
        torch.save(module.Doubler(), tmp_path / "model.pth")
    modules.forget()
    answer = json.loads(ask(start(tmp_path), request())[0].body)
    assert isinstance(answer[0][0], float) and "net" not in sys.modules


def test_pt2_asks_for_a_compiled_model(tmp_path: Path) -> None:
    write(tmp_path, model=LINEAR)
    save_state(tmp_path / "model.pth")
    config = {"pt2": {"compile": {"enable": True, "backend": "eager"}}}
    # In a process of its own: torch looks at every module that is loaded, and one of other tests' breaks at that.
    code = f"""
        import pathlib
        from tests.handler_archives import start
        from tests.test_ts_formats import EAGER, predict
        config = {config!r}
        engine = start(pathlib.Path({str(tmp_path)!r}), "base_handler", EAGER, model_config=config)
        print(type(engine._entry.owner.model).__name__, predict(engine, b"[5.0]"), config)
        """
    done = subprocess.run([sys.executable, "-c", dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"OptimizedModule [9.0] {config}"


@pytest.mark.parametrize(
    ("pt2", "options"),
    [
        (None, None),
        ("eager", {"backend": "eager"}),
        ("no_such", None),
        ({"backend": "inductor", "mode": "reduce-overhead"}, {"backend": "inductor", "mode": "reduce-overhead"}),
        ({"compile": {"enable": True}}, {}),
        ({"compile": {"enable": False, "backend": "eager"}}, None),
        ({"export": {"aot_compile": True}}, None),
        (5, None),
    ],
)
def test_every_form_of_pt2(pt2: Any, options: Any) -> None:
    assert compile_options(pt2) == options


def test_describe_explain_and_profile_by_header_and_configuration(tmp_path: Path) -> None:
    handler = """
        from ts.torch_handler.base_handler import BaseHandler

        class Mine(BaseHandler):
            def describe_handle(self):
                return {"classes": 2}

            def get_insights(self, prepared, raw, target):
                return [[prepared.tolist(), raw, target]]
        """
    save_state(write(tmp_path, handler=handler, model=LINEAR) / "model.pth")
    seen: list[str] = []
    config = {"handler": {"profile": True}}
    engine = start(tmp_path, model=EAGER, model_config=config, sink=lambda name, *_: seen.append(name))
    assert predict(engine, b"[5.0]") == [9.0]
    steps = [f"ts_handler_{step}" for step in ("preprocess", "inference", "postprocess")]
    assert seen == ["WorkerLoadTime", *steps, "HandlerTime", "PredictionTime"]
    (answer,) = ask(engine, request(headers={"describe": "True"}))
    assert json.loads(answer.body) == {"classes": 2}
    (answer,) = ask(engine, request(b"[5.0]", "application/json", headers={"explain": "True"}))
    assert json.loads(answer.body) == [[[5.0]], [5.0], 0]


def test_a_profile_can_be_asked_for(tmp_path: Path) -> None:
    save_state(write(tmp_path, model=LINEAR) / "model.pth")
    code = f"""
        import logging, pathlib
        from tests.handler_archives import ask, request, start
        logging.basicConfig(level="INFO")
        engine = start(pathlib.Path({str(tmp_path)!r}), "base_handler", {EAGER})
        print(ask(engine, request(b"[5.0]", "application/json"))[0].body.decode())
        """
    environ = {**os.environ, "ENABLE_TORCH_PROFILER": "true"}
    command = [sys.executable, "-W", "ignore", "-c", dedent(code)]
    done = subprocess.run(command, env=environ, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [9.0]
    assert "aten::linear" in done.stderr


def test_a_handler_without_explanations_says_so(tmp_path: Path) -> None:
    save_state(write(tmp_path, model=LINEAR) / "model.pth")
    engine = start(tmp_path, "base_handler", EAGER)
    with pytest.raises(HandlerFailed, match="This model explains nothing") as caught:
        ask(engine, request(b"[5.0]", "application/json", headers={"explain": "True"}))
    assert caught.value.status == 501
