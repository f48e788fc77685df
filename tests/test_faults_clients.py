"""What hostile and hasty clients do, and what a machine does that has no room left: each a short twin of a fault of the bench."""

import contextlib
import logging
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.faults.corpus import generate
from bench.faults.greedy import GREEDS, send
from bench.faults.leavers import ENDINGS, MANNERS
from bench.faults.malformed import canaries, send_all
from servekit.batcher import Batcher
from servekit.clients import Clients
from servekit.connection import Connection, Phase
from servekit.descriptors import QUIET_SECONDS, RESERVE, Shortage, room_for
from servekit.engines.echo import EchoEngine
from servekit.errors import ClientLeft
from servekit.gateway import Response
from servekit.http1 import Limits, Request, RequestParser
from servekit.logs import Losses, TextFormatter
from servekit.refusals import LINES_PER_SECOND, Refusals
from servekit.turns import Turns
from tests.raw import plain
from tests.server import Server, running, wait_for

LIMITS = Limits(1000, 20, 500, 100_000)
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SECOND = "1"  # of every deadline of a client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[Server]:
    """A server with one worker, short deadlines, and an access log on a full disk."""
    deadlines = {f"SERVEKIT_{name}_SECONDS": SECOND for name in ("HEADER", "BODY", "WRITE")}
    options = {"SERVEKIT_MODEL_STORE": str(store), "WEB_CONCURRENCY": "1", "SERVEKIT_MANAGEMENT": "true"} | deadlines
    log = tmp_path_factory.mktemp("served") / "log"
    with running(log, "--access-logfile", "/dev/full", **options) as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers
        assert "Traceback" not in server.text()


def descriptors(server: Server) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.workers())


# Requests that are none.


def test_malformed_requests_do_no_damage_and_smuggle_nothing(served: Server) -> None:
    before = canaries(served.port)
    assert served.get("/health/live")[0] == 200
    assert canaries(served.port) == before + 1  # it is counted
    for case, statuses, _ in send_all(served.port, generate(600, seed=5)):
        assert not {status for status in statuses if status >= 500} - {501, 505}, case.data
        if case.kind.startswith("framing"):
            assert len(statuses) <= 1 and not set(statuses) & {200}, case.data
    assert canaries(served.port) == before + 1


def test_the_same_seed_gives_the_same_requests() -> None:
    assert list(generate(50, seed=1)) == list(generate(50, seed=1)) != list(generate(50, seed=2))


@pytest.mark.parametrize("kind", GREEDS)
@pytest.mark.parametrize("path", ["/predict", "/v1/models/linear:predict", "/v2/models/linear/infer", "/predictions/linear"])
def test_what_is_too_large_is_refused_and_its_connection_closed(served: Server, path: str, kind: str) -> None:
    status, seconds, is_closed = send(served.port, path, "application/json", GREEDS[kind])
    assert status in (413, 400) and is_closed
    assert seconds < 5


def test_a_chunked_body_over_the_limit_is_not_kept_and_looks_like_one_that_was_announced() -> None:
    parser = RequestParser(Limits(1000, 20, 500, 10))
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\nhello!\r\n")
    (request,) = parser.requests
    assert (request.body, request.length, request.is_cut, request.keep_alive) == (b"", 11, True, False)


def test_a_body_that_arrives_in_pieces_is_whole() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    for piece in (b"one", b"two", b"six"):
        parser.feed(piece)
    assert parser.requests[0].body == b"onetwosix"


def test_an_answer_of_413_closes_the_connection() -> None:
    sent: list[bytes] = []
    response = Response(Request(), True, lambda data, is_last: sent.append(data))
    response.start_response("413 Too Large", [("Content-Length", "0")])
    response.write(b"")
    assert not response.keep_alive


# Refusals before the application.


def test_a_refusal_has_an_id_and_a_line_with_nothing_of_the_client_in_it(served: Server) -> None:
    def lines_of_one_more() -> list[str]:
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
            client.sendall(b"GET /\x1b[31minjected HTTP/1.1\r\nHost: x\r\nX-Request-Id: injected\r\n\r\n")
            answer = client.recv(2**16).decode()
        (identity,) = [line[14:] for line in answer.split("\r\n") if line.startswith("X-Request-Id: ")]
        return [line for line in served.text().splitlines() if identity in line]

    lines = wait_for(lines_of_one_more)  # others may have had all the lines of this second
    assert "127.0.0.1 was refused with 400: The request is not valid HTTP/1.1." in lines[0]
    assert "injected" not in served.text()


