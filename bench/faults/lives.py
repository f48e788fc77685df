"""Servers that lose workers, are told to stop, or reload, under load."""

import contextlib
import signal
import socket
import time
from typing import Any

from bench.faults import rig
from bench.faults.fault import Fault, Outcome
from bench.faults.ledger import Ledger, Load, Sent, linear
from bench.wire import Malformed, parse

KILL_RATE, KILLS, KILL_PAUSE_SECONDS = 150.0, 3, 10.0
NORMAL_SECONDS = 5.0  # of the same load before anything happens
BACK_SECONDS = 2.0  # within which the latencies are to be normal again
NORMAL_FACTOR, NORMAL_MS = 2.0, 10.0  # normal: within this factor of the p99 before, or this many ms more
BURST = 300
STOP_RATE = 300.0
GRACE_SECONDS = 25.0  # Gunicorn's graceful_timeout in servekit/server.py
RELOAD_RATE, RELOADS, RELOAD_PAUSE_SECONDS = 200.0, 20, 2.5
RELOAD_FACTOR = 5.0


# A worker killed.


def kill() -> Outcome:
    """Kill a worker every ten seconds; look at what was lost, and when latencies were as before."""
    kills: list[dict[str, Any]] = []
    with rig.server() as server, Load(server.port, KILL_RATE) as ledger:
        began = time.monotonic()
        time.sleep(NORMAL_SECONDS)
        for number in range(KILLS):
            pid = server.await_workers()[number % rig.WORKERS]
            held = rig.held_by(pid, server.port)
            at = time.monotonic()
            server.signal(signal.SIGKILL, pid)
            kills.append({"at": at, "held": held})
            server.await_workers(without=[pid])
            time.sleep(max(0.0, KILL_PAUSE_SECONDS - (time.monotonic() - at)))
        restarts = server.log().count("A new worker is ready")
    normal = ledger.p(99, began + 1, kills[0]["at"])
    after = [ledger.p(99, each["at"] + BACK_SECONDS, each["at"] + KILL_PAUSE_SECONDS) for each in kills]
    back = [_back_after(ledger, each["at"], normal) for each in kills]
    lost, silent = ledger.failed(), ledger.lost()
    beyond = [each for each in lost if not _was_held(each, kills)]
    is_reached = not beyond and not ledger.wrong() and max(back) <= BACK_SECONDS and restarts == KILLS
    return Outcome(
        f"{len(lost)} of {len(ledger.sent)} lost ({len(lost) - len(silent)} answered 503, {len(silent)} not at all), "
        f"{len(beyond)} of them not held by a killed worker; {len(ledger.wrong())} wrong answers; "
        f"p99 {normal:.1f} ms before, normal again after at most {max(back):.1f} s",
        is_reached,
        {"requests": ledger.statuses(), "p99_before_ms": normal, "p99_after_ms": after, "back_seconds": back,
         "held": [len(each["held"]) for each in kills], "lost_not_held": len(beyond), "restarts": restarts},
    )  # fmt: skip


def _was_held(request: Sent, kills: list[dict[str, Any]]) -> bool:
    """Return whether a request was on a connection that a worker held when it was killed, or got just before."""
    return any(
        (request.port in each["held"] and request.sent < each["at"] + 0.1)
        or (not request.is_kept and 0 <= each["at"] - request.sent < 0.02)
        for each in kills
    )


def _back_after(ledger: Ledger, at: float, normal: float) -> float:
    """Return how many seconds after `at` the latencies of two seconds are normal again."""
    limit = max(NORMAL_FACTOR * normal, normal + NORMAL_MS)
    starts = (0.25 * step for step in range(int(4 * (KILL_PAUSE_SECONDS - BACK_SECONDS))))
    return next((start for start in starts if ledger.p(99, at + start, at + start + BACK_SECONDS) <= limit), KILL_PAUSE_SECONDS)


# A server told to stop.


