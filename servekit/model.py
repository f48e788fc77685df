"""One loaded version of a model, and a request's way through it: preprocess, batched inference, postprocess."""

import logging
import math
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from typing import Any

from servekit.batcher import Backlog, Batcher, Parts, give_way, remaining, stream
from servekit.engines import Engine
from servekit.errors import InvalidInput
from servekit.handlers.base import Handler
from servekit.line import Cell, Line
from servekit.metrics import ModelMeter, add_rows_waiting, is_of_models_code
from servekit.record import Record, record
from servekit.signature import Signature
from servekit.spec import ONNX, WEIGHTS, ModelSpec
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

log = logging.getLogger(__name__)

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
        weak = weakref.ref(self)  # what repeats refusals is not to keep a model that was unloaded

        def count_shed() -> None:
            if (model := weak()) is not None:
                model.meter.count("shed", 1)

        self._line = Line(backlog, spec.max_batch_rows, on_repeat=count_shed)
        self._engine = engine
        if hasattr(engine, "on_error"):  # of errors that it answers by itself
            engine.on_error = lambda: self.meter.observe_error()
        self._batcher = Batcher(engine, spec.max_batch_rows, observe=self._observe, on_error=self._note_hidden, **batching)

    @cached_property
    def meter(self) -> ModelMeter:
        """The metrics of this version. They appear when it is first asked for, so not for a model that is not served."""
        engine = type(self._engine).__module__.rpartition(".")[2]
        files = self.spec.files
        digest = files.get(ONNX if engine == "onnx" else WEIGHTS) or next(iter(files.values()), "")
        return ModelMeter(self.name, self.version, engine, self.device, digest)

    def use_threads(self, threads: int) -> None:
        """Let an engine that runs others' code take so many threads of arithmetic; servekit's own take one."""
        if hasattr(self._engine, "threads"):
            self._engine.threads = threads

    def share_refusals(self, at: Cell) -> None:
        """Let `at` be where the workers that hold this version note the time of their last refusal for want of time."""
        self._line.refused_at = at

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
        rows = row_count(tensors)
        try:
            current = self._take_in(rows, deadline, started)
            try:
                return self._predict(tensors, rows, deadline, started, current)
            except BaseException:
                add_rows_waiting(-rows)
                raise
            finally:
                self._line.leave(rows)
        except Exception as error:
            self._note_failure(error, time.monotonic() - started)
            raise

    def _predict(self, tensors: Tensors, rows: int, deadline: float, started: float, current: Record | None) -> Tensors:
        """Return the answer, and count it; its rows wait no more."""
        deadline = self._waits_until(deadline)  # what is late already is not worth reading
        inputs = self._read(tensors, rows, deadline)
        read = time.monotonic()
        outputs = self._batcher(inputs, deadline)
        computed = time.monotonic()
        answer = self._handler.postprocess(outputs)
        done = time.monotonic()
        if current is not None:
            current.preprocess_seconds += read - started
            current.postprocess_seconds += done - computed
        self.meter.observe_prediction(done - started, read - started, done - computed, leaving=rows)
        return answer

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
        started = time.monotonic()
        try:
            self._take_in(1, deadline, started)
            try:
                yield from self._stream(tensors, deadline, parts, started)
            finally:
                self._let_go(1)
        except Exception as error:
            self._note_failure(error, time.monotonic() - started)
            raise

    def _stream(
        self, tensors: Tensors, deadline: float, parts: Parts, started: float
    ) -> Generator[bytes | Tensors, None, None]:
        remaining(deadline)
        inputs = self._handler.preprocess(tensors)
        read, written = time.monotonic(), 0.0
        for part in stream(self._batcher, inputs, deadline, parts):
            if isinstance(part, bytes):
                yield part
                continue
            computed = time.monotonic()
            answer = self._handler.postprocess(part)
            written = time.monotonic() - computed
            yield answer
        self.meter.observe_prediction(time.monotonic() - started, read - started, written)
        _note_steps(read - started, written)

    def predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        """Return an answer, or what is wrong with it, for each of `requests`: a bad one fails alone.

        Those that can be read go through the network together. Raises as `predict` does, but for InvalidInput.
        """
        rows, started = sum(map(row_count, requests)), time.monotonic()
        try:
            self._take_in(rows, deadline, started)
            try:
                return self._predict_each(requests, self._waits_until(deadline), started)
            finally:
                self._let_go(rows)
        except Exception as error:
            self._note_failure(error, time.monotonic() - started, len(requests))
            raise

    def _predict_each(
        self, requests: Sequence[Tensors], deadline: float, started: float
    ) -> list[Tensors | InvalidInput]:
        preprocess, postprocess = _Step(self._handler.preprocess), _Step(self._handler.postprocess)
        prepared = []
        for tensors in requests:
            give_way()  # reading a thousand large images takes time
            remaining(deadline)
            prepared.append(preprocess.attempt(tensors))
        readable = [tensors for tensors in prepared if not isinstance(tensors, InvalidInput)]
        answers = prepared
        if readable:
            outputs = self._batcher(concatenate(readable), deadline)
            answers, start = [], 0
            for request in prepared:
                if isinstance(request, InvalidInput):
                    answers.append(request)
                    continue
                stop = start + row_count(request)
                answers.append(postprocess.attempt(slice_rows(outputs, slice(start, stop))))
                start = stop
        bad = sum(isinstance(answer, InvalidInput) for answer in answers)
        times = time.monotonic() - started, preprocess.seconds, postprocess.seconds
        self.meter.observe_prediction(*times, good=len(answers) - bad, bad=bad)
        _note_steps(preprocess.seconds, postprocess.seconds)
        return answers

    def _take_in(self, rows: int, deadline: float, now: float) -> Record | None:
        """Take in a request of `rows` rows, which `_let_go` lets go, and return its record, if it has one.

        Raises Overloaded if there are too many.
        """
        current = record.get()
        if current is not None:
            current.model, current.version = self.name, self.version
            current.began = current.began or now
            current.rows += rows
        self._line.enter(rows, deadline)
        add_rows_waiting(rows)
        return current

    def _let_go(self, rows: int) -> None:
        self._line.leave(rows)
        add_rows_waiting(-rows)

    def _note_failure(self, error: Exception, seconds: float, requests: int = 1) -> None:
        """Count `requests` that ended in `error`."""
        self.meter.observe_failure(error, seconds, requests)
        if is_of_models_code(error):
            self.meter.observe_error()
        if (current := record.get()) is not None:
            current.error = type(error).__name__

    def _note_hidden(self, error: Exception) -> None:
        """Count and log an error of a shared pass that no request is told of: one by one, its requests went through."""
        self.meter.observe_error()
        log.error("A shared pass of %s/%s failed; its requests went through one by one.", self.name, self.version, exc_info=error)

    def _waits_until(self, deadline: float) -> float:
        """Return until when a request waits for its pass; raise DeadlineExceeded if that is past."""
        remaining(deadline)
        return min(deadline, time.monotonic() + self._max_wait)

    def _observe(self, rows: int, seconds: float, waits: Sequence[float]) -> None:
        self._line.note_pass(rows)
        self.meter.observe(rows, seconds, waits)


class _Step:
    """A step of a handler that is taken for several requests, and the seconds that it took for all."""

    def __init__(self, step: Callable[[Tensors], Tensors]) -> None:
        self._step = step
        self.seconds = 0.0

    def attempt(self, tensors: Tensors) -> Tensors | InvalidInput:
        """Return what the step makes of `tensors`, or what is wrong with them."""
        started = time.monotonic()
        try:
            return self._step(tensors)
        except InvalidInput as error:
            return error
        finally:
            self.seconds += time.monotonic() - started


def _note_steps(preprocess: float, postprocess: float) -> None:
    """Add what the handler's steps took to the record of the request, if it has one."""
    if (current := record.get()) is not None:
        current.preprocess_seconds += preprocess
        current.postprocess_seconds += postprocess
