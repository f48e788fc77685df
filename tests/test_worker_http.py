"""The worker class speaks HTTP/1.1: connections, framing, pipelines, interim answers."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.raw import Answer, PlainServer, plain
from tests.wsgi_apps import PIECES

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
EXPECTING = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n"
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    with plain(tmp_path_factory.mktemp("http"), SERVEKIT_MAX_BODY_BYTES=str(LIMIT)) as server:
        yield server
        assert len(server.workers()) == 1
        assert "Traceback" not in server.text()


def path_of(answer: Answer) -> Any:
    assert answer.status == 200, answer
    return answer.json()["environ"]["PATH_INFO"]


def test_a_connection_is_kept_for_the_next_request(http: PlainServer) -> None:
    with http.client() as client:
        for path in ("a", "b", "c"):
            answer = client.ask(GET % path.encode())
            assert path_of(answer) == f"/{path}"
            assert answer.headers.get("connection", "keep-alive") == "keep-alive"
        assert not client.is_closed()


def test_connection_close_is_obeyed_and_announced(http: PlainServer) -> None:
    for value in (b"close", b"Close", b"foo, close"):
        with http.client() as client:
            answer = client.ask(b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n\r\n" % value)
            assert answer.headers["connection"] == "close"
            assert client.is_closed(2)


def test_nothing_behind_a_request_that_closes_is_run(http: PlainServer) -> None:
    with http.client() as client:
        client.send(LAST + GET % b"canary?behind-close")
        assert [path_of(answer) for answer in client.last_answers()] == ["/last"]
    assert "GET behind-close" not in http.marks()


def test_fifty_requests_sent_at_once_are_answered_in_order(http: PlainServer) -> None:
    with http.client() as client:
        client.send(b"".join(GET % str(number).encode() for number in range(50)) + LAST)
        paths = [path_of(answer) for answer in client.last_answers()]
    assert paths == [f"/{number}" for number in range(50)] + ["/last"]


def test_a_pipeline_of_all_kinds_of_requests_is_answered_in_order(http: PlainServer) -> None:
    with http.client() as client:
        client.send(GET % b"busy?ms=50" + CHUNKED + POST + GET % b"stream" + CHUNKED + GET % b"empty" + POST + LAST)
        *answers, last = client.last_answers()
    assert [answer.body for answer in answers] == [
        b"",
        b"hello world",
        b"hello",
        b"".join(PIECES),
        b"hello world",
        b"",
        b"hello",
    ]
    assert path_of(last) == "/last"


def test_a_pipeline_goes_on_after_a_client_has_said_that_it_sends_no_more(http: PlainServer) -> None:
    with http.client() as client:
        client.send(POST + CHUNKED + GET % b"busy?ms=50")
        client.finish()
        assert [answer.body for answer in client.last_answers()] == [b"hello", b"hello world", b""]


def test_a_request_may_arrive_a_byte_at_a_time(http: PlainServer) -> None:
    with http.client() as client:
        client.send(CHUNKED, step=1)
        assert client.answer().body == b"hello world"
        client.send(POST + GET % b"next", step=1)
        assert client.answer().body == b"hello"
        assert path_of(client.answer()) == "/next"


def test_a_body_may_come_after_its_head_and_with_the_next_head(http: PlainServer) -> None:
    with http.client() as client:
        client.send(POST[:-5], step=len(POST), pause=0.1)
        client.send(POST[-5:] + POST[:20], step=len(POST), pause=0.1)
        assert client.answer().body == b"hello"
        assert client.ask(POST[20:]).body == b"hello"


def test_empty_lines_before_a_request_are_skipped(http: PlainServer) -> None:
    with http.client() as client:
        assert client.ask(POST).body == b"hello"
        assert client.ask(b"\r\n" + POST).body == b"hello"


def test_chunks_may_have_extensions_and_any_way_to_write_hexadecimal(http: PlainServer) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
    body = b'5;name=value\r\nhello\r\n0a;a;b="c d"\r\n0123456789\r\nF\r\n0123456789abcde\r\n000\r\n\r\n'
    with http.client() as client:
        assert client.ask(head + body).body == b"hello01234567890123456789abcde"
        assert client.ask(POST).body == b"hello"


def test_trailers_are_dropped(http: PlainServer) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    with http.client() as client:
        trailers = b"X-Sum: 1\r\nCookie: a=b\r\nX-Forwarded-Proto: https\r\n"
        seen = client.ask(head + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n").json()
        assert seen["body"] == 5
        assert seen["environ"]["wsgi.url_scheme"] == "http"
        assert not {"HTTP_X_SUM", "HTTP_COOKIE", "HTTP_X_FORWARDED_PROTO"} & set(seen["names"])
        assert client.ask(POST).body == b"hello"


def test_a_chunked_body_is_read_whole_and_its_length_is_not_a_lie(http: PlainServer) -> None:
    content = bytes(range(256)) * 2000
    parts = [content[:1], content[1:70_000], content[70_000:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    seen = http.ask(head + chunks + b"0\r\n\r\n").json()
    assert (seen["body"], seen["sha"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert seen["environ"].get("CONTENT_LENGTH", str(len(content))) == str(len(content))


def test_a_large_body_is_read_whole(http: PlainServer) -> None:
    content = bytes(range(256)) * (LIMIT // 256)
    seen = http.ask(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)).json()
    assert (seen["body"], seen["sha"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert seen["environ"]["CONTENT_LENGTH"] == str(len(content))


def test_the_body_of_a_get_is_not_the_next_request(http: PlainServer) -> None:
    inner = GET % b"canary?in-a-body"
    with http.client() as client:
        head = b"GET /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        assert client.ask(head % len(inner) + inner).body == inner
        unread = b"DELETE /empty HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        assert client.ask(unread % len(inner) + inner).status == 204
        assert path_of(client.ask(GET % b"next")) == "/next"
    assert "GET in-a-body" not in http.marks()


def test_a_client_that_expects_it_is_told_to_go_on_before_it_sends_its_body(http: PlainServer) -> None:
    with http.client() as client:
        for _ in range(2):
            interim = client.ask(EXPECTING % 5)
            assert (interim.status, interim.headers) == (100, {})
            assert client.ask(b"hello").body == b"hello"


def test_a_client_that_expects_it_may_send_its_body_at_once(http: PlainServer) -> None:
    with http.client() as client:
        client.send(EXPECTING % 5 + b"hello" + LAST)
        answers = [answer for answer in client.last_answers() if answer.status != 100]
    assert answers[0].body == b"hello"
    assert path_of(answers[1]) == "/last"


def test_a_chunked_body_may_be_expected_too(http: PlainServer) -> None:
    head, _, body = CHUNKED.partition(b"\r\n\r\n")
    with http.client() as client:
        assert client.ask(head + b"\r\nexpect: 100-Continue\r\n\r\n").status == 100
        assert client.ask(body).body == b"hello world"


def test_a_client_is_told_to_go_on_after_the_answers_before(http: PlainServer) -> None:
    with http.client() as client:
        client.send(GET % b"busy?ms=50" + EXPECTING % 5)
        assert client.answer().status == 200
        assert client.answer().status == 100
        assert client.ask(b"hello").body == b"hello"


def test_a_client_is_not_told_to_go_on_with_a_body_over_the_limit(http: PlainServer) -> None:
    with http.client() as client:
        client.send(EXPECTING % (LIMIT + 1))
        answers = client.last_answers()
    assert len(answers) == 1 and answers[0].status != 100


def test_a_client_of_http_1_0_is_never_told_to_go_on(http: PlainServer) -> None:
    with http.client() as client:
        client.send((EXPECTING % 5).replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
        assert [answer.body for answer in client.last_answers()] == [b"hello"]


def test_an_unknown_expectation_is_refused(http: PlainServer) -> None:
    with http.client() as client:
        client.send(b"POST /canary?expected HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: cake\r\n\r\nhello")
        assert [answer.status for answer in client.last_answers()] == [417]
    assert "POST expected" not in http.marks()


def test_http_1_0_closes_unless_asked_to_keep_the_connection(http: PlainServer) -> None:
    with http.client() as client:
        client.send(b"GET /a HTTP/1.0\r\n\r\n")
        assert [path_of(answer) for answer in client.last_answers()] == ["/a"]
    with http.client() as client:
        for path in ("/a", "/b"):
            answer = client.ask(b"GET %s HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" % path.encode())
            assert path_of(answer) == path
            assert answer.headers["connection"] == "keep-alive"
        assert not client.is_closed()


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, HTTP/2.0"])
@pytest.mark.parametrize("step", [0, 1])
def test_an_invitation_to_another_protocol_is_declined(http: PlainServer, protocol: bytes, step: int) -> None:
    invitation = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\nUpgrade: %s\r\n\r\n" % protocol
    with http.client() as client:
        for request in (GET % b"echo", POST, CHUNKED, (GET % b"canary?declined").replace(b"GET", b"HEAD"), POST):
            client.send(request.replace(b"\r\n\r\n", b"\r\n" + invitation, 1), step=step)
            answer = client.answer(request.split()[0].decode())
            assert answer.status == 200
            assert answer.body == {POST: b"hello", CHUNKED: b"hello world"}.get(request, b"")
        client.send(POST.replace(b"\r\n\r\n", b"\r\n" + invitation, 1) + CHUNKED + LAST)
        assert [answer.body for answer in client.last_answers()][:2] == [b"hello", b"hello world"]


def test_head_has_the_headers_of_get_and_no_body(http: PlainServer) -> None:
    with http.client() as client:
        for path in (b"stream-length", b"big?mb=1"):
            got = client.ask(GET % path)
            asked = client.ask((GET % path).replace(b"GET", b"HEAD"), "HEAD")
            assert asked.headers["content-length"] == got.headers["content-length"] == str(len(got.body))
        for path in (b"stream", b"file", b"write"):
            assert client.ask((GET % path).replace(b"GET", b"HEAD"), "HEAD").status == 200
        assert path_of(client.ask(GET % b"next")) == "/next"


def test_methods_are_words_of_any_kind(http: PlainServer) -> None:
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "get", "BREW", "M-SEARCH"):
        with http.client() as client:
            answer = client.ask(method.encode() + b" /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            if answer.status == 200:
                assert json.loads(answer.body)["environ"]["REQUEST_METHOD"] == method
            else:
                assert answer.status in (400, 405, 501) and method in ("get", "BREW", "M-SEARCH")
            assert client.is_closed(2)


def test_many_connections_at_once_are_all_answered(http: PlainServer) -> None:
    clients = [http.client() for _ in range(100)]
    try:
        for number, client in enumerate(clients):
            client.send(GET % str(number).encode())
        for number, client in enumerate(clients):
            assert path_of(client.answer()) == f"/{number}"
    finally:
        for client in clients:
            client.socket.close()


def test_white_space_around_a_value_is_not_part_of_it(http: PlainServer) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost:  x \r\nTransfer-Encoding: chunked \r\nConnection: close \r\n\r\n"
    assert http.ask(head + b"2\r\nab\r\n0\r\n\r\n").body == b"ab"
