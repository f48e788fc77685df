"""Where a process counts: numbers by key, in a file that all workers read, whose place on the disk is taken beforehand.

The files have the form of the Prometheus client's own, which reads them. That client maps files with holes: on a full
disk the first touch of a page ends the process (SIGBUS). Here a place that cannot be had is an error, once.
"""

import contextlib
import mmap
import os
from array import array
from struct import Struct
from typing import Any

FIRST_BYTES = 2**14  # of a file; it doubles when it is full
_HEADER = 8  # bytes: how many are in use, and as many to fill the word
_USED = Struct("i")
_NEW = _USED.pack(_HEADER)
_WORD = 8  # bytes of a number; each key has two, its value and the time when it was set

Cell = tuple[Any, int]  # a memoryview of numbers, and which of them is the value; the next one is its time


class Cells:
    """The numbers of one file, which is made if it is not there; whoever opens one that is there goes on in it."""

    def __init__(self, path: str) -> None:
        """Raises OSError if there is no room for it."""
        if not os.path.exists(path):
            _make(path)
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map(os.fstat(self._file).st_size)
        (self._used,) = _USED.unpack_from(self._bytes)
        self._places = dict(self._keys())

    def cell(self, key: str) -> Cell:
        """Return where the number of `key` is, 0 if it is new; raise OSError if there is no room for it.

        It stays valid when the file grows.
        """
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = self._add(key.encode())
        return self._numbers, place // _WORD

    def close(self) -> None:
        """Let go of the file; cells that are held stay valid."""
        os.close(self._file)

    def _map(self, size: int) -> None:
        self._size = size
        self._bytes = memoryview(mmap.mmap(self._file, size))
        self._numbers = self._bytes.cast("d")

    def _add(self, key: bytes) -> int:
        padded = key + b" " * (_WORD - (len(key) + _USED.size) % _WORD)
        end = self._used + _USED.size + len(padded) + 2 * _WORD
        size = self._size
        while end > size:
            size *= 2
        if size > self._size:
            _reserve(self._file, self._size, size)
            self._map(size)
        self._bytes[self._used : end] = _USED.pack(len(key)) + padded + bytes(2 * _WORD)
        # Not before: whoever reads the file meanwhile, or goes on in it after this process was killed, sees whole ones.
        self._bytes[: _USED.size] = _USED.pack(end)
        self._used = end
        return end - 2 * _WORD

    def _keys(self) -> list[tuple[str, int]]:
        found, place = [], _HEADER
        while place < self._used:
            (length,) = _USED.unpack_from(self._bytes, place)
            start = place + _USED.size
            number = start + length + _WORD - (length + _USED.size) % _WORD
            found.append((str(self._bytes[start : start + length], "utf-8"), number))
            place = number + 2 * _WORD
        return found


class PrivateCells:
    """Numbers that only this process sees: outside Gunicorn, and where the disk is full."""

    def __init__(self) -> None:
        self._cells: dict[str, Any] = {}

    def cell(self, key: str) -> Cell:
        """Return where the number of `key` is, 0 if it is new."""
        if key not in self._cells:
            self._cells[key] = memoryview(array("d", (0.0, 0.0)))
        return self._cells[key], 0

    def close(self) -> None:
        """Do nothing."""


def reserved_file(path: str, size: int) -> mmap.mmap:
    """Return a mapping of the file at `path`, made of zeros if it is not there; raise OSError if there is no room for it."""
    if not os.path.exists(path):
        _make(path, size, b"")
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def _make(path: str, size: int = FIRST_BYTES, content: bytes = _NEW) -> None:
    """Make a file of `size` bytes that begins with `content`; it is there as a whole or not at all."""
    draft = f"{path}.new"
    file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _reserve(file, 0, size)
        os.pwrite(file, content, 0)
        os.rename(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    finally:
        os.close(file)


def _reserve(file: int, start: int, stop: int) -> None:
    """Take the place of the bytes from `start` to `stop` on the disk; raise OSError if it is not there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, start, stop - start)
    else:  # macOS
        os.pwrite(file, bytes(stop - start), start)
