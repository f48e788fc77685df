"""More load than the server can take: does it go on at its best, and does it say no at once to the rest?

The model takes 5 ms a request, one at a time, as one on an accelerator does: what a worker can do is known, 200
requests/s, and the load generator, which takes a core, can send ten times as much. Where the network itself takes all
of the processor, as MNIST on CPUs does, a refusal costs a fair part of a prediction (docs/worker.md has the figures).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench import machine
from bench.cases import Request
from bench.faults import rig
from bench.faults.fault import Fault, NotMeasured, Outcome
from bench.load import Generator

PATH = "/v2/models/device/infer"
BODY = '{"inputs":[{"name":"value","shape":[1,1],"datatype":"FP32","data":[5]}]}'
TIMES = (1.0, 2.0, 5.0, 10.0)
BEFORE_SECONDS, OVER_SECONDS, AFTER_SECONDS = 2.0, 6.0, 3.0
NORMAL = 0.5  # of the capacity
BINS = 4  # of bench.faults.arrivals, of 0.25 s: in the fifth all is to be as before
REFUSED_MS = 10.0
GOODPUT = 0.9
CONNECTIONS = 32  # that find out the capacity
START_MS = 5.0  # a p99 below this is not told from it


def add_single(store: Path, name: str, network: str) -> None:
    """Write a model into `store` whose passes take one row."""
    folder = rig.add_model(store, name, network=f"bench.faults.costly:{network}")
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"max_batch_rows": 1}))


@contextmanager
def serving(deadline: float, workers: int = rig.WORKERS) -> Iterator[rig.Server]:
    """Run a server that has the costly models; a request is to be answered within `deadline` seconds."""
    with ExitStack() as stack:
        store = stack.enter_context(rig.new_store())
        for name in ("Device", "Pure", "Costly"):
            add_single(store, name.lower(), name)
        yield stack.enter_context(rig.server(workers, store=store, SERVEKIT_DEADLINE_SECONDS=str(deadline)))


def capacity(port: int) -> float:
    """Return how many requests a second the server answers to as many clients as it can serve at once."""
    generator = Generator(port, Request(PATH, "application/json", BODY.encode()).encode(), CONNECTIONS)
    try:
        found = generator.closed(1.0, 3.0)
    finally:
        generator.close()
    if not found["requests_per_second"] or found["errors"]:
        raise NotMeasured(f"the capacity cannot be found: {found['faults']}")
    return float(found["requests_per_second"])


def arrive(port: int, deadline: float, *phases: tuple[float, float]) -> dict[str, Any]:
    """Send requests at each rate for its seconds, from a process of its own; return what it printed."""
    command = [sys.executable, "-m", "bench.faults.arrivals", "--port", str(port), "--path", PATH, "--body", BODY]
    command += ["--deadline", str(deadline), "--core", str(machine.split_cores().load)]
    for rate, seconds in phases:
        command += ["--phase", f"{rate}:{seconds}"]
    patience = sum(seconds for _, seconds in phases) + 2 * deadline + 30
    ended = subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, timeout=patience)
    if ended.returncode:
        raise NotMeasured(f"the load generator ended: {ended.stderr[-200:]}")
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def ladder(deadline: float) -> Outcome:
    """Send 1, 2, 5 and 10 times the capacity, with a normal load before and after each."""
    with serving(deadline) as server:
        most = capacity(server.port)
        normal = NORMAL * most
        steps = []
        for times in TIMES:
            phases = ((normal, BEFORE_SECONDS), (times * most, OVER_SECONDS), (normal, AFTER_SECONDS))
            found = arrive(server.port, deadline, *phases)
            steps.append({"times": times, **found})
    return judge(most, steps, deadline)


def judge(most: float, steps: list[dict[str, Any]], deadline: float) -> Outcome:
    """Say what came of the steps of a ladder."""
    over = {step["times"]: step["phases"][1] for step in steps}
    share = over[5.0]["goodput"] / over[1.0]["goodput"] if over[1.0]["goodput"] else 0.0
    accepted = max(phase["good_p99_ms"] for phase in over.values())
    refused = max(over[times]["refused_p99_ms"] for times in (2.0, 5.0))
    is_told = not any(phase["without_retry_after"] for phase in over.values())
    others = sum(sum(phase["others"].values()) for phase in over.values())
    due = sum(phase["due"] for phase in over.values())
    is_normal = all(was_normal_after(step) for step in steps if step["times"] > 1)  # at 1x there is nothing to get over
    rates = ", ".join(f"{phase['goodput']:.0f}" for phase in over.values())
    measured = (
        f"capacity {most:.0f}/s; goodput {rates}/s (5x: {share:.2f} of 1x); accepted p99 {accepted:.0f} ms, "
        f"refused p99 {refused:.1f} ms{'' if is_told else ', some without Retry-After'}, "
        f"{others} of {due} neither; {'normal' if is_normal else 'not normal'} after 1 s"
    )
    is_reached = share >= GOODPUT and accepted <= deadline * 1000 and refused <= REFUSED_MS and is_told and is_normal
    return Outcome(measured, is_reached and others <= due // 1000, {"capacity": most, "deadline": deadline, "steps": steps})


def was_normal_after(step: dict[str, Any]) -> bool:
    """Return True if from a second after the overload on requests were as fast as before it, within a factor of two."""
    before, _, after = step["phases"]
    bound = 2 * max(before["good_p99_ms"], START_MS)
    later = after["bins_p99_ms"][BINS:]
    return bool(later) and sorted(later)[len(later) // 2] <= bound and min(later) >= 0


FAULTS = [
    Fault(
        name,
        f"load at 1x, 2x, 5x, 10x of capacity, open loop, {words}",
        "goodput at 5x at least 0.9 of 1x; p99 of the accepted within the deadline; refusals in under 10 ms; "
        "normal 1 s after 2x and more",
        partial(ladder, deadline),
        limit_seconds=240.0,
    )
    for name, words, deadline in (
        ("overload", "the default deadline of 30 s", 30.0),
        ("overload-tight", "a deadline of 1 s", 1.0),
    )
]