def test_refusals_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    now, counted, shed = [100.0], [], []
    refusals = Refusals(counted.append, shed.append, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, "servekit.refusals"):
        identities = {refusals.note(HTTPStatus.BAD_REQUEST, "There is no Host.", "::1") for _ in range(1000)}
        refusals.flush()
        assert len(caplog.messages) == LINES_PER_SECOND
        now[0] += 1
        refusals.flush()
        refusals.flush()
    assert len(identities) == len(counted) == 1000
    assert not shed
    refusals.note(HTTPStatus.SERVICE_UNAVAILABLE, "The server holds too many bodies; try again later.", "::1")
    assert shed == ["bodies"]
    assert caplog.messages[0] == "::1 was refused with 400: There is no Host."
    assert caplog.messages[LINES_PER_SECOND:][:1] == [
        f"{1000 - LINES_PER_SECOND} more requests were refused within a second; servekit_requests_total counts them."
    ]


# Clients that leave.


def test_clients_that_leave_early_leave_nothing_behind(served: Server) -> None:
    before = descriptors(served) + 2
    for opening in MANNERS.values():
        for ending in ENDINGS:
            client = socket.create_connection(("127.0.0.1", served.port), timeout=10)
            client.sendall(opening)
            ending(client)
    assert served.post_form("/predict", "value=5")[0] == 200
    assert wait_for(lambda: descriptors(served) <= before)


class Loop:
    """A `Clients` without a worker: one connection whose request never ends by itself."""

    def __init__(self, **seconds: float) -> None:
        self.abandoned: list[Any] = []
        self.requests: list[Request] = []
        each = {phase: float(seconds.get(phase.value, 10.0)) for phase in Phase} | {Phase.BUSY: float("inf")}
        self.selector = selectors.DefaultSelector()
        self.clients = Clients(
            self.selector, LIMITS, each, self._run, lambda *_: "id", lambda: None, lambda _: None,
            self.abandoned.append,
        )  # fmt: skip
        ours, self.client = socket.socketpair()
        ours.setblocking(False)
        self.client.settimeout(5)
        self.client.sendall(GET)
        self.clients.add(ours, {"REMOTE_ADDR": "", "SERVER_PORT": "80"})

    def _run(self, connection: Connection, request: Request) -> None:
        self.requests.append(request)
        self.connection = connection
        connection.request = "the request"  # type: ignore[assignment]

    def look(self) -> None:
        """Do what a turn and a tick do."""
        self.clients.attend(self.connection, self.clients.on_readable)
        self.clients.expire(time.monotonic())


@pytest.fixture
def start() -> Iterator[Callable[..., Loop]]:
    """What makes a `Loop`; all of them are closed at the end."""
    loops: list[Loop] = []

    def make(**seconds: float) -> Loop:
        loops.append(Loop(**seconds))
        return loops[-1]

    yield make
    for loop in loops:
        loop.clients.drop(loop.connection)
        loop.selector.close()
        loop.client.close()


