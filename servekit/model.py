"""One loaded version of a model, and a request's way through it: preprocess, batched inference, postprocess."""

import dataclasses
import importlib.util
import os
import textwrap
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from servekit.archive import read_manifest, read_model_config
from servekit.batcher import Backlog, Batcher, Parts, give_way, remaining, stream
from servekit.config import Settings, visible_gpus
from servekit.desired import Entry
from servekit.engines import Engine
from servekit.errors import InvalidInput, ModelLoadError
from servekit.handlers.base import Handler
from servekit.metrics import ModelMeter
from servekit.spec import FILE_NAME, ONNX, ModelSpec, TensorSpec, read_spec, resolve
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

_REQUESTS = ModelSpec(
    handler="servekit.handlers.base:Handler",
    network="servekit.engines.torchserve:TorchServeEngine",
    inputs=(TensorSpec("request", "bytes", (-1,)),),
    outputs=(TensorSpec("response", "bytes", (-1,)),),
    files={},
)
_WARM_UP_PASSES = 3  # the first pays for first-time work; the fastest of the others is the model's speed


# Name, kind ("counter", "gauge" or "histogram"), value, unit, dimensions of what the code of an archive measures.
ReportMetric = Callable[[str, str, Any, str, Mapping[str, str]], None]


def ignore_metric(name: str, kind: str, value: Any, unit: str, dimensions: Mapping[str, str]) -> None:
    """Drop what the code of an archive measures."""


class Model:
    """A version of a model, ready to predict; made once a worker, used by all its requests."""

    def __init__(
        self,
        name: str,
        version: str,
        spec: ModelSpec,
        handler: Handler,
        engine: Engine,
        backlog: Backlog,
        **batching: Any,
    ) -> None:
        """`backlog` is that of the worker or of this model; `batching` is for `Batcher`."""
        self.name = name
        self.version = version
        self.spec = spec
        self.device = engine.device
        self._handler = handler
        self._backlog = backlog
        self._engine = engine
        self._batcher = Batcher(engine, spec.max_batch_rows, observe=self._observe, **batching)

    @cached_property
    def meter(self) -> ModelMeter:
        """The metrics of this version. They appear when it is first asked for, so not for a model that is not served."""
        return ModelMeter(self.name, self.version)

    def use_threads(self, threads: int) -> None:
        """Let an engine that runs others' code take so many threads of arithmetic; servekit's own take one."""
        if hasattr(self._engine, "threads"):
            self._engine.threads = threads

    @property
    def waiting(self) -> int:
        """The rows that wait in this worker beside a whole batch, of all models that share the backlog."""
        return max(0, self._backlog.rows - self.spec.max_batch_rows)

    def predict(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the answer for every row of `tensors`; `deadline` is a time of the monotonic clock, in seconds.

        Raises Overloaded, InvalidInput for what the handler cannot read, DeadlineExceeded, or MemoryError.
        """
        rows = row_count(tensors)
        self._backlog.enter(rows)
        try:
            remaining(deadline)  # what is late already is not worth reading
            return self._handler.postprocess(self._batcher(self._handler.preprocess(tensors), deadline))
        finally:
            self._backlog.leave(rows)

    def stream(self, tensors: Tensors, deadline: float, parts: Parts) -> Generator[bytes | Tensors, None, None]:
        """Give the parts of the answer to one row, which the engine puts into `parts`, and at last the answer.

        Raises as `predict` does.
        """
        self._backlog.enter(1)
        try:
            remaining(deadline)
            for part in stream(self._batcher, self._handler.preprocess(tensors), deadline, parts):
                yield part if isinstance(part, bytes) else self._handler.postprocess(part)
        finally:
            self._backlog.leave(1)

    def predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        """Return an answer, or what is wrong with it, for each of `requests`: a bad one fails alone.

        Those that can be read go through the network together. Raises as `predict` does, but for InvalidInput.
        """
        rows = sum(map(row_count, requests))
        self._backlog.enter(rows)
        try:
            return self._predict_each(requests, deadline)
        finally:
            self._backlog.leave(rows)

    def _predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        prepared = []
        for tensors in requests:
            give_way()  # reading a thousand large images takes time
            remaining(deadline)
            prepared.append(_attempt(self._handler.preprocess, tensors))
        readable = [tensors for tensors in prepared if not isinstance(tensors, InvalidInput)]
        if not readable:
            return prepared
        outputs = self._batcher(concatenate(readable), deadline)
        answers: list[Tensors | InvalidInput] = []
        start = 0
        for request in prepared:
            if isinstance(request, InvalidInput):
                answers.append(request)
                continue
            stop = start + row_count(request)
            answers.append(_attempt(self._handler.postprocess, slice_rows(outputs, slice(start, stop))))
            start = stop
        return answers

    def _observe(self, rows: int, seconds: float, wait: float) -> None:
        self._backlog.note_speed(rows, seconds)
        self.meter.observe(rows, seconds, wait)


def load_entry(
    entry: Entry,
    settings: Settings,
    backlog: Backlog,
    note_failure: Callable[[str], None] = lambda text: None,
    report_metric: ReportMetric = ignore_metric,
) -> Model:
    """Load what `entry` names; raise ModelLoadError with what is wrong.

    `note_failure` is told, as text for people, what goes wrong in the code of an archive when it runs, and
    `report_metric` what that code measures.
    """
    if entry.format == "torchserve":
        return _load_archive(entry, settings, note_failure, report_metric)
    return load_model(entry.name, entry.version, Path(entry.folder), settings, backlog)


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
        is_long=True,
        max_delay=options["max_batch_delay"] / 1000,
        max_seconds=options["response_timeout"],
        blame=note_failure,
    )


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
    if choice == "onnx" or (choice == "auto" and has_runtime and ONNX in spec.files):
        from servekit.engines.onnx import OnnxEngine

        return OnnxEngine(folder, spec)
    from servekit.engines.torch import TorchEngine

    return TorchEngine(folder, spec)


def _attempt(step: Callable[[Tensors], Tensors], tensors: Tensors) -> Tensors | InvalidInput:
    try:
        return step(tensors)
    except InvalidInput as error:
        return error


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
            outputs = engine({tensor.name: np.zeros((1, *tensor.shape[1:]), tensor.dtype) for tensor in spec.inputs})
        except Exception as error:
            reason = textwrap.shorten(str(error), 300)
            raise ModelLoadError(
                f"{folder / FILE_NAME}: the network {spec.network} fails on its inputs: {reason}; correct one of them."
            ) from error
        fastest = min(fastest, time.monotonic() - started)
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        if (array.dtype.name, array.shape) != (tensor.dtype, (1, *tensor.shape[1:])):
            raise ModelLoadError(
                f"{folder / FILE_NAME} promises {tensor.name} as {tensor.dtype} {list(tensor.shape)}, but the network "
                f"{spec.network} gives {array.dtype.name} {[-1, *array.shape[1:]]}; correct one of them."
            )
    return fastest
