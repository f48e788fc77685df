"""The way into the engine: one forward pass at a time, none larger than the model allows, none past its deadline.

The threads of a worker run one pass at a time, of whichever model, because their passes would only compete for its one
core; while one runs, the others decode and encode.
"""

import threading
import time
from collections.abc import Callable

from servekit.errors import DeadlineExceeded
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

TOO_LATE = "The server was too busy to answer before the deadline; try again later."


_core = threading.Lock()  # held by the thread whose forward pass runs


def remaining(deadline: float) -> float:
    """Return the seconds until `deadline`, a time of the monotonic clock; raise DeadlineExceeded if there are none."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise DeadlineExceeded(TOO_LATE)
    return seconds


class Batcher:
    """Runs `engine` over requests of any number of rows, in passes of at most `max_batch_rows` rows."""

    def __init__(self, engine: Callable[[Tensors], Tensors], max_batch_rows: int) -> None:
        self._engine = engine
        self._max_batch_rows = max_batch_rows

    def __call__(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the engine's outputs for all rows of `tensors`.

        `deadline` is a time of the monotonic clock, in seconds. It is checked where the request waits for its turn,
        before each pass; DeadlineExceeded is raised then. A pass that runs is not interrupted.
        """
        starts = range(0, row_count(tensors), self._max_batch_rows)
        return concatenate(
            [self._run(slice_rows(tensors, slice(start, start + self._max_batch_rows)), deadline) for start in starts]
        )

    def _run(self, tensors: Tensors, deadline: float) -> Tensors:
        if not _core.acquire(timeout=min(remaining(deadline), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded(TOO_LATE)
        try:
            return self._engine(tensors)
        finally:
            _core.release()
