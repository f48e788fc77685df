"""Counts by name, each until a time of its own, in memory that all workers share: made by the master before it forks.

Standard library only. The lock is the kernel's (fcntl): it is free again when a worker that holds it is killed.
"""

import contextlib
import fcntl
import hashlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator
from struct import Struct

SLOTS = 4096  # names that are counted at a time; beyond them the one that ends first gives way

_SLOT = Struct("<16sqd")  # a digest of the name, the count, and the time of the clock, in seconds, at which it ends
_NONE = bytes(16)


class Tally:
    """Each method does its work before another one, in whichever process, begins."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = slots
        self._file = _memory_file(_SLOT.size * slots)
        weakref.finalize(self, os.close, self._file)
        self._memory = mmap.mmap(self._file, _SLOT.size * slots)
        self._thread = threading.Lock()  # the kernel's knows processes only
        self._places: dict[str, tuple[bytes, int]] = {}

    def add(self, name: str, amount: int, now: float, seconds: float) -> int:
        """Return the count of `name` with `amount` added; a count that has ended begins anew, for so many seconds."""
        with self._locked():
            digest, place = self._place(name, now)
            found, count, end = _SLOT.unpack_from(self._memory, place)
            # An end that is further away than it can be was written before the clock was put back.
            if found != digest or not now < end <= now + seconds:
                count, end = 0, now + seconds
            _SLOT.pack_into(self._memory, place, digest, count + amount, end)
            return int(count + amount)

    def read(self, name: str, now: float) -> tuple[int, float]:
        """Return the count of `name` and the time at which it ends; 0 and `now` for one that has ended."""
        with self._locked():
            digest, place = self._place(name, now)
            found, count, end = _SLOT.unpack_from(self._memory, place)
            return (int(count), float(end)) if found == digest and now < end else (0, now)

    def clear(self, name: str) -> None:
        """Forget the count of `name`."""
        with self._locked():
            digest, place = self._place(name, 0.0)
            if _SLOT.unpack_from(self._memory, place)[0] == digest:
                _SLOT.pack_into(self._memory, place, _NONE, 0, 0.0)

    def reset(self) -> int:
        """Forget all counts; return how many there were."""
        with self._locked():
            count = sum(found != _NONE for found, _, _ in _SLOT.iter_unpack(self._memory[:]))
            self._memory[:] = bytes(len(self._memory))
            return count

    def _place(self, name: str, now: float) -> tuple[bytes, int]:
        """Return the digest of `name` and where its count is, or is to be."""
        known = self._places.get(name)
        if known and self._memory[known[1] : known[1] + 16] == known[0]:
            return known
        digest = hashlib.sha256(name.encode()).digest()[:16]
        slots = [(found, end) for found, _, end in _SLOT.iter_unpack(self._memory[:])]
        mine = [number for number, (found, _) in enumerate(slots) if found == digest]
        number = mine[0] if mine else min(range(self._slots), key=lambda each: slots[each][1])
        if len(self._places) >= self._slots:
            self._places.clear()
        self._places[name] = digest, number * _SLOT.size
        return self._places[name]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._thread:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)


def _memory_file(size: int) -> int:
    """Return the descriptor of a file of `size` zeros that has no name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("servekit-tally")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.write(descriptor, bytes(size))
    return descriptor
