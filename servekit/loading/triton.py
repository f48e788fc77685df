"""Version folders of Triton's layout: networks, and ensembles of models."""

import logging
import textwrap
import time
from pathlib import Path
from typing import Any

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.desired import Entry
from servekit.engines import Engine
from servekit.engines.shaped import ShapedEngine
from servekit.ensemble import Ensemble, Find, Step
from servekit.errors import ModelLoadError
from servekit.handlers.tensors import TensorsHandler
from servekit.loading.warm_up import PASSES, misfit, zeros
from servekit.model import Model
from servekit.signature import Signature
from servekit.spec import TRITON_CONFIG
from servekit.triton.folders import inside

log = logging.getLogger(__name__)


def load_triton(entry: Entry, settings: Settings, backlog: Backlog, find: Find) -> Model:
    """Load a version folder of Triton's layout; what its config sets and has no effect is named in one warning."""
    from servekit.triton import meaning  # protobuf is for those who have such models
    from servekit.triton.config import read_config

    folder = Path(entry.folder)
    config = read_config(folder.parent, entry.options.get("config", ""))
    try:
        backend = meaning.backend_of(config.values, folder)
        if backend == meaning.ENSEMBLE:
            model: Model = _ensemble(entry, meaning.completed(config.values, entry.name, backend), find)
        else:
            model = _load_file(entry, settings, backlog, config.values, backend)
    except ValueError as error:
        raise ModelLoadError(f"{folder.parent / TRITON_CONFIG}: {error}.") from error
    model.connect()
    ignored = [*config.without_effect]
    if meaning.wants_gpu(config.values) and model.device == "cpu":
        ignored.append("instance_group.kind (no GPU can be used)")
    if ignored:
        log.warning("%s: what has no effect here is %s.", folder.parent / TRITON_CONFIG, ", ".join(ignored))
    return model


def _ensemble(entry: Entry, values: dict[str, Any], find: Find) -> Ensemble:
    from servekit.triton import meaning

    meaning.check(values, entry.name)
    folder = Path(entry.folder).parent
    signature = meaning.signature_of(values, folder)
    steps = [
        Step(step["model_name"], _version_of(step["model_version"]), step["input_map"], step["output_map"])
        for step in values.get("ensemble_scheduling", {}).get("step", [])
    ]
    spec = meaning.spec_of(signature)
    return Ensemble(
        entry.name, entry.version, spec, signature, steps, find, str(folder / TRITON_CONFIG), values
    )


def _version_of(number: int) -> str | None:
    return str(number) if number > 0 else None  # -1 means the newest, which is the default one; so does leaving it out


def _load_file(
    entry: Entry, settings: Settings, backlog: Backlog, values: dict[str, Any], backend: str
) -> Model:
    """Load a network of Triton's layout: what its config leaves open comes from the file."""
    from servekit.triton import meaning

    folder, model = Path(entry.folder), Path(entry.folder).parent
    path = inside(folder, model, values["default_model_filename"] or meaning.FILE_OF[backend], "default_model_filename")
    uses_gpu = meaning.uses_gpu(values)
    if backend == meaning.ONNX_RUNTIME:
        from servekit.engines.onnx import OnnxEngine

        onnx = OnnxEngine(path.read_bytes(), path, uses_gpu=uses_gpu, remedy="put a file there that ONNX Runtime can run")
        meaning.check_names(values, path.name, onnx.inputs, onnx.outputs)
        values = meaning.completed(values, entry.name, backend, onnx.inputs, onnx.outputs)
        meaning.check(values, entry.name)
        meaning.check_file(values, path.name, onnx.inputs, onnx.outputs)
        onnx.select([tensor["name"] for tensor in values["output"]])
        engine: Engine = onnx
        signature = meaning.signature_of(values, model)
    else:
        if settings.trusted_models_only:
            raise ModelLoadError(f"{path} is TorchScript, which runs what it was made of; SERVEKIT_TRUSTED_MODELS_ONLY forbids it.")
        from servekit.engines.torchscript import TorchScriptEngine

        values = meaning.completed(values, entry.name, backend)
        meaning.check(values, entry.name)
        signature = meaning.signature_of(values, model)
        engine = TorchScriptEngine(path.read_bytes(), path, signature.inputs, signature.outputs, uses_gpu)
    inputs, outputs = meaning.reshapes_of(values)
    if inputs or outputs or not signature.is_batched:
        engine = ShapedEngine(engine, engine.device, inputs, outputs, signature.is_batched)
    return _model(entry, settings, backlog, meaning.with_instances(values, engine.device), signature, engine)


def _model(
    entry: Entry, settings: Settings, backlog: Backlog, values: dict[str, Any], signature: Signature, engine: Engine
) -> Model:
    from servekit.triton import meaning

    seconds = _warm_up(engine, Path(entry.folder).parent, values, signature)
    queue = meaning.queue_of(values)
    spec = meaning.spec_of(signature)
    return Model(
        entry.name,
        entry.version,
        spec,
        TensorsHandler(spec, signature),
        engine,
        backlog if queue.max_rows is None else Backlog(min(queue.max_rows, settings.max_waiting)),
        config=values,
        max_wait=queue.max_seconds,
        # Requests of one turn of the loop share a pass anyway; who would wait for others for longer waits beside it.
        is_long=seconds + queue.delay > settings.long_pass_seconds,
        max_delay=queue.delay,
    )


def _warm_up(engine: Engine, model: Path, values: dict[str, Any], signature: Signature) -> float:
    """Run the config's samples, then a row of zeros, and compare with the config; return the seconds of a pass.

    Not every network takes zeros, or an axis of size 1 where it is free: only samples must go through.
    """
    from servekit.triton.warmup import samples

    for name, tensors, count in samples(values, model):
        try:
            for _ in range(count):
                engine(tensors)
        except Exception as error:
            reason = textwrap.shorten(str(error), 300)
            raise ValueError(f"the network fails on the model_warmup {name} ({reason}); correct one of them") from error
    fastest = float("inf")
    for _ in range(PASSES):
        started = time.monotonic()
        try:
            outputs = engine({tensor.name: zeros(tensor) for tensor in signature.inputs})
        except Exception as error:
            log.debug("%s fails on zeros: %s", model, error)
            return float("inf")
        fastest = min(fastest, time.monotonic() - started)
    for tensor in signature.outputs:
        if (difference := misfit(tensor, outputs[tensor.name])) is not None:
            raise ValueError(f"it promises {tensor.name} as {difference}; correct the output")
    return fastest