def sigterm() -> Outcome:
    """Stop a server 10 ms after a burst of requests over connections of their own, and another under load."""
    with rig.server() as server:
        answered, faults = _stop_after_burst(server)
        code_of_burst = server.ended(GRACE_SECONDS + 5)
    with rig.server() as server:
        with Load(server.port, STOP_RATE) as ledger:
            time.sleep(2.0)
            at = time.monotonic()
            server.signal(signal.SIGTERM)
            code = server.ended(GRACE_SECONDS + 5)
            seconds = time.monotonic() - at
        log = server.log()
    before = [each for each in ledger.sent if each.sent < at]
    lost = [each for each in before if each.status != 200]
    later = [each for each in ledger.sent if each.sent >= at and each.status != 200 and each.fault != "refused"]
    is_reached = answered == BURST and not lost and not ledger.wrong() and code_of_burst == code == 0
    return Outcome(
        f"burst: {answered} of {BURST} answered; under {STOP_RATE:.0f}/s: {len(lost)} of {len(before)} sent before lost; "
        f"exit codes {code_of_burst} and {code}, the latter after {seconds:.1f} s",
        is_reached and seconds <= GRACE_SECONDS,
        {"burst_answered": answered, "burst_faults": faults, "sent_before": len(before), "lost_before": len(lost),
         "sent_after_and_broken": len(later), "statuses": ledger.statuses(), "exit_codes": [code_of_burst, code],
         "seconds": seconds, "tracebacks": log.count("Traceback")},
    )  # fmt: skip


def _stop_after_burst(server: rig.Server) -> tuple[int, dict[str, int]]:
    """Send BURST requests, each over its own connection, then SIGTERM; return how many were answered rightly."""
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((rig.HOST, server.port))) for _ in range(BURST // 2)]
        socks += _send_all(stack, server.port, socks)
        time.sleep(0.01)
        server.signal(signal.SIGTERM)
        answers = [_answer(sock) for sock in socks]
    faults: dict[str, int] = {}
    for answer in answers:
        faults[answer] = faults.get(answer, 0) + 1
    return faults.pop("200", 0), faults


def _send_all(stack: contextlib.ExitStack, port: int, socks: list[socket.socket]) -> list[socket.socket]:
    """Send a request on each of `socks`, and on as many new connections; return the new ones."""
    request = linear(1234).encode()
    for sock in socks:
        sock.sendall(request)
    new = []
    for _ in range(BURST - len(socks)):
        new.append(stack.enter_context(socket.create_connection((rig.HOST, port))))
        new[-1].sendall(request)
    return new


def _answer(sock: socket.socket) -> str:
    """Return the status of the answer on a connection, or why there is none."""
    sock.settimeout(GRACE_SECONDS)
    received = b""
    try:
        while (answer := parse(received)) is None:
            if not (data := sock.recv(1 << 14)):
                return "closed"
            received += data
    except (OSError, Malformed) as error:
        return type(error).__name__
    return str(answer[0])


# A server that reloads.


def reload() -> Outcome:
    """Reload again and again under load."""
    with rig.server() as server:
        with Load(server.port, RELOAD_RATE) as quiet:
            time.sleep(NORMAL_SECONDS)
        with Load(server.port, RELOAD_RATE) as ledger:
            for _ in range(RELOADS):
                server.signal(signal.SIGHUP)
                time.sleep(RELOAD_PAUSE_SECONDS)
        server.await_workers(seconds=60)
        log = server.log()
    normal, p99 = quiet.p(99), ledger.p(99)
    failed, done = ledger.failed(), log.count("Hang up: ")
    is_reached = not failed and not ledger.wrong() and p99 <= RELOAD_FACTOR * normal
    return Outcome(
        f"{len(failed)} of {len(ledger.sent)} failed; p99 {p99:.1f} ms, {p99 / normal:.1f} times {normal:.1f} ms",
        is_reached,
        {"statuses": ledger.statuses(), "p99_quiet_ms": normal, "p99_ms": p99, "p50_ms": ledger.p(50),
         "max_ms": ledger.p(100), "reloads": done,
         "workers_replaced": log.count("A new worker is ready"), "tracebacks": log.count("Traceback")},
    )  # fmt: skip


FAULTS = (
    Fault(
        "kill",
        f"a worker killed with -9 every {KILL_PAUSE_SECONDS:.0f} s under {KILL_RATE:.0f} requests/s",
        "lost at most what that worker held; no answer to the wrong request; p99 normal again within 2 s",
        kill,
    ),
    Fault(
        "sigterm",
        f"SIGTERM 10 ms after a burst, and under {STOP_RATE:.0f} requests/s",
        "nothing lost that was sent before, what waits in the accept queue included; exit code 0 within the graceful time",
        sigterm,
    ),
    Fault(
        "reload",
        f"{RELOADS} reloads (SIGHUP), one every {RELOAD_PAUSE_SECONDS} s, at {RELOAD_RATE:.0f} requests/s",
        f"0 failed, p99 of the whole at most {RELOAD_FACTOR:.0f} times normal",
        reload,
    ),
)
