"""One suite over every engine: the same rows in, the same numbers out as the network itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.mnist import MnistCNN
from servekit.engines import Engine
from servekit.engines.echo import EchoEngine
from servekit.engines.onnx import OnnxEngine
from servekit.engines.torch import TorchEngine
from servekit.errors import ModelLoadError
from servekit.spec import ONNX, TensorSpec, read_spec, sha256
from tests import networks
from tests.versions import PREDICTION, edit, write_regressor
from train.export import ExportError, export_onnx, largest_difference
from train.store import write_version

IMAGE = TensorSpec("image", "float32", (-1, 1, 28, 28))
LOGITS = TensorSpec("logits", "float32", (-1, 10))


@pytest.fixture(scope="module")
def network() -> MnistCNN:
    torch.manual_seed(0)
    return MnistCNN().eval()


@pytest.fixture(scope="module")
def folder(network: MnistCNN, tmp_path_factory: pytest.TempPathFactory) -> Path:
    handler = "servekit.handlers.image:ImageHandler"
    store = tmp_path_factory.mktemp("store")
    onnx = {ONNX: export_onnx(network, (IMAGE,), (LOGITS,))}
    return write_version(store, "mnist", network, onnx, handler=handler, inputs=(IMAGE,), outputs=(LOGITS,))


@pytest.mark.parametrize("make", [TorchEngine, OnnxEngine.from_version])
@pytest.mark.parametrize("rows", [1, 2, 7, 32])
def test_an_engine_answers_as_the_network_does(make: Callable[..., Engine], network: MnistCNN, folder: Path, rows: int) -> None:
    engine = make(folder, read_spec(folder))
    images = np.random.default_rng(rows).random((rows, 1, 28, 28), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    answer = engine({"image": images})
    assert list(answer) == ["logits"]
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-4, atol=1e-5)


def test_the_engine_takes_the_gpu_if_there_is_one(folder: Path) -> None:
    assert TorchEngine(folder, read_spec(folder)).device == ("cuda" if torch.cuda.is_available() else "cpu")


def test_several_outputs_get_their_names(tmp_path: Path) -> None:
    half = TensorSpec("half", "float32", (-1, 1))
    folder = write_regressor(tmp_path, networks.TwoOutputs(), outputs=(PREDICTION, half))
    answer = TorchEngine(folder, read_spec(folder))({"value": np.float32([[4], [6]])})
    assert {name: array.ravel().tolist() for name, array in answer.items()} == {"prediction": [8, 12], "half": [2, 3]}


def test_memory_that_runs_out_is_a_memory_error_and_others_stay_what_they_are(tmp_path: Path) -> None:
    one = {"value": np.float32([[1]])}
    hungry = write_regressor(tmp_path, networks.Hungry())
    with pytest.raises(MemoryError):
        TorchEngine(hungry, read_spec(hungry))(one)
    faulty = write_regressor(tmp_path, networks.Faulty())
    with pytest.raises(KeyError):
        TorchEngine(faulty, read_spec(faulty))(one)
    with pytest.raises(RuntimeError):
        TorchEngine(faulty, read_spec(faulty))({"value": np.float32([[]])})


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("models.nothing:Net", "No module named 'models.nothing'"),
        ("models.linear:Net", "no attribute 'Net'"),
        ("tests.networks:Unmakeable", "no such layer"),
        ("tests.networks:not_a_network", "not a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused(folder: Path, tmp_path: Path, reference: str, reason: str) -> None:
    broken = copy(folder, tmp_path)
    edit(broken, network=reference)
    with pytest.raises(ModelLoadError, match=f"model.json: the network {reference} cannot be made: .*{reason}"):
        TorchEngine(broken, read_spec(broken))


def test_weights_of_another_network_are_refused_in_one_sentence(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path)
    edit(broken, network="models.linear:LinearRegressor")
    with pytest.raises(ModelLoadError, match="model.pth does not fit the network models.linear:LinearRegressor") as caught:
        TorchEngine(broken, read_spec(broken))
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return marker.write_text, ("x",)

    for content in (Attack(), [1, 2], b"bytes"):
        broken = copy(folder, tmp_path / type(content).__name__)
        torch.save(content, broken / "model.pth")
        edit(broken, files={"model.pth": sha256((broken / "model.pth").read_bytes())})
        with pytest.raises(ModelLoadError, match="model.pth holds no state dict"):
            TorchEngine(broken, read_spec(broken))
    assert not marker.exists()


def test_a_state_dict_with_strange_keys_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path)
    torch.save({1: torch.zeros(2)}, broken / "model.pth")
    edit(broken, files={"model.pth": sha256((broken / "model.pth").read_bytes())})
    with pytest.raises(ModelLoadError, match="model.pth does not fit the network"):
        TorchEngine(broken, read_spec(broken))


def test_the_echo_engine_echoes() -> None:
    tensors = {"x": np.arange(3)}
    assert EchoEngine()(tensors) is tensors


def copy(folder: Path, parent: Path) -> Path:
    return Path(shutil.copytree(folder, parent / "copy"))


@pytest.mark.parametrize("content", [b"", b"not a graph", "cut"])
def test_a_damaged_onnx_file_is_refused(folder: Path, tmp_path: Path, content: bytes | str) -> None:
    broken = copy(folder, tmp_path)
    path = broken / ONNX
    path.write_bytes(path.read_bytes()[:5000] if content == "cut" else content)
    edit(broken, files={ONNX: sha256(path.read_bytes())})
    with pytest.raises(ModelLoadError, match="model.onnx cannot be served"):
        OnnxEngine.from_version(broken, read_spec(broken))


def test_an_onnx_file_with_other_names_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path)
    edit(broken, inputs=[{"name": "picture", "dtype": "float32", "shape": [-1, 1, 28, 28]}])
    with pytest.raises(ModelLoadError, match="model.onnx cannot be served .its inputs are called image"):
        OnnxEngine.from_version(broken, read_spec(broken))
    edit(broken, inputs=[{"name": "image", "dtype": "float32", "shape": [-1, 1, 28, 28]}])
    edit(broken, outputs=[{"name": "scores", "dtype": "float32", "shape": [-1, 10]}])
    with pytest.raises(ModelLoadError, match="model.onnx cannot be served .it has no output called scores"):
        OnnxEngine.from_version(broken, read_spec(broken))


def test_an_onnx_pass_on_the_wrong_shape_fails_with_what_onnx_runtime_says(folder: Path) -> None:
    with pytest.raises(Exception, match="(?i)invalid dimensions|invalid rank|shape"):
        OnnxEngine.from_version(folder, read_spec(folder))({"image": np.zeros((1, 1, 5, 5), np.float32)})


def test_an_export_that_answers_otherwise_is_refused(network: MnistCNN) -> None:
    content = export_onnx(network, (IMAGE,), (LOGITS,))
    assert largest_difference(network, content, (IMAGE,)) < 1e-5
    with pytest.raises(ExportError, match="answers otherwise than the network"):
        largest_difference(MnistCNN().eval(), content, (IMAGE,))
