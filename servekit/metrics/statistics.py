"""What the statistics of protocols tell of a version, counted by all workers in memory that they share."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from glob import escape, glob
from hashlib import sha256
from mmap import mmap
from pathlib import Path
from struct import Struct
from typing import Any

from servekit.config import MULTIPROCESS_DIR
from servekit.metrics.cells import reserved_file
from servekit.metrics.values import all_values


@dataclass
class Statistics:
    """What the statistics of protocols tell of one version: counts, and sums of seconds; `last` is a time of the clock."""

    requests: float = 0.0
    input: float = 0.0
    output: float = 0.0
    waits: float = 0.0
    joined: float = 0.0  # what passes took, for each of their requests but the first
    failures: float = 0.0
    failed: float = 0.0
    last: float = 0.0
    passes: dict[int, tuple[float, float]] = field(default_factory=dict)  # rows -> passes, and their seconds


class StatisticsMeter:
    """Counts what `Statistics` tells, in memory that all workers read; there is one a process and version.

    A value of Prometheus for each sum would cost a request twice as much. Who counts holds the lock of all values, so that a
    request takes it once for all that is counted of it.
    """

    def __init__(self, model: str, version: str) -> None:
        self._memory = _statistics_memory(model, version)
        self._numbers: Any = memoryview(self._memory).cast("d")

    def observe_request(self, input_seconds: float, output_seconds: float) -> None:
        """Count a request that was answered; reading it and writing its answer took so long."""
        numbers = self._numbers
        numbers[_REQUESTS] += 1.0
        numbers[_INPUT] += input_seconds
        numbers[_OUTPUT] += output_seconds

    def observe_failure(self, seconds: float) -> None:
        """Count a request that got no answer, after so many seconds."""
        self._numbers[_FAILURES] += 1.0
        self._numbers[_FAILED] += seconds

    def observe_pass(self, row_count: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a pass, whose requests had waited for `waits` seconds."""
        numbers = self._numbers
        place = _LAST + 1 + 2 * (row_count if row_count < _MOST_ROWS else _MOST_ROWS)
        numbers[place] += 1.0
        numbers[place + 1] += seconds
        if len(waits) == 1:
            numbers[_WAITS] += waits[0]
        else:
            numbers[_WAITS] += sum(waits)
            numbers[_JOINED] += seconds * (len(waits) - 1)
        numbers[_LAST] = time.time()

    def content(self) -> bytes:
        """Return what has been counted, as it stands in memory."""
        return bytes(self._memory)


# The numbers of `Statistics`, in their order.
_REQUESTS, _INPUT, _OUTPUT, _WAITS, _JOINED, _FAILURES, _FAILED, _LAST = range(8)
_SUMS = Struct("8d")
_PASSES = Struct("2d")  # passes of so many rows, and their seconds
_MOST_ROWS = 1024  # larger passes are counted as of so many
_STATISTICS_SIZE = _SUMS.size + _PASSES.size * (_MOST_ROWS + 1)

statistics_meter = cache(StatisticsMeter)


def statistics(model: str, version: str) -> Statistics:
    """Return the sums over all workers, also over those that have ended."""
    if MULTIPROCESS_DIR in os.environ:
        contents = [Path(name).read_bytes() for name in glob(_statistics_file(model, version, "*"))]
    else:
        contents = [statistics_meter(model, version).content()]
    total = Statistics()
    for content in contents:
        if len(content) == _STATISTICS_SIZE:  # else it is just being made
            _add(total, content)
    return total


def _add(total: Statistics, content: bytes) -> None:
    one = Statistics(*_SUMS.unpack_from(content))
    for name in ("requests", "input", "output", "waits", "joined", "failures", "failed"):
        setattr(total, name, getattr(total, name) + getattr(one, name))
    total.last = max(total.last, one.last)
    for row_count, (passes, seconds) in enumerate(_PASSES.iter_unpack(content[_SUMS.size :])):
        if passes:
            before = total.passes.get(row_count, (0.0, 0.0))
            total.passes[row_count] = before[0] + passes, before[1] + seconds


def _statistics_file(model: str, version: str, owner: str) -> str:
    folder = escape(os.environ[MULTIPROCESS_DIR]) if owner == "*" else os.environ[MULTIPROCESS_DIR]
    name = sha256(f"{model}/{version}".encode()).hexdigest()[:32]  # names of models may be longer than those of files
    return os.path.join(folder, f"statistics_{name}_{owner}.bin")


def _statistics_memory(model: str, version: str) -> mmap | bytearray:
    """Return where this process counts: in a file if workers share a folder. Who comes after it goes on in it."""
    if MULTIPROCESS_DIR in os.environ:
        try:
            return reserved_file(_statistics_file(model, version, all_values.owner()), _STATISTICS_SIZE)
        except OSError as error:
            all_values.say_private(error)
    return bytearray(_STATISTICS_SIZE)
