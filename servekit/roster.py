"""Which workers Gunicorn's master has: the slot of each, in which it counts, and why those that ended did.

A worker that ends itself says why, in memory that the master reads; what else ends it the master sees by its exit
status. It does not see that of a worker that ends while others are being looked at; that is taken for a kill.
"""

import contextlib
import mmap
import os
import signal
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from servekit.metrics import RESTART_REASONS, mark_worker_dead, observe_restart, slot_name, use_slot

MOST_SLOTS = mmap.PAGESIZE  # of workers at once that can say why they end, a byte for each

_STOPS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


_words: mmap.mmap | None = None  # by slot: 1 and more for the reasons in their order; made by the master
_mine: int | None = None  # the slot of this process, if it is a worker


def say_why(reason: str) -> None:
    """Note, in a worker that is about to end itself, why; `reason` is one of RESTART_REASONS."""
    if _words is not None and _mine is not None and _mine < MOST_SLOTS:
        _words[_mine] = 1 + RESTART_REASONS.index(reason)


class Roster:
    """The workers of `server`; made in the master before it forks."""

    def __init__(self, server: Arbiter) -> None:
        global _words
        _words = mmap.mmap(-1, MOST_SLOTS)
        use_slot(None)
        for reason in RESTART_REASONS:  # a rate cannot see the first count of a series that comes with it
            observe_restart(reason, 0)
        self._slots: dict[int, Worker] = {}
        self._told: set[Worker] = set()  # to stop, so that their end is no surprise
        self._ends: dict[Worker, Any] = {}
        self._kill, self._reap = server.kill_worker, server.reap_workers
        server.kill_worker, server.reap_workers = self._note_and_kill, self._look_and_reap

    def admit(self, worker: Worker) -> None:
        """Give `worker`, which is about to be forked, the lowest free slot."""
        # One that could not be forked never ends: its slot, and the file of its heartbeat, would be held for ever.
        self._slots = {slot: each for slot, each in self._slots.items() if isinstance(each.pid, int)}
        slot = 0
        while slot in self._slots:
            slot += 1
        self._slots[slot] = worker
        _said(slot)  # what one before it may have said too late

    def begin(self, worker: Worker) -> None:
        """Count in the slot of `worker` from now on, if it has one; called in its process."""
        global _mine
        _mine = self.slot_of(worker)
        if _mine is not None:
            use_slot(_mine)

    def dismiss(self, worker: Worker) -> None:
        """Free the slot of `worker`, which has ended, and count why, unless it was told to."""
        end, slot = self._ends.pop(worker, None), self.slot_of(worker)
        if slot is None:  # the operator's own pre_fork has taken the place of ours: it counted as a process
            mark_worker_dead(worker.pid)
            return
        mark_worker_dead(slot_name(slot))
        del self._slots[slot]
        said = _said(slot)
        if worker in self._told:
            self._told.discard(worker)
        else:
            observe_restart(said or _reason(worker, end))

    def slot_of(self, worker: Worker) -> int | None:
        """Return the slot of `worker`, if it has one."""
        return next((slot for slot, each in self._slots.items() if each is worker), None)

    def _note_and_kill(self, pid: int, number: int) -> None:
        for worker in self._slots.values():
            # Who is killed for not heeding the signal to abort was not told to stop.
            if worker.pid == pid and not worker.aborted and number in (*_STOPS, signal.SIGKILL):
                self._told.add(worker)
        self._kill(pid, number)

    def _look_and_reap(self) -> None:
        """Look how workers have ended before Gunicorn takes them away, which keeps it to itself."""
        for worker in list(self._slots.values()):
            with contextlib.suppress(ChildProcessError, AttributeError, TypeError):  # macOS lacks it; none is forked yet
                end = os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if end is not None:
                    self._ends[worker] = end
        self._reap()


def _said(slot: int) -> str:
    """Return what the worker of `slot` has said, and forget it; "" if it has said nothing."""
    number = _words[slot] if _words is not None and slot < MOST_SLOTS else 0
    if number and _words is not None:
        _words[slot] = 0
    return RESTART_REASONS[number - 1] if number else ""


def _reason(worker: Worker, end: Any) -> str:
    """Return why `worker` ended as it did, in a word of RESTART_REASONS; `end` is what `os.waitid` has said."""
    if worker.aborted:
        return "timeout"
    if end is None:
        return "killed"
    if end.si_code == os.CLD_EXITED:
        if end.si_status == 0 and worker.cfg.max_requests:
            return "max_requests"
        return "exit"
    if end.si_status == signal.SIGKILL:
        return "killed"
    return "exit" if end.si_status in _STOPS else "crashed"
