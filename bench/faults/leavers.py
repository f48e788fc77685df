"""Clients that leave early, and a worker that stands still for a while."""

import contextlib
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from bench import cases
from bench.faults import rig
from bench.faults.fault import Fault, NotMeasured, Outcome
from bench.faults.ledger import Load
from bench.faults.tired import SECONDS

EACH, IN_LINE = 60, 60
RATE = 150.0
STOPPED_SECONDS, AROUND_SECONDS = 5.0, 3.0
STUCK_SECONDS = 1.0  # an answer that took longer had to wait for the stopped worker
SETTLE_SECONDS = 8.0

_HEAD = b"POST /%s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
_DIGIT = cases.DIGIT.read_bytes()
_BATCH = cases.batch().encode()
_TIRED = b"POST /v1/models/tired:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n"
_ASK = _TIRED + b'{"instances":[5]}'
_ROWS = re.compile(r'servekit_rows_total\{[^}]*model="tired"[^}]*\} ([0-9.e+]+)')
_WAITING = re.compile(r"^servekit_rows_waiting(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)

MANNERS: dict[str, bytes] = {
    "before sending": b"",
    "in the head": b"POST /predict HTTP/1.1\r\nHo",
    "in the body": _HEAD % (b"predict", len(_DIGIT)) + _DIGIT[:-1],
    "after sending": _HEAD % (b"predict", len(_DIGIT)) + _DIGIT,
    "after sending a batch": _BATCH,
    "in a pipeline": (_HEAD % (b"predict", len(_DIGIT)) + _DIGIT) * 5,
    "in the answer": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 5,
}


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


def _half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    client.close()


ENDINGS: tuple[Callable[[socket.socket], None], ...] = (_reset, _half_close, socket.socket.close)


def leave_early() -> Outcome:
    """Let clients leave at every moment, and from the line for a pass."""
    with rig.new_store() as store:
        rig.add_model(store, "tired", network="bench.faults.tired:Tired")
        with rig.server(store=store) as server, Load(server.port, RATE) as load:
            _leave(server.port, EACH // 4)
            time.sleep(1.0)
            before = _held(server)
            _leave(server.port, EACH)
            computed = _leave_the_line(server)
            after = _settled(server, before)
            waiting = sum(map(float, _WAITING.findall(rig.ask(server.port, "/metrics")[1].decode())))
            tracebacks = server.log().count("Traceback")
    left, failed = len(MANNERS) * EACH, len(load.failed())
    leaks = [name for name in before if after[name] > before[name]]
    measured = (
        f"{left} left, {tracebacks} tracebacks, {failed} of {len(load.sent)} good ones failed; {before} -> {after}; "
        f"of {IN_LINE} that left while they waited {computed} were computed; {waiting:.0f} rows wait at the end"
    )
    is_reached = not (tracebacks or failed or leaks or waiting) and computed <= rig.WORKERS
    return Outcome(measured, is_reached, {"before": before, "after": after, "computed": computed, "left": left})


def _leave(port: int, each: int) -> None:
    for opening in MANNERS.values():
        for number in range(each):
            client = socket.create_connection((rig.HOST, port), timeout=10)
            client.sendall(opening)
            ENDINGS[number % len(ENDINGS)](client)


def _held(server: rig.Server) -> dict[str, int]:
    """Return how many descriptors other than connections of clients the workers hold, and how many such connections."""
    pids = server.pids()
    connections = sum(len(rig.held_by(pid, server.port)) for pid in pids)
    descriptors = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    return {"descriptors": descriptors - connections, "connections": connections}


def _settled(server: rig.Server, before: dict[str, int]) -> dict[str, int]:
    """Return what the workers hold once it is no more than before, or when they have had time enough."""
    until = time.monotonic() + SETTLE_SECONDS
    while any((held := _held(server))[name] > before[name] for name in before) and time.monotonic() < until:
        time.sleep(0.2)
    return held


def _leave_the_line(server: rig.Server) -> int:
    """Keep each worker busy with a long pass, let clients wait behind it and leave; return how many were computed."""
    before = _rows(server)
    with contextlib.ExitStack() as stack:
        first = []
        for _ in range(2 * rig.WORKERS):  # each worker takes some
            client = stack.enter_context(socket.create_connection((rig.HOST, server.port), timeout=60))
            client.sendall(_ASK)
            first.append(client)
            time.sleep(0.05)
        waiting = [socket.create_connection((rig.HOST, server.port), timeout=10) for _ in range(IN_LINE)]
        for client in waiting:
            client.sendall(_ASK)
        time.sleep(0.3)
        for number, client in enumerate(waiting):
            (_reset if number % 2 else socket.socket.close)(client)
        for client in first:
            if not client.recv(2**16).startswith(b"HTTP/1.1 200"):
                raise NotMeasured("a client that stayed got no answer")
    time.sleep(SECONDS + 0.5)
    return round(_rows(server) - before) - len(first)


def _rows(server: rig.Server) -> float:
    return sum(map(float, _ROWS.findall(rig.ask(server.port, "/metrics")[1].decode())))


def stopped_worker() -> Outcome:
    """Stop one worker for 5 s by SIGSTOP."""
    with rig.server() as server:
        with Load(server.port, RATE, timeout=30.0) as load:
            time.sleep(AROUND_SECONDS)
            pid = server.pids()[0]
            held = len(rig.held_by(pid, server.port))
            server.signal(signal.SIGSTOP, pid)
            stopped = time.monotonic()
            time.sleep(STOPPED_SECONDS)
            server.signal(signal.SIGCONT, pid)
            went_on = time.monotonic()
            time.sleep(AROUND_SECONDS)
        died = pid not in server.pids()
    stuck = [each for each in load.sent if each.status == 200 and each.seconds > STUCK_SECONDS]
    newly = [each for each in stuck if not each.is_kept]
    normal, meanwhile, later = load.p(99, 0, stopped), load.p(99, stopped, went_on), load.p(99, went_on + 0.5)
    measured = (
        f"{len(load.failed())} of {len(load.sent)} failed; {len(stuck)} waited for it, and it held {held} connections; "
        f"new connections that waited: {len(newly)}; p99 before {normal:.1f} ms, after {later:.1f} ms"
    )
    figures = {"stuck": len(stuck), "held": held, "p99_before": normal, "p99_meanwhile": meanwhile, "p99_after": later}
    figures["p50_meanwhile"] = load.p(50, stopped, went_on)
    return Outcome(measured, not load.failed() and len(stuck) <= held and not newly and not died, figures)


FAULTS = (
    Fault(
        "leavers",
        f"{len(MANNERS) * EACH} clients that leave early (reset, half-close, close), {IN_LINE} more while they wait for a pass",
        "no traceback, no leak, no good one harmed, no row of theirs computed but of passes that run already",
        leave_early,
    ),
    Fault(
        "stopped",
        f"a worker stopped for {STOPPED_SECONDS:.0f} s",
        "nothing lost; only what it held waits for it; others serve",
        stopped_worker,
    ),
)
