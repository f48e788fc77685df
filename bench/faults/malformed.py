"""Fifty thousand malformed requests, many at a time, beside good ones."""

import collections
import contextlib
import os
import re
import select
import socket
import time
from collections.abc import Iterable, Iterator

from bench import machine
from bench.faults import rig
from bench.faults.corpus import CANARY_PATH, DECLINED, Case, generate
from bench.faults.fault import Fault, Outcome
from bench.faults.greedy import Gauge
from bench.faults.ledger import Load

COUNT, SEED = 50_000, 6
AT_ONCE = 12
MOST_SECONDS = 1.0  # to an answer and the end of the connection
GIVE_UP_SECONDS = 15.0
MOST_MIB = 64.0  # images and tables are read by libraries, which each worker allocates for
READ_BYTES = 2**16

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_CANARIES = re.compile(r'servekit_requests_total\{[^}]*route="%s"[^}]*\} ([0-9.e+]+)' % CANARY_PATH)


class _Sender:
    """One malformed request under way: it sends, says that it has ended, and reads until the server closes."""

    def __init__(self, port: int, case: Case) -> None:
        self.case = case
        self.unsent = memoryview(case.data)
        self.received = b""
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.socket.connect_ex((rig.HOST, port))
        self.began = time.monotonic()

    def go_on(self) -> bool:
        """Send and read what can be; return False when the server has closed the connection."""
        with contextlib.suppress(BlockingIOError):
            try:
                if self.unsent:
                    self.unsent = self.unsent[self.socket.send(self.unsent) :]
                    if not self.unsent:
                        self.socket.shutdown(socket.SHUT_WR)
                data = self.socket.recv(READ_BYTES)
            except OSError as error:
                return isinstance(error, BlockingIOError)
            self.received += data
            return bool(data)
        return True

    def statuses(self) -> list[int]:
        """Return the statuses in what was received."""
        return [int(status) for status in _STATUS.findall(self.received)]


def send_all(port: int, cases: Iterable[Case], at_once: int = AT_ONCE) -> Iterator[tuple[Case, list[int], float]]:
    """Send each of `cases` on a connection of its own; give it, the statuses of its answers, and its seconds.

    An answer that does not come, or a connection that is not closed, counts GIVE_UP_SECONDS.
    """
    cases = iter(cases)
    epoll = select.epoll()
    open_: dict[int, _Sender] = {}
    is_over = False
    while open_ or not is_over:
        while len(open_) < at_once and not is_over:
            if (case := next(cases, None)) is None:
                is_over = True
                break
            sender = _Sender(port, case)
            open_[sender.socket.fileno()] = sender
            epoll.register(sender.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        ready = dict(epoll.poll(0.05))
        now = time.monotonic()
        for number in list(open_) if len(ready) == 0 else list(ready):
            sender = open_[number]
            goes_on = sender.go_on() if number in ready else True
            if goes_on and now - sender.began < GIVE_UP_SECONDS:
                epoll.modify(number, select.EPOLLIN | (select.EPOLLOUT if sender.unsent else 0))
                continue
            del open_[number]
            epoll.unregister(number)
            sender.socket.close()
            yield sender.case, sender.statuses(), GIVE_UP_SECONDS if goes_on else time.monotonic() - sender.began
    epoll.close()


def canaries(port: int) -> int:
    """Return how many requests to the canary's path have been run."""
    _, text = rig.ask(port, "/metrics")
    return round(sum(float(count) for count in _CANARIES.findall(text.decode())))


def malformed() -> Outcome:
    """Send the corpus; look at statuses, times, workers, canaries, memory, and good clients."""
    os.sched_setaffinity(0, {machine.split_cores().load})
    tally: collections.Counter[str] = collections.Counter()
    faults, late, worst = [], [], 0.0
    with rig.server(SERVEKIT_MANAGEMENT="true") as server:
        for _ in send_all(server.port, generate(600, SEED + 1)):
            pass  # what libraries import and allocate once
        before, ran = server.pids(), canaries(server.port)
        began = time.monotonic()
        with Gauge(server.members()) as gauge, Load(server.port, 50) as load:
            for case, statuses, seconds in send_all(server.port, generate(COUNT, SEED)):
                tally.update(f"{case.kind} {status}" for status in statuses or [0])
                worst = max(worst, seconds)
                if any(status >= 500 and status not in DECLINED for status in statuses):
                    faults.append(f"{statuses} to {case.data[:200]!r}")
                if seconds > MOST_SECONDS:
                    late.append(f"{seconds:.1f} s for {case.data[:200]!r}")
            growth = gauge.growth
        took = time.monotonic() - began
        ran = canaries(server.port) - ran
        died, is_clean = before != server.pids(), "Traceback" not in server.log()
    failed = len(load.failed())
    measured = (
        f"{len(faults)} server errors, {len(late)} over {MOST_SECONDS:.0f} s (worst {worst:.2f} s), {ran} smuggled, workers "
        f"{'died' if died else 'all alive'}, memory +{growth:.0f} MiB, {failed} of {len(load.sent)} good ones failed; "
        f"{COUNT / took:.0f} a second{'' if is_clean else '; tracebacks in the log'}"
    )
    figures = {"tally": dict(sorted(tally.items())), "errors": faults[:50], "late": late[:50], "growth": growth}
    is_reached = not (faults or late or ran or died or failed) and is_clean and growth <= MOST_MIB
    return Outcome(measured, is_reached, figures)


FAULTS = (
    Fault(
        "malformed",
        f"{COUNT} malformed requests (HTTP framing, multipart, JSON, tensors, images, tables, archives; seed {SEED})",
        "0 server errors, 0 dead workers, 0 waits over 1 s, no smuggled request run, memory bounded (at most +64 MiB)",
        malformed,
        limit_seconds=240.0,
    ),
)
