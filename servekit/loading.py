"""From what is registered to a loaded model: one loader for each format of an entry."""

import dataclasses
import importlib.util
import logging
import os
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.archive import read_manifest, read_model_config
from servekit.batcher import Backlog
from servekit.config import Settings, visible_gpus
from servekit.desired import Entry
from servekit.engines import Engine
from servekit.engines.echo import EchoEngine
from servekit.engines.shaped import ShapedEngine
from servekit.ensemble import Ensemble, Find, Step
from servekit.errors import ModelLoadError, ModelNotFound
from servekit.handlers.base import Handler
from servekit.handlers.tensors import TensorsHandler
from servekit.model import Model, ReportMetric, ignore_metric
from servekit.signature import Signature, array_dtype
from servekit.spec import FILE_NAME, ONNX, TRITON_CONFIG, ModelSpec, TensorSpec, read_spec, resolve
from servekit.triton.folders import inside

log = logging.getLogger(__name__)

_REQUESTS = ModelSpec(
    handler="servekit.handlers.base:Handler",
    network="servekit.engines.torchserve:TorchServeEngine",
    inputs=(TensorSpec("request", "bytes", (-1,)),),
    outputs=(TensorSpec("response", "bytes", (-1,)),),
    files={},
)
_STARTUP_SECONDS = 480.0  # for a model's own code to load: SageMaker waits eight minutes for the first healthy answer
_WARM_UP_PASSES = 3  # the first pays for first-time work; the fastest of the others is the model's speed


def find_none(name: str, version: str | None) -> Model:
    """Find no model: for what is loaded by itself."""
    raise ModelNotFound("No other model is loaded.")


def load_entry(
    entry: Entry,
    settings: Settings,
    backlog: Backlog,
    note_failure: Callable[[str], None] = lambda text: None,
    report_metric: ReportMetric = ignore_metric,
    find: Find = find_none,
) -> Model:
    """Load what `entry` names; raise ModelLoadError with what is wrong.

    `note_failure` is told, as text for people, what goes wrong in the code of an archive when it runs, and
    `report_metric` what that code measures. `find` looks up the models that an ensemble is made of.
    """
    if entry.format == "triton":
        return _load_triton(entry, settings, backlog, find)
    if entry.format == "torchserve":
        return _load_archive(entry, settings, note_failure, report_metric)
    if entry.format == "sagemaker":
        return _load_functions(entry, settings, backlog, note_failure)
    if entry.format == "azure":
        return _load_script(entry, backlog, note_failure)
    return load_model(entry.name, entry.version, Path(entry.folder), settings, backlog)


def _load_functions(
    entry: Entry, settings: Settings, backlog: Backlog, note_failure: Callable[[str], None]
) -> Model:
    """Load the functions of SageMaker's contract; requests go to them one by one, beside the event loop."""
    from servekit.engines.sagemaker import SageMakerEngine

    def load() -> Engine:
        return SageMakerEngine(entry.name, Path(entry.folder), os.environ, settings.trusted_models_only, note_failure)

    try:
        engine = _within(_STARTUP_SECONDS, load)
    except TimeoutError:
        raise ModelLoadError(f"The model {entry.name} was not loaded within {_STARTUP_SECONDS:.0f} seconds.") from None
    spec = dataclasses.replace(_REQUESTS, max_batch_rows=1)
    return Model(
        entry.name,
        entry.version,
        spec,
        Handler(spec),
        engine,
        backlog,
        takes_requests=True,
        is_long=True,
        max_seconds=settings.deadline_seconds,
        blame=note_failure,
    )


def _load_archive(
    entry: Entry, settings: Settings, note_failure: Callable[[str], None], report_metric: ReportMetric
) -> Model:
    """Load the handler of an archive. Requests are its rows; they wait in a line of their own, beside the event loop."""
    from servekit.engines.torchserve import TorchServeEngine

    folder = Path(entry.folder)
    config = read_model_config(folder, read_manifest(folder))  # as it stands: JSON would change keys and dates
    options = {**entry.options, "model_config": config, "trusted_only": settings.trusted_models_only}
    gpus, most = visible_gpus(os.environ), entry.options.get("number_of_gpu")
    if gpus := gpus if most is None else min(gpus, most):
        options["gpu_id"] = os.getpid() % gpus  # the workers share them out
    seconds = options["startup_timeout"]
    try:
        engine = _within(seconds, lambda: TorchServeEngine(folder, options, note_failure, report_metric))
    except TimeoutError:
        raise ModelLoadError(
            f"The model {entry.name} was not loaded within {seconds} seconds; raise its startup timeout."
        ) from None
    spec = dataclasses.replace(_REQUESTS, max_batch_rows=options["batch_size"])
    return Model(
        entry.name,
        entry.version,
        spec,
        Handler(spec),
        engine,
        Backlog(options["job_queue_size"] + options["batch_size"]),  # those of the batch that runs wait no more
        takes_requests=True,
        is_long=True,
        max_delay=options["max_batch_delay"] / 1000,
        max_seconds=options["response_timeout"],
        blame=note_failure,
    )


