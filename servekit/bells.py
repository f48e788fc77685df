"""Bells that processes wake one another with: made before a fork, one for each process that sleeps by it."""

import contextlib
import os
import select
import sys
import weakref

_RING = (1).to_bytes(8, sys.byteorder)  # an eventfd takes eight bytes


class Bells:
    """Some bells, known by number."""

    def __init__(self, count: int) -> None:
        self._bells = [_bell() for _ in range(count)]
        weakref.finalize(self, _silence, self._bells)

    def ring(self) -> None:
        """Wake whoever sleeps by one of them, or is about to."""
        for _, end in self._bells:
            with contextlib.suppress(BlockingIOError):  # it is full of wake-ups
                os.write(end, _RING)

    def wait(self, number: int, seconds: float | None) -> None:
        """Block until the bell `number` rings, or for that long; it rings on until `hush`."""
        poll = select.poll()
        poll.register(self._bells[number][0], select.POLLIN)
        poll.poll(None if seconds is None else seconds * 1000)

    def hush(self, number: int) -> None:
        """Let the bell `number` ring no more, until the next time."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._bells[number][0], 4096)


def _bell() -> tuple[int, int]:
    """Return two descriptors: what is written to the second wakes who waits for the first."""
    if hasattr(os, "eventfd"):
        bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return bell, bell
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _silence(bells: list[tuple[int, int]]) -> None:
    for descriptor in {end for bell in bells for end in bell}:
        os.close(descriptor)
