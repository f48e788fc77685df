"""The way into the engine: requests that are waiting together share one forward pass.

A request becomes one job or, with many rows, several. How jobs wait is the runner's affair: `ThreadRunner`, the
default, calls straight through; the event-loop worker puts its own in place (see `servekit.turns`).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from servekit.errors import DeadlineExceeded, Overloaded
from servekit.record import record
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

TOO_LATE = "The server was too busy to answer before the deadline; try again later."
FULL = "The server is too busy to take this request; try again later."

MAX_JOBS = 64  # of one request that wait at once: whoever sends a million rows makes no line of a million for the others
# In a worker, and as many that are not run yet: half of Gunicorn's worker_connections, so that others can be told to wait.
MAX_REQUESTS = 500
MAX_PARTS_BYTES = 16 * 2**20  # of an answer, given by the engine and not yet taken by the client

Result = TypeVar("Result")


def remaining(deadline: float) -> float:
    """Return the seconds until `deadline`, a time of the monotonic clock; raise DeadlineExceeded if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlineExceeded(TOO_LATE)
    return seconds


class Job:
    """Rows on their way through one forward pass; when `done`, they have either `outputs` or an `error`."""

    __slots__ = (
        *("batcher", "deadline", "done", "error", "key", "outputs", "owner", "rows", "submitted", "tensors"),
        "ran",
    )

    def __init__(self, batcher: "Batcher", tensors: Tensors, rows: int, deadline: float) -> None:
        self.batcher = batcher
        self.tensors = tensors
        self.rows = rows
        self.deadline = deadline
        self.submitted = time.monotonic()
        # Jobs with the same key fit into one batch.
        self.key: Hashable = (batcher, *((name, array.dtype, array.shape[1:]) for name, array in tensors.items()))
        self.outputs: Tensors = {}
        self.error: BaseException | None = None
        self.done = False
        self.owner: Any = None  # whoever waits for it; the runner's
        # Of the pass that it went through: its rows, those of others among them, when it began, and its seconds.
        self.ran: tuple[int, float, float] | None = None

    def fail(self, error: BaseException) -> None:
        """Note that there is no answer."""
        self.error, self.done = error, True


class Parts:
    """What an engine gives of an answer before all of it is there; written by its thread, read by the request."""

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self._bytes = 0
        self.notify: Callable[[], None] = _nothing

    def put(self, part: bytes) -> None:
        """Give the next part; raise BufferError when the client has not taken too much of what came before."""
        if self._bytes > MAX_PARTS_BYTES:
            raise BufferError("the client takes its answer too slowly")
        self._bytes += len(part)
        self._parts.append(part)
        self.notify()

    def take(self) -> Iterator[bytes]:
        """Take the parts that are there."""
        while self._parts:
            part = self._parts.popleft()
            self._bytes -= len(part)
            yield part


def _nothing() -> None:
    pass


class Runner(Protocol):
    """Decides when the jobs of a request run."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Return when every job is done."""

    def stream(self, job: Job, parts: Parts) -> Iterator[bytes]:
        """Run `job`, and give the parts of its answer as they come."""

    def give_way(self) -> None:
        """Let others go on for a moment, if the caller has held them up for long."""

    def beside(self, function: Callable[[], Result]) -> Result:
        """Return what `function` returns; it may take long, and others go on meanwhile."""


class ThreadRunner:
    """Runs jobs in the thread that brings them, one pass at a time in a worker, of whichever model.

    Two passes at once would only compete for the worker's one core; while one runs, other threads decode and encode.
    """

    def __init__(self) -> None:
        self._core = threading.Lock()  # held by the thread whose forward pass runs

    def run(self, jobs: Sequence[Job]) -> None:
        """Run `jobs` one after the other; one that has waited past its deadline does not run."""
        for job in jobs:
            seconds = job.deadline - time.monotonic()
            if seconds > 0 and self._core.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
                try:
                    run_pass([job])
                finally:
                    self._core.release()
            else:
                job.fail(DeadlineExceeded(TOO_LATE))

    def stream(self, job: Job, parts: Parts) -> Iterator[bytes]:
        """Run `job`, then give the parts that it left: its thread is this one."""
        self.run([job])
        yield from parts.take()

    def give_way(self) -> None:
        """Do nothing: the operating system shares the time out among threads."""

    def beside(self, function: Callable[[], Result]) -> Result:
        """Call `function` in the thread that asks: it holds up nobody else."""
        return function()


