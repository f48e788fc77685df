"""Batching by turn: the requests of one turn of an event loop run as greenlets and share their forward passes.

A request runs until it brings jobs to its batcher; there it is parked. When every request of the turn is parked or
answered, the jobs run together, and each request is resumed with its own rows. No timer, and no wait when idle.
Models whose passes are long compute in one thread beside the loop, which is woken when a pass is done.
"""

import contextvars
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from greenlet import getcurrent, greenlet

from servekit.batcher import FULL, Batcher, Job, Parts, Result, due, expire, run_pass, take_batch
from servekit.errors import ClientLeft, Overloaded
from servekit.metrics import observe_shed

MAX_FREE = 256  # greenlets kept for later requests; each holds a block of 16 KB for its Python frames
MAX_ERRANDS = 64  # threads for what takes long and is no pass: changes of the models
FILLING_SECONDS = 0.02  # that rows wait for those of requests that have arrived, and have not been run yet
HOLD_SECONDS = 0.005  # a request that has held the loop for so long gives way where it can
LEFT = "The client has left."

log = logging.getLogger(__name__)


class RequestGreenlet(greenlet):
    """A request that runs: a greenlet, and how many of its jobs are still to be done.

    When a request has ended its greenlet takes the next one: a new one would cost the system's memory manager more than
    all that it does.
    """

    pending = 0
    waits = False  # for jobs, and not for its client
    is_abandoned = False  # its client has gone


