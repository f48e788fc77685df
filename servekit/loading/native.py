"""Version folders of servekit's own layout."""

import importlib.util
import textwrap
import time
from pathlib import Path

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.engines import Engine
from servekit.engines.echo import EchoEngine
from servekit.errors import ModelLoadError
from servekit.handlers.base import Handler
from servekit.loading.warm_up import PASSES, misfit, zeros
from servekit.model import Model
from servekit.spec import FILE_NAME, ONNX, ModelSpec, read_spec, resolve


def load_model(name: str, version: str, folder: Path, settings: Settings, backlog: Backlog) -> Model:
    """Load and warm up the version in `folder`; raise ModelLoadError naming the file and the remedy."""
    spec = read_spec(folder)
    handler = _make_handler(folder, spec)
    engine = _load_engine(folder, spec, settings.engine)
    seconds = _warm_up(engine, folder, spec)
    return Model(name, version, spec, handler, engine, backlog, is_long=seconds > settings.long_pass_seconds)


def _load_engine(folder: Path, spec: ModelSpec, choice: str) -> Engine:
    """Return the engine that `choice`, one of `servekit.config.ENGINES`, means for this version.

    Each is imported only when it is chosen: a worker that serves by ONNX Runtime has no torch in its memory.
    """
    has_runtime = importlib.util.find_spec("onnxruntime") is not None
    if choice == "onnx" and not has_runtime:
        raise ModelLoadError("SERVEKIT_ENGINE=onnx needs ONNX Runtime; install servekit[onnx], or set it to auto.")
    if not spec.network and not spec.files:
        return EchoEngine()
    if choice == "onnx" or (choice == "auto" and has_runtime and ONNX in spec.files):
        from servekit.engines.onnx import OnnxEngine

        return OnnxEngine.from_version(folder, spec)
    if not spec.network:
        raise ModelLoadError(f"{folder / FILE_NAME} names files and no network to load them into; name it, or take them out.")
    from servekit.engines.torch import TorchEngine

    return TorchEngine(folder, spec)


def _make_handler(folder: Path, spec: ModelSpec) -> Handler:
    try:
        handler_class = resolve(spec.handler)
        if not (isinstance(handler_class, type) and issubclass(handler_class, Handler)):
            raise TypeError("it is not a servekit.Handler")  # and is not called: it may be anything, subprocess.Popen too
        handler = handler_class(spec, **spec.options)
    except Exception as error:  # a handler may be the user's code, which may fail in any way
        raise ModelLoadError(
            f"{folder / FILE_NAME}: the handler {spec.handler} cannot be made: {error}; correct its options or its class."
        ) from error
    return handler


def _warm_up(engine: Engine, folder: Path, spec: ModelSpec) -> float:
    """Run a row of zeros, so that the first client does not pay for first-time work, and compare with the spec.

    Returns the seconds of a pass.
    """
    fastest = float("inf")
    for _ in range(PASSES):
        started = time.monotonic()
        try:
            outputs = engine({tensor.name: zeros(tensor) for tensor in spec.inputs})
        except Exception as error:
            reason = textwrap.shorten(str(error), 300)
            raise ModelLoadError(
                f"{folder / FILE_NAME}: the network {spec.network} fails on its inputs: {reason}; correct one of them."
            ) from error
        fastest = min(fastest, time.monotonic() - started)
    for tensor in spec.outputs:
        if tensor.name not in outputs:
            raise ModelLoadError(f"{folder / FILE_NAME} promises {tensor.name}, which is none of its inputs; correct one.")
        array = outputs[tensor.name]
        if (difference := misfit(tensor, array)) is not None:
            raise ModelLoadError(f"{folder / FILE_NAME} promises {tensor.name} as {difference}; correct one of them.")
    return fastest