_runner: Runner = ThreadRunner()


def use_runner(runner: Runner) -> None:
    """Put `runner` in place for every batcher of this process; done once, before any request."""
    global _runner
    _runner = runner


def give_way() -> None:
    """Call this between the pieces of long work that is not a forward pass, so that others are served meanwhile."""
    _runner.give_way()


def beside(function: Callable[[], Result]) -> Result:
    """Call `function`, which takes long and is no forward pass, and return what it returns; others are served meanwhile."""
    return _runner.beside(function)


class Backlog:
    """What a worker has taken in and not yet answered, over all its models, and its limits: rows, and requests.

    Who holds `lock` may ask, and then `add` or `remove`.
    """

    def __init__(self, max_rows: int) -> None:
        self.lock = threading.Lock()
        self._max_rows = max_rows
        self._rows = self._requests = 0

    @property
    def rows(self) -> int:
        """The rows that are taken in now."""
        return self._rows

    def enter(self, rows: int) -> None:
        """Take in a request of `rows` rows; raise Overloaded if too many wait already. A lone request always enters."""
        with self.lock:
            if not self.has_room(rows):
                raise Overloaded(FULL)
            self.add(rows)

    def leave(self, rows: int) -> None:
        """Let a request of `rows` rows go, answered or not."""
        with self.lock:
            self.remove(rows)

    def has_room(self, rows: int) -> bool:
        """Return True if a request of `rows` rows may enter."""
        return not self._rows or self._rows + rows <= self._max_rows and self._requests < MAX_REQUESTS

    def add(self, rows: int) -> None:
        """Count a request; one that is larger than the limit leaves half of it to others, who run between its passes."""
        self._rows += self._counted(rows)
        self._requests += 1

    def remove(self, rows: int) -> None:
        """Count a request no more."""
        self._rows -= self._counted(rows)
        self._requests -= 1

    def _counted(self, rows: int) -> int:
        return rows if rows <= self._max_rows else self._max_rows // 2


