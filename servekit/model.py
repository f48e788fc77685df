"""One loaded version of a model, and a request's way through it: preprocess, batched inference, postprocess."""

import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

from servekit.batcher import Backlog, Batcher, Parts, give_way, remaining, stream
from servekit.engines import Engine
from servekit.errors import InvalidInput
from servekit.handlers.base import Handler
from servekit.metrics import ModelMeter
from servekit.signature import Signature
from servekit.spec import ModelSpec
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

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
        takes_requests: bool = False,
        config: Mapping[str, Any] | None = None,
        max_wait: float = math.inf,
        **batching: Any,
    ) -> None:
        """`backlog` is that of the worker or of this model; `batching` is for `Batcher`.

        `takes_requests`: rows are requests as they came, and no contract is to take them apart. `config` is Triton's
        ModelConfig, of a model of its layout. A request waits for its pass `max_wait` seconds at most.
        """
        self.name = name
        self.version = version
        self.spec = spec
        # None: the model's own code reads requests as they come.
        self.signature: Signature | None = None if takes_requests else handler.signature
        self.config = config
        self.device = engine.device
        self._max_wait = max_wait
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

    def connect(self) -> None:
        """Look at the models that this one needs, if it needs others; raise ModelLoadError if it does not fit them."""

    def require_ready(self) -> None:
        """Raise NotReady if this model needs others that are not there."""

    def predict(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the answer for every row of `tensors`; `deadline` is a time of the monotonic clock, in seconds.

        Raises Overloaded, InvalidInput for what the handler cannot read, DeadlineExceeded, or MemoryError.
        """
        started = time.monotonic()
        try:
            return self._predict(tensors, deadline, started)
        except Exception:
            self.meter.observe_failure(time.monotonic() - started)
            raise

    def _predict(self, tensors: Tensors, deadline: float, started: float) -> Tensors:
        rows = row_count(tensors)
        self._backlog.enter(rows)
        try:
            deadline = self._waits_until(deadline)  # what is late already is not worth reading
            inputs = self._read(tensors, rows, deadline)
            read = time.monotonic()
            outputs = self._batcher(inputs, deadline)
            computed = time.monotonic()
            answer = self._handler.postprocess(outputs)
            self.meter.observe_request(read - started, time.monotonic() - computed)
            return answer
        finally:
            self._backlog.leave(rows)

    def _read(self, tensors: Tensors, rows: int, deadline: float) -> Tensors:
        """Return the inputs of the network; encoded rows one by one, between which others are served: images take long."""
        encoded = self.signature.encoded if self.signature is not None else ()
        if rows == 1 or not any(name in encoded and array.dtype == object for name, array in tensors.items()):
            return self._handler.preprocess(tensors)
        parts = []
        for row in range(rows):
            give_way()
            remaining(deadline)
            parts.append(self._handler.preprocess(slice_rows(tensors, slice(row, row + 1))))
        return concatenate(parts)

    def stream(self, tensors: Tensors, deadline: float, parts: Parts) -> Generator[bytes | Tensors, None, None]:
        """Give the parts of the answer to one row, which the engine puts into `parts`, and at last the answer.

        Raises as `predict` does.
        """
        self._backlog.enter(1)
        try:
            remaining(deadline)
            for part in stream(self._batcher, self._handler.preprocess(tensors), deadline, parts):
                yield part if isinstance(part, bytes) else self._handler.postprocess(part)
            self.meter.observe_request(0.0, 0.0)
        finally:
            self._backlog.leave(1)

    def predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        """Return an answer, or what is wrong with it, for each of `requests`: a bad one fails alone.

        Those that can be read go through the network together. Raises as `predict` does, but for InvalidInput.
        """
        rows, started = sum(map(row_count, requests)), time.monotonic()
        self._backlog.enter(rows)
        try:
            answers = self._predict_each(requests, self._waits_until(deadline))
            self.meter.observe_request(0.0, 0.0)
            return answers
        except Exception:
            self.meter.observe_failure(time.monotonic() - started)
            raise
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

    def _waits_until(self, deadline: float) -> float:
        """Return until when a request waits for its pass; raise DeadlineExceeded if that is past."""
        remaining(deadline)
        return min(deadline, time.monotonic() + self._max_wait)

    def _observe(self, rows: int, seconds: float, waits: Sequence[float]) -> None:
        self._backlog.note_speed(rows, seconds)
        self.meter.observe(rows, seconds, waits)


def _attempt(step: Callable[[Tensors], Tensors], tensors: Tensors) -> Tensors | InvalidInput:
    try:
        return step(tensors)
    except InvalidInput as error:
        return error
