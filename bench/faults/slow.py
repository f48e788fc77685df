"""Clients that send slowly, read slowly, or do nothing at all, beside good ones."""

import time

from bench.faults import rig
from bench.faults.crowd import BODY_DRIP, CHUNK_DRIP, HEAD_DRIP, IDLE, LATER_DRIP, SLOW_READ, Manners, crowd
from bench.faults.fault import Fault, Outcome
from bench.faults.ledger import Ledger, Load

SLOW, IDLERS = 300, 1000
RATE = 150.0  # requests a second of the good clients
ALONE_SECONDS, REST_SECONDS = 6.0, 5.0
HEAD_SECONDS, SHORT_SECONDS = 10.0, 6.0  # deadlines: the head's is the default, of body and answer the default is 30
SLACK_SECONDS = 2.5  # after a deadline: the server looks at its clock twice a second
# Below this a p99 is mostly the machine's own: twice of it says nothing about the server.
NOISE_MS = 2.0
IDLE_SHARE = 0.02  # of a core, over all processes

KINDS: dict[str, tuple[list[Manners], float]] = {
    "header drip": ([HEAD_DRIP, LATER_DRIP] * (SLOW // 2), HEAD_SECONDS),
    "body drip": ([BODY_DRIP, CHUNK_DRIP] * (SLOW // 2), SHORT_SECONDS),
    "slow read": ([SLOW_READ] * SLOW, SHORT_SECONDS),
}


def slow_clients() -> Outcome:
    """Let 300 clients of each kind be slow while good ones ask."""
    figures: dict[str, object] = {}
    reached, words = True, []
    short = str(SHORT_SECONDS)
    with rig.server(SERVEKIT_BODY_SECONDS=short, SERVEKIT_WRITE_SECONDS=short) as server:
        alone = good(server, ALONE_SECONDS)
        for kind, (manners, deadline) in KINDS.items():
            seconds = deadline + SLACK_SECONDS
            with Load(server.port, RATE) as load, crowd(server.port, manners, seconds + 2) as bad:
                closed = bad.closed()
            out = [each for each in closed if deadline - 1 <= each <= seconds]
            ratio = load.p(99) / max(alone.p(99), NOISE_MS)
            figures[kind] = {"p50": load.p(50), "p99": load.p(99), "closed": sorted(closed), "statuses": load.statuses()}
            words.append(f"{kind}: {len(load.failed())} of {len(load.sent)} failed, p99 {ratio:.1f}x, {len(out)} put out")
            reached = reached and not load.failed() and ratio <= 2 and len(out) == len(manners)
        figures["alone"] = {"p50": alone.p(50), "p99": alone.p(99)}
        clean = "Traceback" not in server.log()
    return Outcome(f"alone p99 {alone.p(99):.1f} ms; " + "; ".join(words), reached and clean, figures)


def idle_connections() -> Outcome:
    """Let 1000 connections be idle after a request each."""
    with rig.server() as server:
        alone = good(server, ALONE_SECONDS)
        resting = server.running.idle_cpu(REST_SECONDS)
        with crowd(server.port, [IDLE] * IDLERS, 60) as idlers:
            share = server.running.idle_cpu(REST_SECONDS)
            beside = good(server, ALONE_SECONDS)
            closed = [each for each in idlers.closed(waits=False) if each]
    ratio = beside.p(99) / max(alone.p(99), NOISE_MS)
    failed, kept = len(beside.failed()), IDLERS - len(closed)
    measured = (
        f"{failed} of {len(beside.sent)} failed, p99 {beside.p(99):.1f} ms beside {alone.p(99):.1f} alone; "
        f"{kept} kept; at rest {share:.1%} of a core ({resting:.1%} without them)"
    )
    figures = {"p99_alone": alone.p(99), "p99": beside.p(99), "share": share, "share_without": resting, "kept": kept}
    return Outcome(measured, not failed and ratio <= 2 and share <= IDLE_SHARE and kept == IDLERS, figures)


def good(server: rig.Server, seconds: float) -> Ledger:
    """Return what became of good requests in so many seconds."""
    with Load(server.port, RATE) as ledger:
        time.sleep(seconds)
    return ledger


FAULTS = (
    Fault(
        "slow",
        f"{SLOW} slow clients: header drip (default deadline, 10 s), body drip, slow read (deadlines of 6 s)",
        "good clients all served, p99 at most 2x alone; every slow one put out at its deadline",
        slow_clients,
    ),
    Fault(
        "idle",
        f"{IDLERS} idle connections",
        f"good clients unharmed, at rest at most {IDLE_SHARE:.0%} of a core",
        idle_connections,
        limit_seconds=90.0,
    ),
)