class Batcher:
    """Brings rows to `engine`, in passes of at most `max_batch_rows` rows.

    `is_long` says that a pass takes so long that an event loop should not wait for it. Such a pass may wait `max_delay`
    seconds for more rows, and when it has not come back after `max_seconds` (by default what the worker allows) it is
    given up with its worker, and `blame` told where it was. `observe` is told of every pass: its rows, its seconds, and
    the seconds that each of its jobs had waited; `on_error` of an error of a shared pass that no request is told of.
    """

    def __init__(
        self,
        engine: Callable[[Tensors], Tensors],
        max_batch_rows: int,
        is_long: bool = False,
        observe: Callable[[int, float, Sequence[float]], None] = lambda rows, seconds, waits: None,
        max_delay: float = 0.0,
        max_seconds: float | None = None,
        blame: Callable[[str], None] = lambda text: None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        self.engine = engine
        self.max_batch_rows = max_batch_rows
        self.is_long = is_long
        self.max_delay = max_delay
        self.max_seconds = max_seconds
        self.blame = blame
        self.observe = observe
        self.on_error = on_error

    def __call__(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the engine's outputs for all rows of `tensors`.

        `deadline` is a time of the monotonic clock, in seconds. DeadlineExceeded is raised for rows that still wait
        then; a pass that runs is not interrupted. Otherwise it raises what the engine raises for these rows.
        """
        rows, most = row_count(tensors), self.max_batch_rows
        if rows <= most:
            return self._run([Job(self, tensors, rows, deadline)])[0]
        outputs: list[Tensors] = []
        for first in range(0, rows, most * MAX_JOBS):
            starts = range(first, min(first + most * MAX_JOBS, rows), most)
            pieces = [slice_rows(tensors, slice(start, start + most)) for start in starts]
            outputs += self._run([Job(self, piece, row_count(piece), deadline) for piece in pieces])
        return concatenate(outputs)

    def _run(self, jobs: Sequence[Job]) -> list[Tensors]:
        _runner.run(jobs)
        note_passes(jobs)
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [job.outputs for job in jobs]


def note_passes(jobs: Sequence[Job]) -> None:
    """Add what the passes of `jobs`, which were submitted together, took to the record of the request, if it has one."""
    current = record.get()
    if current is None:
        return
    if len(jobs) == 1 and (ran := jobs[0].ran) is not None:
        current.add_pass(ran[0], ran[1] - jobs[0].submitted, ran[2])
        return
    before = 0.0  # a job waits while those before it run; that is no time in the line
    for job in jobs:
        rows, began, seconds = job.ran or (0, time.monotonic(), 0.0)
        waited = began - job.submitted - before
        if waited < 0.0:
            waited = 0.0
        current.add_pass(rows, waited, seconds)
        before += waited + seconds


def stream(batcher: Batcher, tensors: Tensors, deadline: float, parts: Parts) -> Iterator[bytes | Tensors]:
    """Bring one row to the engine of `batcher`; give the parts of its answer as they come, and at last the outputs.

    Raises as `Batcher.__call__` does.
    """
    job = Job(batcher, tensors, row_count(tensors), deadline)
    yield from _runner.stream(job, parts)
    note_passes([job])
    if job.error is not None:
        raise job.error
    yield job.outputs


def due(waiting: Sequence[Job], now: float) -> tuple[Job | None, float]:
    """Return the first of `waiting` whose pass need not wait for more rows, or None and the time when there will be one."""
    if waiting and waiting[0].submitted + waiting[0].batcher.max_delay <= now:
        return waiting[0], now
    rows: dict[Hashable, int] = {}
    for job in waiting:
        rows[job.key] = rows.get(job.key, 0) + job.rows
    soonest = math.inf
    for job in waiting:
        at = job.submitted + job.batcher.max_delay
        if at <= now or rows[job.key] >= job.batcher.max_batch_rows:
            return job, now
        soonest = min(soonest, at)
    return None, soonest


def take_batch(waiting: list[Job], first: Job | None = None) -> list[Job]:
    """Take from `waiting` the first job, or `first`, and all that fit into one pass with it, in their order."""
    first = waiting[0] if first is None else first
    rows, batch, others = 0, [], []
    for job in waiting:
        if job.key == first.key and rows + job.rows <= first.batcher.max_batch_rows:
            rows += job.rows
            batch.append(job)
        else:
            others.append(job)
    waiting[:] = others
    return batch


def expire(jobs: Iterable[Job]) -> list[Job]:
    """Fail those of `jobs` whose deadline has passed; return the others."""
    now = time.monotonic()
    alive = []
    for job in jobs:
        if job.deadline <= now:
            job.fail(DeadlineExceeded(TOO_LATE))
        else:
            alive.append(job)
    return alive


def run_pass(jobs: list[Job]) -> None:
    """Run `jobs`, which fit together, in one forward pass; if it fails, singly, so that only the culprit fails."""
    batcher, started = jobs[0].batcher, time.monotonic()
    rows = sum(job.rows for job in jobs)
    try:
        outputs = batcher.engine(concatenate([job.tensors for job in jobs]))
        if any(len(array) != rows for array in outputs.values()):
            raise RuntimeError(f"the network answers {rows} rows with another number of rows")
    except Exception as error:
        if len(jobs) == 1:
            _note_pass(jobs, rows, started)
            jobs[0].fail(error)
        else:
            for job in jobs:
                for alive in expire([job]):
                    run_pass([alive])
            if all(job.error is None for job in jobs):
                batcher.on_error(error)
        return
    seconds = _note_pass(jobs, rows, started)
    start = 0
    for job in jobs:
        stop = start + job.rows
        job.outputs = outputs if len(jobs) == 1 else slice_rows(outputs, slice(start, stop))
        job.done = True
        start = stop
    batcher.observe(rows, seconds, [started - job.submitted for job in jobs])


def _note_pass(jobs: Sequence[Job], rows: int, started: float) -> float:
    """Note in `jobs` the pass of `rows` rows that they shared, and return its seconds."""
    seconds = time.monotonic() - started
    ran = rows, started, seconds
    for job in jobs:
        job.ran = ran
    return seconds
