"""The values of the Prometheus client's metrics, and whose they are: of a worker's slot, of the master, of a process.

A worker counts in the files of its slot, a small number that the master gives it, and the next worker in that slot goes
on in them: what a worker has counted is not lost with it, and there are no more files than workers that ever lived at
once. A process that nobody gave a slot, which a model's code may have forked, has files of its own.

Imported before any metric is made: it puts `Value` in the place of the Prometheus client's own class.
"""

import logging
import os
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from glob import escape, glob
from typing import Any

from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.mmap_dict import mmap_key

from servekit.config import MULTIPROCESS_DIR
from servekit.metrics.cells import Cell, Cells, PrivateCells

log = logging.getLogger("servekit")

MASTER = "master"

Update = Callable[[float], None]


class Values:
    """All values of this process, and the files that they are in."""

    def __init__(self) -> None:
        self.name = ""  # of the files: a slot, the master; "" until one is given: the process
        self._made: list[Value | Together] = []
        self._rooms: dict[str, Cells | PrivateCells] = {}
        self._is_shared = True
        # False while the metrics are declared: whose the process is to be, and in which folder, is not known yet.
        self.finds_places = False
        os.register_at_fork(after_in_child=self._begin_anew)

    def be(self, name: str) -> None:
        """Count as `name` from now on, in a process that has counted nothing so far or goes on elsewhere."""
        with lock():
            self._let_go()
            self.name = name

    def owner(self) -> str:
        """Return whose files this process writes."""
        return self.name or str(os.getpid())

    def keep(self, together: "Together") -> None:
        """Keep `together`, which finds its places when it is first asked."""
        with lock():
            self._made.append(together)

    def add(self, value: "Value") -> None:
        """Keep `value`, which is new, and find its place, so that others see it before it counts."""
        with lock():
            self._made.append(value)
            if self.finds_places:
                self.place(value)

    def place(self, value: "Value") -> None:
        """Find the place of `value` in the files of this process; the lock is held."""
        value.numbers, value.at = self._cell(value.room, value.key)

    def place_together(self, found: Sequence["Value"]) -> Any:
        """Find places for values of one kind in one memory, and return that; the lock is held."""
        numbers: Any = memoryview(array("d", bytes(8 * len(found))))  # which only this process sees
        places = list(range(len(found)))
        folder = os.environ.get(MULTIPROCESS_DIR)
        if folder:
            try:
                room = self._room(found[0].room, folder)
                places = [room.cell(value.key)[1] for value in found]
                numbers, _ = room.cell(found[0].key)  # now: what a file is mapped to before it grows ends too early
            except OSError as error:
                self.say_private(error)
                places = list(range(len(found)))
        for value, place in zip(found, places, strict=True):
            value.numbers, value.at = numbers, place
        return numbers

    def say_private(self, error: OSError) -> None:
        """Say once that `error` keeps what this process counts from the others."""
        if self._is_shared:
            self._is_shared = False
            folder = os.environ.get(MULTIPROCESS_DIR)
            log.error("Some of what this worker counts is missing from /metrics: %s; make room in %s.", error.strerror, folder)

    def _cell(self, room: str, key: str) -> Cell:
        folder = os.environ.get(MULTIPROCESS_DIR)
        if folder:
            try:
                return self._room(room, folder).cell(key)
            except OSError as error:
                self.say_private(error)
        return self._rooms.setdefault(f"private {room}", PrivateCells()).cell(key)

    def _room(self, room: str, folder: str) -> Cells | PrivateCells:
        if room not in self._rooms:
            self._rooms[room] = Cells(os.path.join(folder, f"{room}_{self.owner()}.db"))
        return self._rooms[room]

    def _let_go(self) -> None:
        for room in self._rooms.values():
            room.close()
        self._rooms = {}
        for value in self._made:
            value.numbers = None

    def _begin_anew(self) -> None:
        """In a process that was forked: leave the files to the other one."""
        global _lock
        _lock = threading.Lock()  # another thread may have held it
        self.name = ""
        self._let_go()


