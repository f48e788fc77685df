"""What happens when time or memory runs out, and when a network has a bug: seen through the real server."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import networks
from tests.server import Server, running, wait_for
from tests.versions import write_regressor


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Server]:
    """One worker whose network takes a second and a half, with a deadline far below that."""
    write_regressor(tmp_path / "store", networks.Slow())
    variables = {"SERVEKIT_MODEL_STORE": str(tmp_path / "store"), "SERVEKIT_DEADLINE_SECONDS": "0.3"}
    variables["SERVEKIT_LONG_PASS_SECONDS"] = "0.000001"  # its warm-up does not show how slow it can be
    with running(tmp_path / "log", WEB_CONCURRENCY="1", **variables) as server:
        yield server


def test_a_request_that_waits_past_its_deadline_gets_504(slow: Server) -> None:
    replies: list[tuple[int, object]] = []

    def client() -> None:
        status, _, answer = slow.post_form("/predict", "value=5")
        replies.append((status, answer))

    clients = [threading.Thread(target=client) for _ in range(4)]
    clients[0].start()
    assert wait_for(lambda: networks.IN_PASS in slow.text())
    for each in clients[1:]:
        each.start()
    status, _, _ = slow.get("/health")  # answered while every model is busy
    assert status == 200
    for each in clients:
        each.join()
    # The first has the network to itself and is not interrupted; before it comes the others have waited for 0.3 s in vain.
    late = {"error": "The server was too busy to answer before the deadline; try again later."}
    assert replies[:3] == [(504, late)] * 3 and replies[3][0] == 200
    assert slow.post_form("/predict", "value=5")[0] == 200


def test_memory_that_runs_out_gets_503_and_the_worker_goes_on(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Hungry())
    with running(tmp_path / "log", WEB_CONCURRENCY="1", SERVEKIT_MODEL_STORE=str(tmp_path / "store")) as server:
        workers = server.workers()
        for _ in range(3):
            status, headers, answer = server.post_form("/predict", "value=5")
            assert (status, headers["Retry-After"]) == (503, "1")
            assert answer == {"error": "The server is short of memory; send less at once, or try again later."}
        assert server.post_form("/predict", "value=-5")[0] == 200
        assert server.workers() == workers


def test_a_bug_in_a_network_is_logged_with_its_request_and_told_to_nobody(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Faulty())
    with running(tmp_path / "log", WEB_CONCURRENCY="1", SERVEKIT_MODEL_STORE=str(tmp_path / "store")) as server:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Request-Id": "find-me"}
        status, headers, answer = server.request("POST", "/predict", "value=5", headers)
        assert status == 500
        assert answer == {"error": "The server failed; its log says why, under the X-Request-Id of this answer."}
        assert headers["X-Request-Id"] == "find-me"
        assert wait_for(lambda: "KeyError: 'secret'" in server.text())
        assert "[find-me] A request failed unexpectedly" in server.text()
        assert server.post_form("/predict", "value=-5")[0] == 200


def test_the_body_limit_is_a_setting(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store")
    variables = {"SERVEKIT_MODEL_STORE": str(tmp_path / "store"), "SERVEKIT_MAX_BODY_BYTES": "100"}
    with running(tmp_path / "log", WEB_CONCURRENCY="1", **variables) as server:
        assert server.post_form("/predict", "value=" + "0" * 94)[0] == 400  # read: its model has no finite answer
        status, _, answer = server.post_form("/predict", "value=" + "0" * 95)
        assert (status, answer["error"].split(";")[0]) == (413, "The request is too large")


def test_a_model_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", name="other")
    with running(tmp_path / "log", WEB_CONCURRENCY="1", SERVEKIT_MODEL_STORE=str(tmp_path / "store")) as server:
        status, _, answer = server.post_form("/predict", "value=5")
        assert (status, answer) == (404, {"error": "That model is not loaded; the loaded ones: other."})
        assert f"try      curl http://127.0.0.1:{server.port}/health" in server.text()
