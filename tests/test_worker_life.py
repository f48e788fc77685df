"""A worker's life: it stops, retires, is replaced and reloaded, and no request that was sent is lost."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.raw import WORKER, PlainServer, plain
from tests.server import launch, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.starts]

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n%s\r\nhello"
ONE_SHOT = POST % b"Connection: close\r\n"
PAUSE = 0.002  # between two requests of a client, so that a few clients do not fill the machine


class Load:
    """Clients that send one request after the other, kept-alive or one on a connection, and note what is lost."""

    def __init__(self, server: PlainServer, kept: int = 4, one_shot: int = 4) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._server = server
        self._stop = threading.Event()
        requests = [POST % b""] * kept + [ONE_SHOT] * one_shot
        self._threads = [threading.Thread(target=self._client, args=(request,)) for request in requests]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, request: bytes) -> None:
        while not self._stop.is_set():
            number = 0
            try:
                with self._server.client() as client:
                    while not self._stop.is_set():
                        number += 1
                        answer = client.ask(request)
                        assert (answer.status, answer.body) == (200, b"hello"), answer
                        self.answered += 1
                        time.sleep(PAUSE)
                        if answer.headers.get("connection") == "close":
                            break
            except (AssertionError, OSError) as error:
                self.lost.append(f"request {number} of a connection: {error!r}")
                time.sleep(0.02)

    def goes_on(self, requests: int = 100) -> bool:
        """Wait until so many more requests have been answered; return False if that takes too long."""
        wanted = self.answered + requests
        return bool(wait_for(lambda: self.answered >= wanted, seconds=10))


def free_address() -> str:
    """Return an address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def replaced(server: PlainServer, before: list[int], count: int) -> bool:
    """Wait until `count` workers run and none of `before` does."""

    def is_replaced() -> bool:
        now = server.workers()
        return len(now) == count and not set(now) & set(before)

    return bool(wait_for(is_replaced, seconds=15))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    """A server with two workers that come and go in these tests."""
    with plain(tmp_path_factory.mktemp("two"), "--workers", "2", "--timeout", "2") as server:
        assert wait_for(lambda: server.text().count("a plain worker is ready") == 2)
        yield server
        assert len(server.workers()) == 2
        assert "Traceback" not in server.text()


def test_reloads_under_load_lose_no_request(two: PlainServer) -> None:
    with Load(two) as load:
        for _ in range(2):
            before = two.workers()
            assert load.goes_on()
            two.process.send_signal(signal.SIGHUP)
            assert replaced(two, before, 2)
            assert load.goes_on()
    assert load.lost == []


def test_reloads_under_load_lose_no_kept_connections_request_with_reuse_port(tmp_path: Path) -> None:
    """Each worker then listens for itself; for new connections there is a moment in which the kernel finds nobody."""
    with plain(tmp_path, "--workers", "2", "--reuse-port", bind=[free_address()]) as server, Load(server) as load:
        for _ in range(2):
            before = server.workers()
            assert load.goes_on()
            server.process.send_signal(signal.SIGHUP)
            assert replaced(server, before, 2)
            assert load.goes_on()
    assert [lost for lost in load.lost if not lost.startswith(("request 0 ", "request 1 "))] == []
    assert "Traceback" not in server.text()


def test_more_and_fewer_workers_under_load_lose_no_request(two: PlainServer) -> None:
    with Load(two) as load:
        two.process.send_signal(signal.SIGTTIN)
        assert wait_for(lambda: len(two.workers()) == 3, seconds=10)
        assert load.goes_on()
        two.process.send_signal(signal.SIGTTOU)
        assert wait_for(lambda: len(two.workers()) == 2, seconds=10)
        assert load.goes_on()
    assert load.lost == []


@pytest.mark.parametrize("how", [b"hang", b"hang?sleep"])
def test_a_worker_that_hangs_is_replaced_while_the_other_answers(two: PlainServer, how: bytes) -> None:
    before = two.workers()
    with two.client() as hung:
        hung.send(GET % how)
        time.sleep(0.2)  # one worker has taken it
        with Load(two, kept=2, one_shot=2) as load:
            assert load.goes_on()
            assert [answer.status for answer in hung.last_answers()] in ([], [503], [504])
            assert wait_for(lambda: len(two.workers()) == 2 and two.workers() != before, seconds=10)
            assert load.goes_on()
    assert load.lost == []
    assert len(set(before) & set(two.workers())) == 1


