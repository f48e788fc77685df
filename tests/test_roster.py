"""The slots of workers, and why those that ended did; the master is a stand-in, its workers are real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from servekit import metrics
from servekit.roster import Roster, say_why

LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"


class Master:
    """What Gunicorn's master does with workers, as far as the roster looks at it."""

    def __init__(self) -> None:
        self.roster = Roster(self)

    def start(self, code: str = "import time; time.sleep(60)", max_requests: int = 0) -> SimpleNamespace:
        worker = Worker(pid=None, aborted=False, cfg=SimpleNamespace(max_requests=max_requests))
        self.roster.admit(worker)
        worker.process = subprocess.Popen([sys.executable, "-c", LIMIT + code], stdout=subprocess.PIPE)
        worker.pid = worker.process.pid
        return worker

    def kill_worker(self, pid: int, number: int) -> None:
        os.kill(pid, number)

    def reap_workers(self) -> None:
        pass

    def end(self, worker: SimpleNamespace) -> None:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        self.reap_workers()
        worker.process.communicate()
        self.roster.dismiss(worker)


class Worker(SimpleNamespace):
    """A worker, as Gunicorn's master knows it."""

    __hash__ = object.__hash__


@pytest.fixture
def master() -> Iterator[Master]:
    yield Master()
    metrics.use_slot(None)


def restarts() -> dict[str, float]:
    """Return the restarts that were counted, by reason."""
    reasons = {each: REGISTRY.get_sample_value("servekit_worker_restarts_total", {"reason": each}) for each in REASONS}
    return {reason: count for reason, count in reasons.items() if count}


REASONS = metrics.RESTART_REASONS
ENDS = {
    "import os; os.kill(os.getpid(), 9)": "killed",
    "import os; os.kill(os.getpid(), 11)": "crashed",
    "import os; os.abort()": "crashed",
    "raise SystemExit(1)": "exit",
    "raise SystemExit(0)": "exit",
}


@pytest.mark.parametrize("code", ENDS)
def test_a_worker_that_ends_is_counted_by_its_reason(master: Master, code: str) -> None:
    master.end(master.start(code))
    assert restarts() == {ENDS[code]: 1}


def test_a_worker_that_ends_itself_says_why(master: Master) -> None:
    for reason in ("stuck", "timeout"):
        worker = Worker(pid=None, aborted=False, cfg=SimpleNamespace(max_requests=0))
        master.roster.admit(worker)
        worker.pid = os.fork()
        if worker.pid == 0:
            master.roster.begin(worker)
            say_why(reason)
            os._exit(1)
        worker.process = SimpleNamespace(communicate=lambda pid=worker.pid: os.waitpid(pid, 0))
        master.end(worker)
    master.end(master.start("pass"))  # of the same slot
    assert restarts() == {"stuck": 1, "timeout": 1, "exit": 1}


def test_a_worker_that_gunicorn_gave_up_ran_out_of_time(master: Master) -> None:
    heeds, hangs = master.start(), master.start()
    for worker in (heeds, hangs):
        worker.aborted = True
        master.kill_worker(worker.pid, signal.SIGABRT if worker is heeds else signal.SIGKILL)
        master.end(worker)
    assert restarts() == {"timeout": 2}


def test_a_worker_that_retires_after_its_requests_says_so(master: Master) -> None:
    master.end(master.start("pass", max_requests=10))
    assert restarts() == {"max_requests": 1}


def test_who_was_told_to_stop_is_no_restart(master: Master) -> None:
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL):
        worker = master.start()
        master.kill_worker(worker.pid, number)
        master.end(worker)
    assert restarts() == {}


def test_who_was_told_to_open_its_log_again_may_end_by_surprise(master: Master) -> None:
    worker = master.start("import signal, time; signal.signal(signal.SIGUSR1, signal.SIG_IGN); print(flush=True); time.sleep(60)")
    assert worker.process.stdout.readline()
    master.kill_worker(worker.pid, signal.SIGUSR1)
    worker.process.kill()
    master.end(worker)
    assert restarts() == {"killed": 1}


def test_workers_that_could_not_be_forked_hold_no_slots(master: Master) -> None:
    workers = [Worker(pid="[booting]", aborted=False) for _ in range(3)]
    for worker in workers:
        master.roster.admit(worker)
    assert [master.roster.slot_of(worker) for worker in workers] == [None, None, 0]


def test_a_slot_is_free_again_when_its_worker_is_gone(master: Master) -> None:
    workers = [master.start() for _ in range(3)]
    assert [master.roster.slot_of(worker) for worker in workers] == [0, 1, 2]
    for worker in (workers[1], workers[0]):
        worker.process.kill()
        master.end(worker)
    later = [master.start() for _ in range(3)]
    assert [master.roster.slot_of(worker) for worker in later] == [0, 1, 3]
    for worker in (workers[2], *later):
        worker.process.kill()
        master.end(worker)
