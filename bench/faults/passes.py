"""Forward passes that hang, hold the interpreter, take all memory, or crash."""

import contextlib
import functools
import http.client
import json
import resource
import time
from typing import Any

from bench.faults import rig
from bench.faults.fault import Fault, Outcome
from bench.faults.ledger import Ledger, Load

RATE = 100.0  # of requests to another model, over all workers
TIMEOUT_SECONDS = 10  # Gunicorn's `timeout` here, so that the bench does not take long
QUIET_SECONDS = 4.0
AFTER_SECONDS = 4.0
MEMORY_BYTES = 64 * 2**20  # that a worker may take more than it has
REPLACED_SECONDS = 15.0
FAIR = (503, 504)
TRIGGER = 666.0  # of bench/faults/models.py, which imports torch


def bad_pass(model: str) -> Outcome:
    """Set off one model of bench/faults/models.py while others are asked; look at its answer and at theirs."""
    name = model.lower()
    with rig.new_store(model) as store, rig.server(store=store, options=["--timeout", str(TIMEOUT_SECONDS)]) as server:
        with Load(server.port, RATE, timeout=TIMEOUT_SECONDS + 10) as ledger:
            time.sleep(QUIET_SECONDS)
            if model == "Exhaust":
                _limit_memory(server)
            before, began = server.pids(), time.monotonic()
            status, seconds = _set_off(server, name)
            replaced = _replaced_after(server, before, began + seconds) if model != "Exhaust" else 0.0
            time.sleep(AFTER_SECONDS)
        again = _ask(server, name, 5)[0]
    failed = ledger.failed()
    bad = [each for each in failed if each.status not in FAIR]
    since = began + seconds + replaced
    is_reached = status in FAIR and not bad and not ledger.wrong() and again == 200 and replaced <= REPLACED_SECONDS
    figures = _figures(ledger, began, since) | {"status": status, "seconds": seconds, "replaced_seconds": replaced}
    end = "the worker lives" if model == "Exhaust" else f"the worker replaced after {replaced:.1f} s"
    return Outcome(
        f"{status or 'no answer'} after {seconds:.1f} s, {end}; of {len(ledger.sent)} other requests {len(failed)} were "
        f"on that worker and got {sorted({each.status for each in failed}) or 'nothing else'}, {len(bad)} no answer; "
        f"the others' p99 {figures['p99_meanwhile_ms']:.1f} ms ({figures['p99_before_ms']:.1f} before)",
        is_reached,
        figures | {"status_after": again},
    )


def _figures(ledger: Ledger, began: float, since: float) -> dict[str, Any]:
    return {
        "others": ledger.statuses(),
        "p99_before_ms": ledger.p(99, began - QUIET_SECONDS + 1, began),
        "p99_meanwhile_ms": ledger.p(99, began, since),
        "p99_after_ms": ledger.p(99, since),
    }


def _ask(server: rig.Server, name: str, value: float) -> tuple[int, bytes]:
    tensor = {"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [value]}
    body = json.dumps({"inputs": [tensor]}).encode()
    path = f"/v2/models/{name}/infer"
    return rig.ask(server.port, path, body, content_type="application/json", timeout=TIMEOUT_SECONDS + 10)


def _set_off(server: rig.Server, name: str) -> tuple[int, float]:
    """Ask for the number that sets the model off; return the status, 0 for no answer, and how long it took."""
    began, status = time.monotonic(), 0
    with contextlib.suppress(OSError, http.client.HTTPException):
        status, _ = _ask(server, name, TRIGGER)
    return status, time.monotonic() - began


def _replaced_after(server: rig.Server, before: list[int], at: float) -> float:
    """Return how many seconds after `at` the server has its number of workers again, the new one ready."""
    while len(set(server.pids()) - set(before)) != 1 or "A new worker is ready" not in server.log():
        if time.monotonic() - at > REPLACED_SECONDS:
            break
        time.sleep(rig.POLL_SECONDS)
    return max(0.0, time.monotonic() - at)


def _limit_memory(server: rig.Server) -> None:
    """Let no worker take more than MEMORY_BYTES in addition."""
    for pid in server.pids():
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY_BYTES
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


def _fault(name: str, title: str, model: str) -> Fault:
    to_reach = "504 or 503 for that batch only, the worker replaced, neighbours unharmed"
    return Fault(name, title, to_reach, functools.partial(bad_pass, model))


FAULTS = (
    _fault("hang", "a forward pass that hangs", "Hang"),
    _fault("gil", "a forward pass that holds the interpreter (GIL)", "HoldGil"),
    _fault("memory", f"a forward pass that takes all memory, with a limit (RLIMIT_AS {MEMORY_BYTES >> 20} MiB above)", "Exhaust"),
    _fault("oom", "a forward pass that takes all memory, without a limit: the kernel's SIGKILL", "Killed"),
    _fault("segfault", "a forward pass that crashes (segmentation fault)", "Crash"),
)
