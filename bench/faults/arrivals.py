"""The load generator of the overload bench: arrivals at one rate after the other, whatever the server does.

    python -m bench.faults.arrivals --port 5001 --path /predict --phase 500:2 --phase 3000:8

It prints one JSON object a phase. Beside the good answers of `bench.load` it keeps the refusals: how many, how fast,
and whether they say when to try again. A connection is used again as soon as it is free, so no more are open than
requests are under way; a share of the requests goes over new ones.
"""

import argparse
import gc
import json
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from bench.cases import Request
from bench.load import Connection, Generator, percentile

CONNECTIONS = 6000
BIN_SECONDS = 0.25  # into which the end of a phase is cut, to see when all is normal again
REFUSALS = {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}


class Phase:
    """What was answered to the requests that were due in one phase; times are seconds."""

    def __init__(self, rate: float, seconds: float) -> None:
        self.rate, self.seconds = rate, seconds
        self.began = 0.0
        self.good: list[tuple[float, float]] = []  # when it was due, and how long it took
        self.refused: list[float] = []
        self.without_retry_after = 0
        self.others: dict[str, int] = {}
        self.due = 0

    def report(self, deadline: float) -> dict[str, Any]:
        """Return the figures; good is what was answered within `deadline` seconds."""
        good = sorted(seconds for _, seconds in self.good)
        refused = sorted(self.refused)
        in_time = sum(seconds <= deadline for seconds in good)
        return {
            "rate": self.rate,
            "due": self.due,
            "goodput": round(in_time / self.seconds, 1),
            "good": len(good),
            "good_p50_ms": round(percentile(good, 50) * 1000, 1),
            "good_p99_ms": round(percentile(good, 99) * 1000, 1),
            "refused": len(refused),
            "refused_p50_ms": round(percentile(refused, 50) * 1000, 2),
            "refused_p99_ms": round(percentile(refused, 99) * 1000, 2),
            "without_retry_after": self.without_retry_after,
            "others": self.others,
            "bins_p99_ms": self._bins(),
        }

    def _bins(self) -> list[float]:
        """Return the p99 of the good answers of each piece of the phase, in milliseconds; of an empty piece infinity."""
        bins: list[list[float]] = [[] for _ in range(max(1, round(self.seconds / BIN_SECONDS)))]
        for due, seconds in self.good:
            bins[min(len(bins) - 1, int((due - self.began) / BIN_SECONDS))].append(seconds)
        return [round(percentile(sorted(each), 99) * 1000, 1) if each else -1.0 for each in bins]


class Arrivals(Generator):
    """A `Generator` whose rate changes, and that keeps refusals apart from faults."""

    def phases(self, phases: Sequence[Phase], new: float, seed: int = 0) -> None:
        """Send what is due in each phase, one after the other; a share `new` of it over new connections."""
        chance = random.Random(seed)
        self._chance, self._new = chance, new
        self._free = list(self._connections)
        self._late: deque[float] = deque()
        self._phases = phases
        self._on_free = lambda connection, now: self._free.append(connection)
        began = time.perf_counter()
        for phase in phases:
            phase.began = began
            began += phase.seconds
        for phase in phases:
            self._send_phase(phase)
        until = time.perf_counter() + self._timeout
        while self._late and time.perf_counter() < until:
            self._send_late(time.perf_counter())
            self._turn(0.001)
        self._drain()
        self._count("unsent", phases[-1].began, len(self._late))

    def _send_phase(self, phase: Phase) -> None:
        arrival, end = phase.began, phase.began + phase.seconds
        while (now := time.perf_counter()) < end:
            while arrival <= now and arrival < end:
                self._late.append(arrival)
                phase.due += 1
                arrival += self._chance.expovariate(phase.rate)
            self._send_late(now)
            wait = min(arrival, end) - time.perf_counter()
            self._turn(0.0 if wait < 0.002 else wait - 0.001)

    def _send_late(self, now: float) -> None:
        while self._late and self._free:
            connection = self._free.pop()  # the one used last: so few are open
            if connection.sock is not None and self._chance.random() < self._new:
                self._disconnect(connection)
            self._start(connection, self._late.popleft(), now)

    def _phase_of(self, due: float) -> Phase:
        for phase in reversed(self._phases):
            if due >= phase.began:
                return phase
        return self._phases[0]

    def _count(self, fault: str, due: float, count: int = 1) -> None:
        if count:
            others = self._phase_of(due).others
            others[fault] = others.get(fault, 0) + count

    def _finish(self, connection: Connection, answer: tuple[int, bool], now: float) -> None:
        status, is_kept = answer
        phase, seconds = self._phase_of(connection.since), now - connection.since
        if status == HTTPStatus.OK:
            phase.good.append((connection.since, seconds))
        elif status in REFUSALS:
            phase.refused.append(seconds)
            phase.without_retry_after += b"\r\nretry-after:" not in connection.received.lower()
        else:
            self._count(str(status), connection.since)
        connection.received = b""
        connection.is_busy = False
        if not is_kept:
            self._disconnect(connection)
        self._on_free(connection, now)

    def _fail(self, connection: Connection, fault: str, now: float) -> None:
        self._count(fault, connection.since)
        super()._fail(connection, fault, now)


def main() -> None:
    """Read the command line, go to the core that was asked for, and print what came of each phase."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults.arrivals", description="Sends load at changing rates.")
    parser.add_argument("--port", type=int, required=True, help="where the server listens on 127.0.0.1")
    parser.add_argument("--path", required=True, help="where requests are sent to")
    parser.add_argument("--kind", default="application/json", help="their content type")
    parser.add_argument("--body", required=True, help="what they carry; @name is a file")
    parser.add_argument("--phase", action="append", required=True, help="RATE:SECONDS, several times")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds after which an answer is of no use")
    parser.add_argument("--new", type=float, default=0.1, help="share of the requests on new connections")
    parser.add_argument("--core", type=int, help="the core to run on")
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    body = open(options.body[1:], "rb").read() if options.body.startswith("@") else options.body.encode()
    request = Request(options.path, options.kind, body).encode()
    phases = [Phase(*map(float, text.split(":"))) for text in options.phase]
    generator = Arrivals(options.port, request, CONNECTIONS, options.deadline + 5)
    gc.disable()
    began = time.process_time(), time.perf_counter()
    try:
        generator.phases(phases, options.new)
    finally:
        generator.close()
    cpu = (time.process_time() - began[0]) / (time.perf_counter() - began[1])
    print(json.dumps({"generator_cpu": round(cpu, 2), "phases": [phase.report(options.deadline) for phase in phases]}))


if __name__ == "__main__":
    main()