_lock = threading.Lock()  # of all values: one thread counts at a time


def lock() -> threading.Lock:
    """Return what is held while values are written."""
    return _lock


class Value:
    """A number that the Prometheus client counts, sets and reads; `numbers` is None until this process has used it."""

    __slots__ = ("at", "key", "numbers", "room")
    _multiprocess = True

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self.room = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
        self.key: str = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self.numbers: Any = None
        self.at = 0
        all_values.add(self)

    def inc(self, amount: float) -> None:
        """Add `amount`."""
        with _lock:
            try:
                self.numbers[self.at] += amount
            except TypeError:
                all_values.place(self)
                self.numbers[self.at] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Be `value`, as of `timestamp`."""
        with _lock:
            if self.numbers is None:
                all_values.place(self)
            self.numbers[self.at], self.numbers[self.at + 1] = value, timestamp or 0.0

    def get(self) -> float:
        """Return the number of this process and those whose files it goes on with."""
        with _lock:
            if self.numbers is None:
                all_values.place(self)
            return float(self.numbers[self.at])

    def set_exemplar(self, exemplar: Any) -> None:
        """Keep no exemplar: files have no place for one."""

    def get_exemplar(self) -> None:
        """Return no exemplar."""


all_values = Values()
values.ValueClass = Value


def adder(counter: Counter | Gauge) -> Update:
    """Return what adds to one series; the caller holds `lock`, which costs more than all that is done under it."""
    value: Value = counter._value

    def add(amount: float) -> None:
        if value.numbers is None:  # the first time in this process
            all_values.place(value)
        value.numbers[value.at] += amount

    return add


class Together:
    """Series of histograms that are observed at once; there is one for the same ones in a process.

    Who counts in them does it in place, under `lock`: a call for each would cost more than the counting. `numbers` is
    None until this process has used it; `places` says of each series where its buckets and at last its sum are.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self._values: list[list[Value]] = [[*each._buckets, each._sum] for each in histograms]
        self.numbers: Any = None
        self.places: list[list[int]] = [[] for _ in histograms]
        all_values.keep(self)

    def find(self) -> Any:
        """Find the places, and return the numbers; the lock is held."""
        self.numbers = all_values.place_together([value for series in self._values for value in series])
        for places, series in zip(self.places, self._values, strict=True):
            places[:] = [value.at for value in series]
        return self.numbers


def answer_observer(count: Counter, seconds: Histogram, in_flight: Gauge) -> Callable[[float, int], None]:
    """Return what counts an answer and its seconds, and takes requests from those in flight, under one lock."""
    counter, gauge, total = count._value, in_flight._value, seconds._sum
    bounds, buckets = seconds._upper_bounds, seconds._buckets
    always = counter, gauge, total

    def observe(amount: float, landed: int) -> None:
        bucket = buckets[bisect_left(bounds, amount)]
        with _lock:
            if bucket.numbers is None or counter.numbers is None:  # the first time in this process
                for value in (bucket, *always):
                    all_values.place(value)
            counter.numbers[counter.at] += 1.0
            bucket.numbers[bucket.at] += 1.0
            total.numbers[total.at] += amount
            if landed:
                gauge.numbers[gauge.at] -= landed

    return observe


def use_slot(slot: int | None) -> None:
    """Count in the files of this slot, in a worker that has just been forked; None: in those of the master."""
    all_values.be(MASTER if slot is None else slot_name(slot))


def slot_name(slot: int) -> str:
    """Return how the files of a slot are called."""
    return f"slot{slot}"


def mark_worker_dead(owner: int | str) -> None:
    """Forget the gauges of a worker that has ended, by its slot's name or its process; what it counted stays counted."""
    folder = os.environ.get(MULTIPROCESS_DIR)
    for path in glob(os.path.join(escape(folder), f"gauge_live*_{owner}.db")) if folder else ():
        os.unlink(path)
