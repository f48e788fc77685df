"""How many files and connections a process may hold open. Standard library only."""

import errno
import logging
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

RESERVE = 32  # for what is no connection: model files, logs, metrics of models that come
QUIET_SECONDS = 60.0  # between two lines about the same shortage

log = logging.getLogger(__name__)

_SHORT = (errno.EMFILE, errno.ENFILE)


def room_for(connections: int) -> int:
    """Return for how many of `connections` there are descriptors, at least 1; raise the soft limit where that helps.

    What is open already and a reserve are left to others.
    """
    needed = connections + _open_now() + RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return connections
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if most > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, connections - (needed - max(soft, most)))


def is_shortage(error: OSError) -> bool:
    """Return True for the error of a process, or a machine, that has no descriptors left."""
    return error.errno in _SHORT


class Shortage:
    """Says once in a while, and not each time, that connections cannot be accepted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = -QUIET_SECONDS

    def note(self, error: OSError) -> None:
        """Write a line about `error`, unless there has been one within the last minute."""
        if (now := self._clock()) - self._said >= QUIET_SECONDS:
            self._said = now
            log.warning(
                "Connections can only be accepted as others go (%s); raise the limit of open files, ulimit -n.",
                error.strerror,
            )


def _open_now() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0