def _load_script(entry: Entry, backlog: Backlog, note_failure: Callable[[str], None]) -> Model:
    """Load a scoring script of Azure ML. Requests are its rows, and each runs alone, as long as its time-outs allow."""
    from servekit.engines.azure import NETWORK, AzureEngine

    engine = AzureEngine(Path(entry.folder), entry.options)
    spec = dataclasses.replace(_REQUESTS, network=NETWORK, max_batch_rows=1)
    batching = {"is_long": True, "max_seconds": engine.max_seconds, "blame": note_failure}
    return Model(*entry.key, spec, Handler(spec), engine, backlog, takes_requests=True, **batching)


def _load_triton(entry: Entry, settings: Settings, backlog: Backlog, find: Find) -> Model:
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
            model = _load_triton_file(entry, settings, backlog, config.values, backend)
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


def _load_triton_file(
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
    return _triton_model(entry, settings, backlog, meaning.with_instances(values, engine.device), signature, engine)


def _triton_model(
    entry: Entry, settings: Settings, backlog: Backlog, values: dict[str, Any], signature: Signature, engine: Engine
) -> Model:
    from servekit.triton import meaning

    seconds = _warm_up_triton(engine, Path(entry.folder).parent, values, signature)
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


def _warm_up_triton(engine: Engine, model: Path, values: dict[str, Any], signature: Signature) -> float:
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
    for _ in range(_WARM_UP_PASSES):
        started = time.monotonic()
        try:
            outputs = engine({tensor.name: _zeros(tensor) for tensor in signature.inputs})
        except Exception as error:
            log.debug("%s fails on zeros: %s", model, error)
            return float("inf")
        fastest = min(fastest, time.monotonic() - started)
    for tensor in signature.outputs:
        if (misfit := _misfit(tensor, outputs[tensor.name])) is not None:
            raise ValueError(f"it promises {tensor.name} as {misfit}; correct the output")
    return fastest


def _misfit(tensor: TensorSpec, array: NDArray[Any]) -> str | None:
    """Return how `array`, which has one row, differs from what was promised; None if it does not."""
    fits = len(array.shape) == len(tensor.shape) and all(
        size in (-1, given) for size, given in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.dtype == array_dtype(tensor):
        return None
    given = f"{array.dtype.name} {[-1, *array.shape[1:]]}"
    return f"{tensor.dtype} {list(tensor.shape)}, but the network gives {given}"


def _within(seconds: float, load: Callable[[], Engine]) -> Engine:
    """Call `load` in a thread of its own, whose the working directory can be, unlike the main thread's.

    Raises what it raises, or TimeoutError after `seconds`; what a thread does cannot be stopped, so it is left behind.
    """
    loaded: Future[Engine] = Future()

    def run() -> None:
        try:
            loaded.set_result(load())
        except BaseException as error:  # noqa: B036 - raised again where it is waited for
            loaded.set_exception(error)

    threading.Thread(target=run, name="servekit-load", daemon=True).start()
    return loaded.result(seconds)


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
        handler = resolve(spec.handler)(spec, **spec.options)
        if not isinstance(handler, Handler):
            raise TypeError("it is not a servekit.Handler")
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
    for _ in range(_WARM_UP_PASSES):
        started = time.monotonic()
        try:
            outputs = engine({tensor.name: _zeros(tensor) for tensor in spec.inputs})
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
        if (misfit := _misfit(tensor, array)) is not None:
            raise ModelLoadError(f"{folder / FILE_NAME} promises {tensor.name} as {misfit}; correct one of them.")
    return fastest


def _zeros(tensor: TensorSpec) -> NDArray[Any]:
    """Return one row of zeros; what may be of any size is of size 1."""
    shape = (1, *(1 if size == -1 else size for size in tensor.shape[1:]))
    return np.full(shape, b"", object) if tensor.dtype == "bytes" else np.zeros(shape, array_dtype(tensor))
