"""The way into the engine: one forward pass at a time, none larger than the model allows, none past its deadline.

A worker's threads take turns, so that its forward passes never compete for its one core; while one runs, the others
decode and encode.
"""

import threading
import time
from collections.abc import Callable

from servekit.errors import DeadlineExceeded
from servekit.tensors import Tensors, concatenate, row_count, slice_rows


class Batcher:
    """Runs `engine` over requests of any number of rows, in passes of at most `max_batch_rows` rows."""

    def __init__(self, engine: Callable[[Tensors], Tensors], max_batch_rows: int) -> None:
        self._engine = engine
        self._max_batch_rows = max_batch_rows
        self._turn = threading.Lock()

    def __call__(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the engine's outputs for all rows of `tensors`.

        `deadline` is a time of the monotonic clock, in seconds. It is checked where the request waits for its turn,
        before each pass: DeadlineExceeded is raised then, and a pass that runs is not interrupted.
        """
        starts = range(0, row_count(tensors), self._max_batch_rows)
        return concatenate(
            [self._run(slice_rows(tensors, slice(start, start + self._max_batch_rows)), deadline) for start in starts]
        )

    def _run(self, tensors: Tensors, deadline: float) -> Tensors:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not self._turn.acquire(timeout=min(remaining, threading.TIMEOUT_MAX)):
            raise DeadlineExceeded("The server was too busy to answer before the deadline; try again later.")
        try:
            return self._engine(tensors)
        finally:
            self._turn.release()
