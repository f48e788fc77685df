"""The requests that have arrived at a worker and wait for its loop: all is read at once, and run as there is time.

What is not read cannot be refused, so a worker that ran each request as it read it would let those behind it wait in
the system's buffers, unseen and uncounted. Here reading goes first; when more waits than can be run in time, the next
request is run at once instead, marked as one too many: it then costs a fraction of a prediction (servekit/shedding.py).
"""

import time
from collections import deque
from collections.abc import Callable

from servekit.batcher import MAX_REQUESTS
from servekit.connection import Connection
from servekit.http1 import Request
from servekit.line import CALM_SECONDS, SHARE, SHORT_SECONDS

FEW = 16  # that are run in a slice or two, whatever the last ones took
SLICE_SECONDS = 0.005  # of running requests, before the loop looks again at what has arrived

_SLICES = 0.9  # how much of what is known of the speed is kept at each slice

Start = Callable[[Connection, Request, float, bool], None]


class Intake:
    """The waiting requests of one event loop, the oldest first. Everything is called in the loop's thread."""

    def __init__(self, patience: float, start: Start, clock: Callable[[], float] = time.monotonic) -> None:
        """A request has `patience` seconds to be answered in; `start` runs one that arrived at a time of the clock.

        Its last argument is True for a request that is one too many.
        """
        self._patience, self._start, self._clock = patience, start, clock
        self._waiting: deque[tuple[Connection, Request, float]] = deque()
        self._ran_at = self._seconds = self._ran = 0.0  # the end of the last slice; seconds and requests of the last few
        self._was_full = False  # requests were left at the end of the last slice
        self._refused_at = -CALM_SECONDS

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, connection: Connection, request: Request, arrived: float) -> None:
        """Take a request; one without a body, which asks for no prediction but perhaps for the server's health, runs now."""
        if not request.body:
            self._start(connection, request, arrived, False)
        elif self._is_full():
            self._refused_at = self._clock()
            self._start(connection, request, arrived, True)
        else:
            self._waiting.append((connection, request, arrived))

    def run(self) -> None:
        """Run what waits for SLICE_SECONDS, at least one request, and learn how fast they go."""
        if not self._waiting:
            self._was_full = False
            return
        until, count = self._clock() + SLICE_SECONDS, 0
        while self._waiting:
            connection, request, arrived = self._waiting.popleft()
            if not connection.is_gone:
                self._start(connection, request, arrived, False)
                count += 1
            if self._clock() > until:
                break
        self._learn(count)

    def _learn(self, count: int) -> None:
        now = self._clock()
        if self._was_full:
            self._seconds = _SLICES * self._seconds + now - self._ran_at
            self._ran = _SLICES * self._ran + count
        else:
            self._seconds *= _SLICES  # a jam is forgotten while there is none
        self._was_full, self._ran_at = bool(self._waiting), now

    def _is_full(self) -> bool:
        waiting = len(self._waiting)
        if waiting < FEW or waiting >= MAX_REQUESTS:
            return waiting >= MAX_REQUESTS
        if not self._ran:
            return False
        is_calm = self._clock() - self._refused_at > CALM_SECONDS
        limit = SHARE * self._patience
        return waiting * self._seconds / self._ran > (limit if is_calm else min(limit, SHORT_SECONDS))
