"""The formats that models come in, each with how it is loaded; torch and ONNX Runtime are imported when they are needed."""

import importlib.util
import logging
import pickle
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from servekit import imports
from servekit.ts.utils.util import list_classes_from_module

log = logging.getLogger(__name__)

# besides those that torch names itself: torch.compile's backends that come with packages of their own
_BACKENDS = {"eager", "aot_eager", "inductor", "onnxrt", "openvino", "tensorrt", "ipex", "hpu_backend"}


def load_eager(folder: Path, model_file: str, weights: str | None, device: Any) -> Any:
    """Return the network that `model_file` defines, with the state dict of the file `weights` if there is one.

    Raise RuntimeError if a file is missing or holds no state dict, ValueError if it is not clear which class it is.
    """
    import torch

    network = _only_network(_import_file(folder, model_file))()
    if weights:
        name = Path(weights).name
        try:
            # weights_only: tensors and plain containers; a pickle that would run code is refused
            state = torch.load(weights, map_location=device, weights_only=True)
        except pickle.UnpicklingError as error:
            raise RuntimeError(
                f"{name} is no state dict that can be read without running code; save model.state_dict() instead."
            ) from error
        network.load_state_dict(state)
    return network


def _import_file(folder: Path, model_file: str) -> ModuleType:
    path = folder / model_file
    if not path.is_file():  # an archive is flat, whatever folder the file came from
        path = folder / Path(model_file).name
    if not path.is_file():
        raise RuntimeError(f"The model file {Path(model_file).name} is missing from the archive.")
    modules = imports.current()
    if modules is not None and str(folder) in modules.folders:
        return modules.load(".".join(path.relative_to(folder).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"The model file {path.name} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _only_network(module: ModuleType) -> Any:
    import torch

    classes = list_classes_from_module(module)
    if len(classes) != 1:  # helpers beside the network are no reason to be confused
        networks = [cls for cls in classes if issubclass(cls, torch.nn.Module)]
        classes = networks if len(networks) == 1 else classes
    if len(classes) != 1:
        raise ValueError(f"Expected only one class as model definition. {classes}")
    return classes[0]


def load_torchscript(path: str, device: Any) -> Any:
    """Return the TorchScript module in a file; raise RuntimeError if it holds something else."""
    import torch

    # Archives hold what they hold: that torch would rather have another format is no news for whoever serves them.
    warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
    try:
        return torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error) and "constants.pkl" not in str(error):
            raise
        raise RuntimeError(
            f"{Path(path).name} is not TorchScript; a state dict needs a model file that defines its network."
        ) from error


def load_compiled(path: str, device: Any) -> Any:
    """Return the function of an AOTInductor package: .pt2, or the .so of older versions of torch."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if path.endswith(".pt2"):
        return torch._inductor.aoti_load_package(path)
    return torch._export.aot_load(path, device.type)


def load_onnx(path: str, device: str) -> Any:
    """Return an ONNX Runtime session; raise RuntimeError if the package is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError("ONNX models need the package onnxruntime, which is not installed on the server.") from error
    options = onnxruntime.SessionOptions()
    # The workers share the cores out among themselves: threads of one would only fight those of the others.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = ["CUDAExecutionProvider"] * (device == "cuda") + ["CPUExecutionProvider"]
    offered = onnxruntime.get_available_providers()
    return onnxruntime.InferenceSession(path, options, providers=[name for name in wanted if name in offered])


def is_onnx(model: Any) -> bool:
    """Return True if `model` is a session of ONNX Runtime."""
    return hasattr(model, "get_inputs") and hasattr(model, "run")


def run_onnx(session: Any, *tensors: Any) -> Any:
    """Return the outputs of `session`, the tensor itself if there is but one; `tensors` are its inputs in order."""
    import torch

    names = [each.name for each in session.get_inputs()]
    feed = {name: tensor.cpu().numpy() for name, tensor in zip(names, tensors, strict=False)}
    outputs = [torch.from_numpy(array) for array in session.run(None, feed)]
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def compile_options(pt2: Any) -> dict[str, Any] | None:
    """Return the arguments for torch.compile that `pt2` of model-config.yaml asks for; None: it asks for none.

    {"compile": {"enable": true, "backend": ..., ...}}, the older forms {"backend": ...} and "inductor"; a backend that
    torch does not know is logged, and the model is served as it is.
    """
    if isinstance(pt2, str):
        options = {"backend": pt2}
    elif not isinstance(pt2, dict) or (pt2.keys() & {"export"} and "compile" not in pt2):
        return None
    elif "compile" in pt2:
        options = dict(pt2["compile"] or {})
        if options.pop("enable", False) is not True:
            return None
    else:
        options = dict(pt2)
    if (backend := options.get("backend", "inductor")) not in _BACKENDS | _known_backends():
        log.warning("torch.compile has no backend %r: the model is served without being compiled.", backend)
        return None
    return options


def _known_backends() -> set[str]:
    import torch

    return set(torch.compiler.list_backends())
