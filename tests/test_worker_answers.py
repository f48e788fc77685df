"""The worker class sends what the application answers, whatever kind of answer it is, and nothing else."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import wsgi_apps
from tests.raw import Client, PlainServer, parse_chunks, plain
from tests.server import wait_for
from tests.wsgi_apps import MEGABYTE, PIECES, UNSENT

WHOLE = b"".join(PIECES)
SECRETS = (b"Traceback", b"secret", b"wsgi_apps", b"RuntimeError")


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    with plain(tmp_path_factory.mktemp("answers")) as server:
        yield server
        assert len(server.workers()) == 1


@pytest.fixture
def client(http: PlainServer) -> Iterator[Client]:
    with http.client() as client:
        yield client


def get(path: str, version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/stream", "/write"])
def test_an_answer_without_a_length_is_sent_in_chunks(client: Client, path: str) -> None:
    answer = client.ask(get(path))
    assert (answer.status, answer.body, answer.headers["transfer-encoding"]) == (200, WHOLE, "chunked")
    assert client.ask(get("/a")).status == 200


@pytest.mark.parametrize("path", ["/stream", "/write"])
def test_an_answer_without_a_length_ends_with_the_connection_for_http_1_0(client: Client, path: str) -> None:
    client.send(get(path, "1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
    (answer,) = client.last_answers()
    assert answer.body == WHOLE
    assert not {"transfer-encoding", "content-length"} & set(answer.headers)
    assert answer.headers.get("connection", "close") == "close"


def test_an_answer_with_a_length_keeps_it(client: Client) -> None:
    for version in ("1.1", "1.1", "1.0"):
        answer = client.ask(get("/stream-length", version))
        assert (answer.body, answer.headers["content-length"]) == (WHOLE, str(len(WHOLE)))
        assert "transfer-encoding" not in answer.headers


def test_no_more_is_sent_than_the_length_says(client: Client) -> None:
    client.send(get("/too-long") + get("/stream-length").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    bodies = [answer.body for answer in client.last_answers()]
    assert bodies in ([b"one"], [b"one", WHOLE])


def test_a_connection_is_closed_when_an_answer_is_shorter_than_it_said(client: Client) -> None:
    client.send(get("/too-short") + get("/canary?too-short"))
    assert client.rest().endswith(b"\r\n\r\none")


@pytest.mark.parametrize("query", ["", "?memory"])
def test_a_file_is_sent_by_the_wrapper(client: Client, query: str) -> None:
    content = MEGABYTE if query else Path(wsgi_apps.__file__).read_bytes()
    for _ in range(2):
        assert client.ask(get("/file" + query)).body == content


@pytest.mark.parametrize(("path", "status"), [("/empty", 204), ("/not-modified", 304)])
def test_an_answer_that_can_have_no_body_has_none(client: Client, path: str, status: int) -> None:
    for version in ("1.1", "1.1", "1.0"):
        client.send(get(path, version))
        answer = client.answer()
        assert answer.status == status and "transfer-encoding" not in answer.headers
    assert UNSENT not in client.rest()


def test_an_application_that_fails_is_a_500_that_gives_nothing_away(http: PlainServer) -> None:
    with http.client() as client:
        answer = client.ask(get("/fail"))
    assert answer.status == 500
    error = json.loads(answer.body)
    assert list(error) == ["error"] and error["error"]
    assert answer.headers["content-type"] == "application/json"
    assert not any(secret in answer.body for secret in SECRETS)
    assert wait_for(lambda: "RuntimeError: a secret of the application" in http.text())
    assert http.ask(get("/a")).status == 200


def test_a_failed_head_is_answered_without_a_body(client: Client) -> None:
    client.send(get("/fail").replace(b"GET", b"HEAD").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert client.answer("HEAD").status == 500
    assert client.rest() == b""


def test_an_answer_that_fails_on_its_way_is_not_made_to_look_whole(client: Client) -> None:
    client.send(get("/fail-late") + get("/canary?late"))
    head, _, body = client.rest().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") or head.startswith(b"HTTP/1.1 500 ")
    if head.startswith(b"HTTP/1.1 200 "):
        assert body.startswith(b"3\r\none\r\n") and parse_chunks(body) is None
    assert not any(secret in body for secret in SECRETS)


def test_nothing_is_run_behind_an_answer_that_failed_on_its_way(http: PlainServer) -> None:
    http.clear_marks()
    with http.client() as client:
        client.send(get("/fail-late") + get("/canary?late"))
        client.rest()
    assert http.marks() == []


def test_an_application_may_change_its_answer_before_any_of_it_is_sent(client: Client) -> None:
    answer = client.ask(get("/fail-then-answer"))
    assert (answer.status, answer.body) == (409, b"one")


def test_a_header_with_a_line_break_from_the_application_is_refused(client: Client) -> None:
    client.send(get("/bad-header").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    data = client.rest()
    assert data.startswith(b"HTTP/1.1 500 ")
    assert b"Set-Cookie" not in data


def test_headers_that_belong_to_the_connection_are_not_the_applications(client: Client) -> None:
    answer = client.ask(get("/hop-by-hop"))
    assert answer.body == b"one"
    assert not {"keep-alive", "transfer-encoding", "te", "upgrade"} & set(answer.headers)


def test_a_connection_that_is_announced_as_closed_is_closed(client: Client) -> None:
    answer = client.ask(get("/close"))
    assert answer.body == b"one"
    assert client.is_closed(0.3) == (answer.headers.get("connection") == "close")


def test_an_answer_is_closed_once_by_the_server(http: PlainServer) -> None:
    http.clear_marks()
    assert len(http.ask(get("/noted?pieces=3")).body) == 3 * 65536
    assert wait_for(http.marks) == ["closed"]
    http.ask(get("/noted?pieces=3").replace(b"GET", b"HEAD"), "HEAD")
    assert wait_for(lambda: http.marks() == ["closed"] * 2)


def test_a_large_answer_reaches_a_slow_reader_whole(http: PlainServer) -> None:
    with http.client(receive_buffer=4096) as client:
        client.send(get("/big?mb=3"))
        for _ in range(10):
            client.read(1)
            time.sleep(0.03)
        assert http.ask(get("/a")).status == 200
        answer = client.answer()
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(MEGABYTE * 3).digest()


def test_large_answers_to_many_readers_arrive_whole(http: PlainServer) -> None:
    clients = [http.client(receive_buffer=65536) for _ in range(12)]
    try:
        for client in clients:
            client.send(get("/big?mb=1") + get("/stream"))
        for client in clients:
            assert client.answer().body == MEGABYTE
            assert client.answer().body == WHOLE
    finally:
        for client in clients:
            client.socket.close()


def test_nothing_that_is_written_ends_no_answer(client: Client) -> None:
    assert client.ask(get("/write-nothing")).body == PIECES[0] + PIECES[1]
