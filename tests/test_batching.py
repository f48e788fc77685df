"""Requests that arrive together, networks that are slow, full or hang: through the real server."""

import contextlib
import os
import re
import select
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from torch import nn

from tests import networks
from tests.server import Server, running, wait_for
from tests.versions import write_regressor

pytestmark = [pytest.mark.slow, pytest.mark.starts]

TIMEOUT = 3  # Gunicorn's, where a network hangs


@contextlib.contextmanager
def serving(tmp_path: Path, network: nn.Module, *arguments: str, workers: int = 1, **settings: str) -> Iterator[Server]:
    """Run a server over one regressor with `network`."""
    write_regressor(tmp_path / "store", network)
    variables = {f"SERVEKIT_{name.upper()}": value for name, value in settings.items()}
    variables |= {"SERVEKIT_MODEL_STORE": str(tmp_path / "store"), "WEB_CONCURRENCY": str(workers)}
    with running(tmp_path / "log", *arguments, **variables) as server:
        yield server


def form(value: str) -> bytes:
    return (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded"
        f"\r\nContent-Length: {len(value) + 6}\r\n\r\nvalue={value}"
    ).encode()


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(30)
    return b"".join(iter(lambda: connection.recv(65536), b""))


def at_once(server: Server, values: Sequence[str]) -> list[bytes]:
    """Send a request for each value so that the one worker finds all of them in the same turn; return the answers."""
    [worker] = server.workers()
    with contextlib.ExitStack() as stack:
        address, before = ("127.0.0.1", server.port), len(os.listdir(f"/proc/{worker}/fd"))
        connections = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in values]
        wait_for(lambda: len(os.listdir(f"/proc/{worker}/fd")) >= before + len(values), seconds=1)  # accepted
        os.kill(worker, signal.SIGSTOP)
        for connection, value in zip(connections, values, strict=True):
            connection.sendall(form(value))
        os.kill(worker, signal.SIGCONT)
        return [read_all(connection) for connection in connections]


def statuses(answers: Sequence[bytes]) -> list[int]:
    return [int(answer[9:12]) for answer in answers]


def sample(server: Server, name: str) -> float:
    found = re.search(rf"^{name}\S* (\S+)$", server.get("/metrics")[2].decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_requests_that_arrive_together_share_a_pass_and_get_their_own_answers(tmp_path: Path) -> None:
    with serving(tmp_path, networks.Double()) as server:
        passes, rows = "servekit_inference_duration_seconds_count", "servekit_rows_total"
        before = sample(server, passes), sample(server, rows)
        answers = at_once(server, [str(number) for number in range(20)])
        assert statuses(answers) == [200] * 20
        assert [float(re.search(rb'"prediction":([\d.]+)', answer)[1]) for answer in answers] == [2 * n for n in range(20)]
        assert sample(server, rows) - before[1] == 20
        assert sample(server, passes) - before[0] <= 3


def test_what_cannot_be_read_fails_alone_and_before_the_batch(tmp_path: Path) -> None:
    with serving(tmp_path, networks.Double()) as server:
        rows = sample(server, "servekit_rows_total")
        assert statuses(at_once(server, ["1", "many", "2", "nan", "3"])) == [200, 400, 200, 400, 200]
        assert sample(server, "servekit_rows_total") - rows == 3


def test_when_a_batch_fails_only_the_culprit_does(tmp_path: Path) -> None:
    with serving(tmp_path, networks.Faulty()) as server:
        assert statuses(at_once(server, ["-1", "-2", "5", "-3", "-4"])) == [200, 200, 500, 200, 200]
        assert server.text().count("A request failed unexpectedly") == 1


def test_above_the_limit_of_what_may_wait_503_says_when_to_try_again(tmp_path: Path) -> None:
    with serving(tmp_path, networks.Double(), max_waiting="5") as server:
        answers = at_once(server, [str(number) for number in range(20)])
        assert set(statuses(answers)) == {200, 503}
        assert statuses(answers).count(200) >= 5
        refused = next(answer for answer in answers if answer.startswith(b"HTTP/1.1 503"))
        assert re.search(rb"\r\nRetry-After: [1-9]\d*\r\n", refused)
        assert refused.endswith(b'{"error":"The server is too busy to take this request; try again later."}\n')
        assert server.post_form("/predict", "value=5")[0] == 200


def test_a_long_pass_does_not_deafen_the_loop(tmp_path: Path) -> None:
    with serving(tmp_path, networks.Slow(), long_pass_seconds="0.000001") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
            slow.sendall(form("5"))
            assert wait_for(lambda: networks.IN_PASS in server.text())
            for _ in range(5):
                assert server.get("/health")[0] == 200
            waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(4)]
            for connection in waiting:
                connection.sendall(form("6"))
            assert not select.select([slow], [], [], 0)[0]  # its pass goes on
            assert statuses([read_all(connection) for connection in [slow, *waiting]]) == [200] * 5
            assert server.text().count(networks.IN_PASS) == 2  # the four shared the pass after the first one
            for connection in waiting:
                connection.close()


def test_a_request_that_came_while_the_loop_was_deaf_is_late_by_when_it_came(tmp_path: Path) -> None:
    """Its network is quick at the warm-up, so it runs in the loop; the next request waits unseen in the system."""
    with serving(tmp_path, networks.Slow(), deadline_seconds="0.5") as server:
        address = ("127.0.0.1", server.port)
        with socket.create_connection(address, timeout=30) as first, socket.create_connection(address, timeout=30) as second:
            first.sendall(form("5"))
            assert wait_for(lambda: networks.IN_PASS in server.text())
            second.sendall(form("6"))
            assert statuses([read_all(first), read_all(second)]) == [200, 504]


@pytest.mark.parametrize("long_pass_seconds", ["0.000001", "10"])
def test_a_pass_that_never_comes_back_costs_one_worker_and_those_who_wait_for_it_hear_so(
    tmp_path: Path, long_pass_seconds: str
) -> None:
    arguments = ("--timeout", str(TIMEOUT))
    with serving(tmp_path, networks.Hanging(), *arguments, workers=2, long_pass_seconds=long_pass_seconds) as server:
        before = server.workers()
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as hanging:
            started = time.monotonic()
            hanging.sendall(form("5"))
            assert wait_for(lambda: networks.IN_PASS in server.text())
            for _ in range(20):  # the other worker goes on, and where the pass runs beside the loop this one does
                assert server.get("/health")[0] == 200
            answer = read_all(hanging)
        assert answer.startswith(b"HTTP/1.1 504 ") and b'{"error": "The server did not come to an answer' in answer
        assert time.monotonic() - started < 2 * TIMEOUT
        assert wait_for(lambda: len(set(server.workers()) & set(before)) == 1 and len(server.workers()) == 2)
        assert "Nothing has come back for" in server.text() and "in forward" in server.text()
        assert wait_for(lambda: "A new worker is ready" in server.text())
        assert b'servekit_worker_restarts_total{reason="stuck"} 1.0' in server.get("/metrics")[2]
        assert server.post_form("/predict", "value=-5")[0] == 200