class Turns:
    """The requests of one event loop; a `servekit.batcher.Runner`. Everything is called in the loop's own thread."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` makes the loop call `turn` soon; it is called from the thread of the long passes."""
        self._loop = getcurrent()
        self._waiting: list[Job] = []  # for the next pass of this turn
        self._gave_way: deque[RequestGreenlet] = deque()
        self._free: list[RequestGreenlet] = []  # greenlets whose requests have ended
        self._thread = LongPasses(wake)
        self._wake = wake
        self._errands: queue.SimpleQueue[RequestGreenlet] = queue.SimpleQueue()  # requests that something has come for
        self._errands_now = 0
        self._abandoned: list[Job] = []  # that have failed for it, and whose requests do not know yet
        self._resumed = 0.0

    def start(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function` as a request, until it waits for the first time."""
        if self._free:
            request = self._free.pop()
        else:
            request = RequestGreenlet(self._serve, self._loop)
            request.switch()  # to where it takes a request: what came with this switch would live as long as it
        self._resumed = time.monotonic()
        request.is_abandoned = False
        request.switch(function, arguments)

    def _serve(self) -> None:
        """Run one request after the other; each comes with the switch to this greenlet."""
        me = getcurrent()
        while True:
            function, arguments = self._loop.switch()
            try:
                function(*arguments)
            except Exception:  # it must not end the loop; what can be answered was answered within `function`
                log.exception("A request ended unexpectedly")
            function, arguments = _nothing, ()  # keep nothing of it alive
            if len(self._free) >= MAX_FREE:
                return
            self._free.append(me)

    def park(self) -> None:
        """Wait, in a request, until the loop calls `resume` with it."""
        self._loop.switch()

    def resume(self, request: greenlet) -> None:
        """Go on with a parked request until it waits again or ends."""
        self._resumed = time.monotonic()
        request.switch()

    def abandon(self, request: greenlet) -> None:
        """Note that the client of a parked request has gone: what still waits of it will not run."""
        if not isinstance(request, RequestGreenlet):
            return
        request.is_abandoned = True
        mine = [job for job in self._waiting if job.owner is request]
        self._waiting = [job for job in self._waiting if job.owner is not request]
        mine += self._thread.withdraw(request)
        for job in mine:
            job.fail(ClientLeft(LEFT))
        self._abandoned += mine

    def run(self, jobs: Sequence[Job]) -> None:
        """Wait, in a request, until `jobs` are done; outside of requests run them at once."""
        request = getcurrent()
        if not isinstance(request, RequestGreenlet):
            for job in jobs:
                run_pass([job])
            return
        self._submit(request, jobs)
        while request.pending:
            self._wait(request)

    def stream(self, job: Job, parts: Parts) -> Iterator[bytes]:
        """Give, in a request, the parts of the answer of `job` as they come, until it is done."""
        request = getcurrent()
        if not isinstance(request, RequestGreenlet):
            run_pass([job])
            yield from parts.take()
            return

        def notify() -> None:
            self._errands.put(request)
            self._wake()

        parts.notify = notify
        self._submit(request, [job])
        try:
            while request.pending:
                self._wait(request)
                yield from parts.take()
            yield from parts.take()
        finally:  # the client may be gone, and the greenlet about to serve another
            parts.notify = _nothing
            job.owner, request.pending = None, 0

    def _submit(self, request: RequestGreenlet, jobs: Sequence[Job]) -> None:
        if request.is_abandoned:
            raise ClientLeft(LEFT)
        request.pending = len(jobs)
        for job in jobs:
            job.owner = request
        if jobs[0].batcher.is_long:
            self._thread.submit(jobs)
        else:
            self._waiting += jobs

    def _wait(self, request: RequestGreenlet) -> None:
        request.waits = True
        self._loop.switch()
        request.waits = False

    def give_way(self) -> None:
        """Let the loop serve others before this request goes on, if it has held the loop for long."""
        request = getcurrent()
        if isinstance(request, RequestGreenlet) and time.monotonic() - self._resumed > HOLD_SECONDS:
            self._gave_way.append(request)
            self._loop.switch()
            if request.is_abandoned:
                raise ClientLeft(LEFT)

    def beside(self, function: Callable[[], Result]) -> Result:
        """Wait, in a request, for `function` to be done in a thread of its own; outside of requests call it at once.

        Raises Overloaded when there are too many such threads.
        """
        request = getcurrent()
        if not isinstance(request, RequestGreenlet):
            return function()
        if self._errands_now >= MAX_ERRANDS:
            observe_shed("large")
            raise Overloaded(FULL)
        future: Future[Result] = Future()
        context = contextvars.copy_context()  # its log lines are the request's

        def run(future: Future[Result]) -> None:
            try:
                future.set_result(context.run(function))
            except BaseException as error:  # noqa: B036 - raised again in the request
                future.set_exception(error)
            finally:
                del future  # as below
            self._errands.put(request)
            self._wake()

        self._errands_now += 1
        try:
            threading.Thread(target=run, args=(future,), name="servekit-errand", daemon=True).start()
            while not future.done():
                self._wait(request)
        finally:
            self._errands_now -= 1
        try:
            return future.result()
        finally:
            del future  # its error knows this frame: together they would keep what was read until garbage is collected

    @property
    def has_work(self) -> bool:
        """Return True if the loop should not block before its next turn."""
        return bool(self._waiting or self._gave_way or self._abandoned)

    @property
    def next_deadline(self) -> float:
        """The earliest time at which a job in line for the thread is late; infinity if there is none."""
        return self._thread.next_deadline()

    @property
    def long_pass(self) -> tuple[float, float | None]:
        """When the pass in the thread began, infinity if none runs, and how many seconds its model gives it."""
        return self._thread.began, self._thread.max_seconds

    def blame(self, text: str) -> None:
        """Tell the model whose pass runs in the thread, if one does, that the worker ends for it, and where it was."""
        if (batcher := self._thread.batcher) is not None:
            batcher.blame(text)

    def turn(self, more_come: bool = False) -> None:
        """Finish what the thread has done, run one pass of what waits here, and go on with who gave way.

        `more_come`: there are requests about to run whose rows could share the pass, so it waits until it is worth it.
        """
        while not self._errands.empty():
            request = self._errands.get()
            if request.waits:
                self.resume(request)
        abandoned, self._abandoned = self._abandoned, []
        self._settle(abandoned)
        self._settle(self._thread.take_done())
        self._settle(self._thread.expire())
        if self._waiting and not (more_come and self._can_wait()):
            alive = expire(self._waiting)
            late, self._waiting = [job for job in self._waiting if job.done], alive
            self._settle(late)
            if alive:
                batch = take_batch(self._waiting)
                run_pass(batch)
                self._settle(batch)
        if self._gave_way:  # one: each has long work to do
            self.resume(self._gave_way.popleft())

    def _can_wait(self) -> bool:
        """Return True if the next pass is not full, and nobody has waited long for it."""
        first = self._waiting[0]
        has_room = sum(job.rows for job in self._waiting) < first.batcher.max_batch_rows
        return has_room and time.monotonic() - first.submitted < FILLING_SECONDS

    def _settle(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            request = job.owner
            if request is not None:
                request.pending -= 1
                if not request.pending and request.waits:
                    self.resume(request)


class LongPasses:
    """One thread that runs the passes of slow models, one after the other; it is started when it is first needed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._done: queue.SimpleQueue[list[Job]] = queue.SimpleQueue()
        self._is_started = False
        self.began = math.inf  # the pass that runs
        self.max_seconds: float | None = None  # that its model gives it
        self.batcher: Batcher | None = None  # of it

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs to the end of the line."""
        with self._changed:
            self._waiting += jobs
            self._changed.notify()
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=self._work, name="servekit-passes", daemon=True).start()

    def take_done(self) -> list[Job]:
        """Return the jobs that are done since the last call."""
        done: list[Job] = []
        while not self._done.empty():
            done += self._done.get()
        return done

    def expire(self) -> list[Job]:
        """Fail the jobs in line whose deadline has passed, and return them; a pass that runs is not interrupted."""
        if not self._waiting:
            return []
        with self._changed:
            everyone = self._waiting
            self._waiting = expire(everyone)
            return [job for job in everyone if job.done]

    def withdraw(self, owner: greenlet) -> list[Job]:
        """Take the jobs of `owner` out of the line, and return them; a pass that runs is not interrupted."""
        if not self._waiting:
            return []
        with self._changed:
            everyone = self._waiting
            self._waiting = [job for job in everyone if job.owner is not owner]
        return [job for job in everyone if job.owner is owner]

    def next_deadline(self) -> float:
        """Return the earliest deadline of a job in line, or infinity."""
        if not self._waiting:
            return math.inf
        with self._changed:
            return min((job.deadline for job in self._waiting), default=math.inf)

    def _work(self) -> None:
        while True:
            with self._changed:
                batch = self._next()
            if alive := expire(batch):
                self._run(alive)
            self._done.put(batch)
            del batch, alive  # they hold the model, which may be about to go
            self._wake()

    def _next(self) -> list[Job]:
        """Wait for jobs, and for more where a model wants to, and take those of the next pass."""
        while True:
            now = time.monotonic()
            first, until = due(self._waiting, now)
            if first is not None:
                return take_batch(self._waiting, first)
            self._changed.wait(None if until == math.inf else until - now)

    def _run(self, batch: list[Job]) -> None:
        self.batcher = batch[0].batcher
        self.began, self.max_seconds = time.monotonic(), self.batcher.max_seconds
        try:
            run_pass(batch)
        except BaseException as error:  # noqa: B036 - raised again in the requests, where it does what it would do in the loop
            for job in batch:
                if not job.done:
                    job.fail(error)
        finally:
            self.began, self.batcher = math.inf, None


def _nothing() -> None:
    pass
