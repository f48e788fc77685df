"""How many connections each worker holds, in memory that all of them share: new ones go to whoever holds the fewest."""

import mmap

LIVE_SECONDS = 1.5  # a worker that has not written for so long does not count: it hangs, or is gone
SLOTS_PER_WORKER = 4  # room for those that start while others stop; two that meet in a slot balance less well

_SIZE = 8  # bytes of a number


class Board:
    """Made by the master; each worker writes into a slot of its own."""

    def __init__(self, workers: int) -> None:
        self._slots = SLOTS_PER_WORKER * workers
        memory = memoryview(mmap.mmap(-1, 2 * _SIZE * self._slots))
        self._counts = memory[: _SIZE * self._slots].cast("q")
        self._seen = memory[_SIZE * self._slots :].cast("d")
        self._slot = 0

    def join(self, age: int) -> None:
        """Take a slot; `age` is Gunicorn's number of this worker."""
        self._slot = age % self._slots

    def note(self, connections: int, now: float) -> None:
        """Write how many connections this worker holds at `now`, a time of the monotonic clock."""
        self._counts[self._slot] = connections
        self._seen[self._slot] = now

    def leave(self) -> None:
        """Count no more."""
        self._seen[self._slot] = 0.0

    def is_least(self, connections: int, now: float) -> bool:
        """Return True if no other worker that lives holds fewer than `connections`.

        A difference of an eighth is none: where there are hundreds, taking each to its place would keep them waiting.
        """
        for seen, count in zip(self._seen, self._counts, strict=True):
            if count + count // 8 < connections and now - seen < LIVE_SECONDS:
                return False
        return True
