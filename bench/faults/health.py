"""Health while everything is busy: an orchestrator that asks in vain would restart a server that works."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from bench import machine
from bench.cases import raw
from bench.faults import rig
from bench.faults.fault import Fault, Outcome
from bench.faults.overload import add_single
from bench.load import percentile

BUSY_SECONDS = 6.0  # of each kind of work
PAUSE_SECONDS = 0.02  # between two questions
HEALTH_MS = 50.0
PATHS = ("/health/live", "/health/ready")
LARGE_BYTES = 25 * 2**20 - 4096  # of JSON: just below the limit
LARGE_CLIENTS = 3
CONNECTIONS = 64


@contextmanager
def load(port: int, path: str, body: str = "", kind: str = "") -> Iterator[None]:
    """Keep CONNECTIONS clients busy with one request, from a process of their own."""
    command = [sys.executable, "-m", "bench.faults.busy", "--port", str(port), "--path", path]
    command += ["--body", body or "@bench/digit.png", "--kind", kind or raw().content_type]
    command += ["--connections", str(CONNECTIONS), "--seconds", str(BUSY_SECONDS + 2)]
    process = subprocess.Popen(command, cwd=machine.ROOT, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def large_bodies(port: int) -> Iterator[None]:
    """Send 25 MiB of JSON over and over, from LARGE_CLIENTS clients."""
    rows = LARGE_BYTES // (28 * 28 * 4 + 16)
    data = ",".join(["0.5"] * (rows * 28 * 28))
    tensor = f'{{"name":"image","shape":[{rows},1,28,28],"datatype":"FP32","data":[{data}]}}'
    body = f'{{"inputs":[{tensor}]}}'.encode()
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                rig.ask(port, "/v2/models/mnist/infer", body, content_type="application/json", timeout=60.0)
            except (OSError, http.client.HTTPException):
                stop.wait(0.1)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(LARGE_CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def ask_health(port: int, seconds: float) -> tuple[list[float], int]:
    """Ask both addresses over a kept and a new connection in turn; return the seconds of each answer, and the failures."""
    taken, failures = [], 0
    until, kept, number = time.monotonic() + seconds, http.client.HTTPConnection(rig.HOST, port, timeout=10), 0
    while time.monotonic() < until:
        number += 1
        path, is_new = PATHS[number % 2], number % 4 > 1
        began = time.monotonic()
        try:
            if is_new:
                status, _ = rig.ask(port, path)
            else:
                kept.request("GET", path)
                with closing(kept.getresponse()) as response:
                    response.read()
                    status = response.status
        except (OSError, http.client.HTTPException):
            kept.close()
            status = 0
        taken.append(time.monotonic() - began)
        failures += status != 200
        time.sleep(PAUSE_SECONDS)
    kept.close()
    return sorted(taken), failures


def health() -> Outcome:
    """Ask for health while predictions, long passes, Python and large bodies keep all workers busy, one after another."""
    figures, worst, failed = {}, 0.0, 0
    value = json.dumps({"inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}]})
    with ExitStack() as stack:
        store = stack.enter_context(rig.new_store())
        for name in ("Device", "Pure", "Costly"):
            add_single(store, name.lower(), name)
        port = stack.enter_context(rig.server(store=store)).port
        kinds: dict[str, Callable[[], object]] = {
            "predictions": lambda: load(port, "/mnist/predict"),
            "long passes": lambda: load(port, "/v2/models/costly/infer", value, "application/json"),
            "passes in Python": lambda: load(port, "/v2/models/pure/infer", value, "application/json"),
            "25 MiB of JSON": lambda: large_bodies(port),
        }
        for kind, busy in kinds.items():
            with busy():  # type: ignore[attr-defined]
                time.sleep(1.0)
                taken, failures = ask_health(port, BUSY_SECONDS)
            p99 = percentile(taken, 99) * 1000
            figures[kind] = {"asked": len(taken), "p99_ms": round(p99, 1), "max_ms": round(taken[-1] * 1000, 1)}
            worst, failed = max(worst, p99), failed + failures
    said = ", ".join(f"{figure['p99_ms']:.0f} ms under {kind}" for kind, figure in figures.items())
    return Outcome(f"p99 {said}; {failed} not answered 200", worst < HEALTH_MS and not failed, figures)


FAULTS = [Fault("health", "health while everything is busy", "p99 under 50 ms", health, limit_seconds=180.0)]
