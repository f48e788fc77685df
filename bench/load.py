"""The load generator: one process on one core sends one prebuilt request over and over, and prints what it saw as JSON.

    python -m bench.load --port 5001 --case raw --connections 16            closed loop
    python -m bench.load --port 5001 --case raw --rate 2000                 open loop, Poisson arrivals
    python -m bench.load --port 5001 --case raw --search                    the highest rate at a p99 of 10 ms

It runs in a fresh process of its own, so that no garbage of other work is collected meanwhile.
"""

import argparse
import gc
import itertools
import json
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from bench.cases import CASES
from bench.wire import Malformed, parse

HOST = "127.0.0.1"  # load never leaves the machine
RETRY_SECONDS = 0.05  # between two tries of a connection that failed: a dead server is no busy loop
READ_BYTES = 1 << 14  # a large buffer would be mapped and unmapped by the kernel at every read
IN, OUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Connection:
    """One connection and the request that is under way on it."""

    __slots__ = ("sock", "received", "unsent", "since", "is_busy")

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.received = b""
        self.unsent = b""
        self.since = 0.0  # when the request was sent, or in an open loop should have been
        self.is_busy = False


class Generator:
    """Sends `request` to a port over `connections` connections; `closed` and `open` are its two kinds of load."""

    def __init__(self, port: int, request: bytes, connections: int, timeout: float = 10.0) -> None:
        """A request unanswered for `timeout` seconds is an error; nothing connects yet."""
        self._address = (HOST, port)
        self._request = request
        self._timeout = timeout
        self._epoll = select.epoll()
        self._connections = [Connection() for _ in range(connections)]
        self._by_fd: dict[int, Connection] = {}
        self._on_free: Callable[[Connection, float], None] = lambda connection, now: None
        self._resting: deque[tuple[float, Connection]] = deque()  # connections that failed, until they are tried again
        self._next_check = 0.0
        self._reset(0.0, 0.0)

    def closed(self, warmup: float, seconds: float) -> dict[str, Any]:
        """Keep every connection busy for `warmup` and then `seconds`; count what is answered in the latter.

        Requests under way at the end are waited for, and their latencies count: a stall is not forgiven.
        """
        begin = time.perf_counter()
        self._reset(begin + warmup, begin + warmup + seconds)
        self._on_free = lambda connection, now: self._start(connection, now, now) if now < self._until else None
        for connection in self._connections:
            self._start(connection, begin, begin)
        while (now := time.perf_counter()) < self._until:
            self._turn(min(self._until - now, RETRY_SECONDS))
        self._drain()
        return self._report(seconds)

    def open(self, rate: float, warmup: float, seconds: float, seed: int = 0) -> dict[str, Any]:
        """Send at the times of a Poisson process, whatever the server does, as MLPerf's Server scenario does.

        A latency begins at the time that was due, so a request that had to wait for a connection has that wait in it.
        """
        free = deque(self._connections)
        due: deque[float] = deque()
        chance = random.Random(seed)
        begin = time.perf_counter()
        self._reset(begin + warmup, begin + warmup + seconds)
        self._on_free = lambda connection, now: free.append(connection)
        arrival = begin + chance.expovariate(rate)
        give_up = self._until + self._timeout
        while (now := time.perf_counter()) < give_up and (arrival < self._until or due):
            while arrival <= now and arrival < self._until:
                due.append(arrival)
                arrival += chance.expovariate(rate)
            while due and free:
                self._start(free.popleft(), due.popleft(), now)
            wait = arrival - now
            # epoll counts in milliseconds: the last of them is spent asking, on a core that is ours alone
            self._turn(0.0 if wait < 0.002 and not due else min(RETRY_SECONDS, max(0.0, wait - 0.001)))
        self._drain()
        self._errors += len(due)
        return self._report(seconds) | {"rate": rate}

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            self._disconnect(connection)
        self._epoll.close()

    def _reset(self, since: float, until: float) -> None:
        self._since, self._until = since, until
        self._latencies: list[float] = []
        self._answered = self._errors = 0
        self._faults: dict[str, int] = {}
        self._cpu_began = time.process_time()
        self._began = time.perf_counter()

    def _start(self, connection: Connection, since: float, now: float) -> None:
        """Send the request on `connection`; its latency runs from `since`."""
        connection.since = since
        connection.is_busy = True
        if connection.sock is None:
            self._connect(connection)
            return
        try:
            sent = connection.sock.send(self._request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail(connection, "closed", now)
            return
        if sent != len(self._request):
            connection.unsent = self._request[sent:]
            self._epoll.modify(connection.sock.fileno(), OUT)

    def _connect(self, connection: Connection) -> None:
        connection.sock = socket.socket()
        connection.sock.setblocking(False)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sock.connect_ex(self._address)  # a refusal shows when it is written to
        connection.unsent = self._request
        self._by_fd[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock.fileno(), OUT)

    def _disconnect(self, connection: Connection) -> None:
        if connection.sock is not None:
            del self._by_fd[connection.sock.fileno()]
            connection.sock.close()  # which also takes it out of epoll
            connection.sock = None
        connection.received = connection.unsent = b""
        connection.is_busy = False

    def _fail(self, connection: Connection, fault: str, now: float) -> None:
        """Count an error; the connection is opened anew and, after a pause, free again."""
        self._errors += 1
        self._faults[fault] = self._faults.get(fault, 0) + 1
        self._disconnect(connection)
        self._resting.append((now + RETRY_SECONDS, connection))

    def _turn(self, wait: float) -> None:
        """Handle what has happened, waiting at most `wait` seconds for something to happen."""
        for fd, events in self._epoll.poll(wait):
            connection = self._by_fd.get(fd)
            if connection is None:
                continue
            if connection.unsent and events & select.EPOLLOUT:
                self._flush(connection)
            elif events & ~select.EPOLLOUT:
                self._receive(connection)
        now = time.perf_counter()
        while self._resting and self._resting[0][0] <= now:
            self._on_free(self._resting.popleft()[1], now)
        if now >= self._next_check:
            self._next_check = now + RETRY_SECONDS
            self._check_timeouts(now)

    def _flush(self, connection: Connection) -> None:
        assert connection.sock is not None
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._fail(connection, "closed", time.perf_counter())
            return
        connection.unsent = connection.unsent[sent:]
        if not connection.unsent:
            self._epoll.modify(connection.sock.fileno(), IN)

    def _receive(self, connection: Connection) -> None:
        assert connection.sock is not None
        try:
            data = connection.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        now = time.perf_counter()
        if not connection.is_busy:  # a server may close a connection that waits for work; words unasked are a fault
            self._disconnect(connection)
            if data:
                self._errors += 1
                self._faults["unasked"] = self._faults.get("unasked", 0) + 1
            return
        if not data:
            self._fail(connection, "closed", now)
            return
        if connection.received:
            data = connection.received + data
        try:
            answer = parse(data)
        except Malformed:
            self._fail(connection, "malformed", now)
            return
        connection.received = data
        if answer is not None:
            self._finish(connection, answer, now)

    def _finish(self, connection: Connection, answer: tuple[int, bool], now: float) -> None:
        status, is_kept = answer
        if status != 200:
            self._errors += 1
            self._faults[str(status)] = self._faults.get(str(status), 0) + 1
        elif now >= self._since:
            if connection.since >= self._since:
                self._latencies.append(now - connection.since)
            if now < self._until:
                self._answered += 1
        connection.received = b""
        connection.is_busy = False
        if not is_kept:
            self._disconnect(connection)
        self._on_free(connection, now)

    def _check_timeouts(self, now: float) -> None:
        for connection in self._connections:
            if connection.is_busy and now - connection.since > self._timeout:
                self._fail(connection, "timeout", now)

    def _drain(self) -> None:
        """Wait for what is under way, at most until all of it has timed out."""
        self._on_free = lambda connection, now: None
        deadline = time.perf_counter() + self._timeout + 1
        while any(connection.is_busy for connection in self._connections) and time.perf_counter() < deadline:
            self._turn(RETRY_SECONDS)
        self._resting.clear()

    def _report(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self._latencies)
        milliseconds = {f"p{share}_ms": round(percentile(ordered, share) * 1000, 3) for share in (50, 90, 99)}
        elapsed = time.perf_counter() - self._began
        return {
            "requests_per_second": round(self._answered / seconds, 1),
            **milliseconds,
            "max_ms": round(ordered[-1] * 1000, 3) if ordered else 0.0,
            "latencies": len(ordered),
            "errors": self._errors,
            "faults": dict(self._faults),
            "generator_cpu": round((time.process_time() - self._cpu_began) / elapsed, 2),
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest of the `ordered` values that `share` percent of them do not exceed; 0 of no values."""
    if not ordered:
        return 0.0
    return ordered[max(0, -int(-len(ordered) * share // 100) - 1)]


def search(
    measure: Callable[[float], dict[str, Any]], capacity: float, limit_ms: float, steps: int
) -> dict[str, Any]:
    """Bisect between 0 and `capacity` for the highest rate at which `measure` sees no error and a p99 within the limit.

    A rate that fails is tried once more, since one disturbance of the machine is no answer. The best step is the result;
    its rate is 0, and it counts as an error, if none passed.
    """
    low, high = 0.0, capacity
    best: dict[str, Any] = {"rate": 0.0}
    tried = []
    for _ in range(steps):
        rate = round((low + high) / 2, 1)
        for _ in range(2):
            report = measure(rate)
            passed = report["latencies"] > 0 and report["errors"] == 0 and report["p99_ms"] <= limit_ms
            tried.append({"rate": rate, "p99_ms": report["p99_ms"], "errors": report["errors"], "passed": passed})
            if passed:
                break
        if passed:
            low, best = rate, report
        else:
            high = rate
    return {**best, "limit_ms": limit_ms, "steps": tried, "errors": best.get("errors", 1)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Send the load that the command line asks for and return what was seen."""
    build = CASES[options.case]
    request = (build(options.path) if options.path else build()).encode()
    generator = Generator(options.port, request, options.connections, options.timeout)
    try:
        if options.search:
            capacity = generator.closed(options.warmup, 1.0)["requests_per_second"]
            seeds = itertools.count(options.seed)

            def measure(rate: float) -> dict[str, Any]:
                return generator.open(rate, options.warmup, options.seconds, next(seeds))

            return search(measure, 1.2 * capacity, options.limit_ms, options.steps) if capacity else {"errors": 1}
        if options.rate:
            return generator.open(options.rate, options.warmup, options.seconds, options.seed)
        return generator.closed(options.warmup, options.seconds)
    finally:
        generator.close()


def main() -> None:
    """Read the command line, go to the core that was asked for, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="Sends load to a server on this machine.")
    parser.add_argument("--port", type=int, required=True, help="where the server listens on 127.0.0.1")
    parser.add_argument("--case", choices=sorted(CASES), default="raw", help="what is sent")
    parser.add_argument("--path", help="where it is sent to, if not where servekit takes it")
    parser.add_argument("--connections", type=int, default=16, help="connections, all kept alive")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long is measured")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load before that")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds after which an answer is an error")
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second: an open loop")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--search", action="store_true", help="search the highest rate whose p99 is within the limit")
    parser.add_argument("--limit-ms", type=float, default=10.0, help="that limit")
    parser.add_argument("--steps", type=int, default=7, help="rates that the search tries")
    parser.add_argument("--core", type=int, help="the core to run on")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    gc.disable()
    print(json.dumps(run(options)))


if __name__ == "__main__":
    main()