def test_a_client_that_has_closed_is_found_out_and_its_request_abandoned(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.client.close()
    loop.look()
    assert loop.abandoned == ["the request"]
    assert not loop.clients


def test_a_client_that_only_sends_no_more_gets_its_answer(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.client.shutdown(socket.SHUT_WR)
    for _ in range(3):
        loop.look()
    assert loop.abandoned == [] and len(loop.clients) == 1
    loop.clients.send(loop.connection, b"the answer", is_last=True)
    loop.clients.finished(loop.connection, keep_alive=True)
    assert loop.client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\nthe answer"


def test_what_waits_of_an_abandoned_request_is_not_computed() -> None:
    passes: list[int] = []
    gate = threading.Event()

    class Slow(EchoEngine):
        def __call__(self, tensors: Any) -> Any:
            passes.append(len(tensors["x"]))
            assert gate.wait(10)
            return tensors

    turns = Turns(lambda: None)
    batcher = Batcher(Slow(), max_batch_rows=1, is_long=True)
    batcher_error: list[BaseException] = []
    requests: list[Any] = []

    def request() -> None:
        from greenlet import getcurrent

        requests.append(getcurrent())
        try:
            _run(turns, batcher)
        except ClientLeft as error:
            batcher_error.append(error)

    for _ in range(3):
        turns.start(request)
    assert wait_for(lambda: passes == [1])
    turns.abandon(requests[1])
    turns.turn()
    assert len(batcher_error) == 1
    gate.set()
    assert wait_for(lambda: turns.turn() or len(passes) == 2)
    time.sleep(0.05)
    turns.turn()
    assert passes == [1, 1]


def _run(turns: Turns, batcher: Batcher) -> None:
    from servekit.batcher import Job

    job = Job(batcher, {"x": np.zeros((1, 1))}, 1, time.monotonic() + 10)
    turns.run([job])
    if job.error:
        raise job.error


# Clients that read slowly, and a process that has been away.


def test_one_that_does_not_read_is_put_out_and_its_system_told_at_once(served: Server) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
        client.settimeout(10)
        client.connect(("127.0.0.1", served.port))
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 14)
        time.sleep(float(SECOND) + 1.5)
        with pytest.raises(ConnectionError):
            while client.recv(2**16):
                pass
    assert served.get("/health")[0] == 200


def test_a_request_that_came_while_the_process_stood_still_is_not_late(start: Callable[..., Loop]) -> None:
    loop = start(idle=0.0)
    loop.clients.finished(loop.connection, keep_alive=True)
    loop.client.sendall(GET)
    loop.clients.expire(time.monotonic() + 100)  # before it has been read
    assert len(loop.clients) == 1
    loop.clients.attend(loop.connection, loop.clients.on_readable)
    assert len(loop.requests) == 2


def test_one_that_reads_slowly_makes_room_once_it_has_had_its_time(start: Callable[..., Loop]) -> None:
    loop = start(writing=0.0)
    loop.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop.clients.send(loop.connection, bytes(2**20), is_last=True)
    loop.clients.finished(loop.connection, keep_alive=True)
    assert loop.connection.phase is Phase.WRITING
    time.sleep(0.01)
    assert loop.clients.can_make_room() and loop.clients.make_room()
    assert not loop.clients


def test_answers_that_nobody_takes_are_bounded(start: Callable[..., Loop]) -> None:
    loop = start()
    loop.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop.clients.send(loop.connection, bytes(10 * LIMITS.body), is_last=True)
    loop.clients.finished(loop.connection, keep_alive=True)
    loop.clients.advance_ready()
    assert not loop.clients


# A machine that has no room left.


def test_an_access_log_that_cannot_be_written_is_said_once(served: Server) -> None:
    for _ in range(20):
        assert served.post_form("/predict", "value=5")[0] == 200
    assert served.text().count("No space left on device") == 1
    assert "A log cannot be written (No space left on device); requests are served, and lines are lost: " in served.text()


def test_lost_lines_are_said_again_after_a_while(capfd: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter())
    losses = Losses(handler, clock=lambda: now[0])
    for _ in range(100):
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            losses.note()
        now[0] += 1.0
    lines = capfd.readouterr().err.splitlines()
    assert [line.rpartition("lost: ")[2] for line in lines] == ["1 so far.", "61 so far."]


def test_the_limit_of_descriptors_is_raised_as_far_as_it_goes_and_else_bounds_the_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    now = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now + RESERVE + 50, hard))
        assert room_for(20) == 20
        if hard == resource.RLIM_INFINITY or hard > now + 2000:
            assert room_for(1000) == 1000
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shortage_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    shortage = Shortage(clock=lambda: now[0])
    for _ in range(1000):
        shortage.note(OSError(24, "Too many open files"))
        now[0] += QUIET_SECONDS / 500
    assert len(caplog.messages) == 2
    assert "ulimit -n" in caplog.messages[0]


@pytest.mark.slow
def test_without_descriptors_idle_connections_make_room(tmp_path: Path) -> None:
    with plain(tmp_path, "--keep-alive", "60") as server:
        (worker,) = server.workers()
        most = server.descriptors() + 10
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (most, most))
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                client = stack.enter_context(server.client())
                assert client.ask(b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n").status == 204
            assert client.ask(b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n").status == 204
        assert server.text().count("Too many open files") == 1
        assert server.workers() == [worker]


@pytest.mark.slow
def test_while_a_worker_stands_still_the_other_serves_and_then_it_does_too(tmp_path: Path) -> None:
    with plain(tmp_path, "--workers", "2", "--keep-alive", "60") as server, contextlib.ExitStack() as stack:
        assert wait_for(lambda: server.text().count("Booting worker") == 2 and len(server.workers()) == 2)
        time.sleep(1.0)
        kept = [stack.enter_context(server.client()) for _ in range(8)]
        for client in kept:
            assert client.ask(b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n").status == 204
        still = server.workers()[0]
        os.kill(still, signal.SIGSTOP)
        try:
            for client in kept:
                client.send(b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n")
            for _ in range(20):
                with server.client() as client:
                    assert client.ask(b"GET /empty HTTP/1.1\r\nHost: x\r\n\r\n").status == 204
        finally:
            os.kill(still, signal.SIGCONT)
        assert [client.answer().status for client in kept] == [204] * 8