def test_a_worker_retires_under_load_without_losing_a_request(tmp_path: Path) -> None:
    arguments = ["--workers", "2", "--max-requests", "50", "--max-requests-jitter", "10"]
    with plain(tmp_path, *arguments) as server:
        with Load(server) as load:
            assert load.goes_on(600)
        assert load.lost == []
        assert server.text().count("a plain worker is ready") >= 8
        assert "Traceback" not in server.text()


def test_a_lone_worker_retires_and_its_clients_wait_for_the_next(tmp_path: Path) -> None:
    with plain(tmp_path, "--max-requests", "50") as server:
        with Load(server, kept=3, one_shot=3) as load:
            assert load.goes_on(170)
        assert load.lost == []
        assert server.text().count("a plain worker is ready") >= 3


def test_a_stop_right_after_a_burst_answers_all_that_was_sent(tmp_path: Path) -> None:
    with plain(tmp_path) as server:
        clients = [server.client() for _ in range(51)]
        clients[0].send(GET % b"busy?ms=500")
        time.sleep(0.1)  # the worker has taken it, and the others lie in the accept queue
        for client in clients[1:]:
            client.send(POST % b"")
        server.process.send_signal(signal.SIGTERM)
        for client in clients:
            (answer,) = client.last_answers()
            assert answer.status == 200
            client.socket.close()
        assert server.process.wait(timeout=15) == 0
        assert "Traceback" not in server.text()


def test_a_stop_does_not_wait_for_idle_connections_and_finishes_answers(tmp_path: Path) -> None:
    with plain(tmp_path, "--keep-alive", "60") as server:
        idle, silent, reader = server.client(), server.client(), server.client(receive_buffer=4096)
        assert idle.ask(POST % b"").status == 200
        reader.send(GET % b"big?mb=3")
        reader.read(5)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert idle.is_closed(5) and silent.is_closed(5)
        assert len(reader.answer().body) == 3 * 2**20
        assert server.process.wait(timeout=15) == 0
        assert time.monotonic() - started < 8  # below the grace of 10 s
        for client in (idle, silent, reader):
            client.socket.close()
        assert "Traceback" not in server.text()


def test_a_stop_waits_for_a_client_that_is_still_sending_but_not_for_ever(tmp_path: Path) -> None:
    with plain(tmp_path, "--graceful-timeout", "3") as server:
        with server.client() as sending, server.client() as stuck:
            sending.send((POST % b"")[:-5])
            stuck.send((POST % b"")[:-5])
            assert server.ask(GET % b"echo").status == 200
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            sending.send(b"hello")
            assert [answer.body for answer in sending.last_answers()] == [b"hello"]
            started = time.monotonic()
            assert server.process.wait(timeout=15) == 0
            assert time.monotonic() - started < 8
        assert "Traceback" not in server.text()


def test_a_worker_that_is_still_starting_hears_of_a_stop(tmp_path: Path) -> None:
    with plain(tmp_path) as server:
        server.process.send_signal(signal.SIGTTIN)
        assert wait_for(lambda: server.text().count("Booting worker") == 2, seconds=10)
        time.sleep(0.03)  # Gunicorn itself is deaf for the first moment after it has forked
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert server.process.wait(timeout=15) == 0
        assert time.monotonic() - started < 5  # not killed at the end of the grace of 10 s


def test_a_killed_master_takes_its_workers_with_it(tmp_path: Path) -> None:
    with plain(tmp_path) as server:
        (worker,) = server.workers()
        server.process.kill()
        assert server.process.wait(timeout=10) == -signal.SIGKILL
        assert wait_for(lambda: not os.path.exists(f"/proc/{worker}"), seconds=10)


def test_tls_is_refused_at_the_start_with_a_way_out(tmp_path: Path) -> None:
    for name in ("certificate", "key"):
        (tmp_path / name).write_text("not read before it is refused")
    files = ["--certfile", str(tmp_path / "certificate"), "--keyfile", str(tmp_path / "key")]
    settings = {"SERVEKIT_MODEL_STORE": str(tmp_path), "WEB_CONCURRENCY": "1"}
    server = launch(tmp_path / "log", "--worker-class", WORKER, *files, **settings)
    try:
        assert server.process.wait(timeout=30) != 0
    finally:
        server.process.kill()
    assert "Traceback" not in server.text()
    assert "gthread" in server.text()
