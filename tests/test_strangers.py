"""Clients without a key, where keys are asked for: they are told so before they send much, and nothing of it is kept."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from servekit.http1 import MAX_STRANGERS_BODY, Limits, RequestParser
from tests.raw import Client
from tests.server import Server, running

KEY, OWNER = "a-key-of-some-client", "the-key-of-the-owner"
MIB = 2**20
LIMITS = Limits(line=4094, fields=20, field_size=1000, body=4 * MAX_STRANGERS_BODY)
SIZED, CHUNKED = b"Content-Length: %d\r\n", b"Transfer-Encoding: chunked\r\n"
EXPECT = b"Expect: 100-continue\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"


def post(*fields: bytes, key: str = "", path: str = "/predict", body: bytes = b"") -> bytes:
    head = [b"POST %b HTTP/1.1\r\nHost: x\r\n" % path.encode(), *fields]
    if key:
        head.append(b"Authorization: Bearer %b\r\n" % key.encode())
    return b"".join([*head, b"\r\n", body])


class Asked:
    """A ring with one key that notes what it is asked."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def knows(self, authorization: str) -> bool:
        self.values.append(authorization)
        return authorization == f"Bearer {KEY}"


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def parser(asked: Asked) -> RequestParser:
    return RequestParser(LIMITS, asked.knows)


# The parser.


@pytest.mark.parametrize("key", ["", "not-the-key-of-anybody"])
def test_a_stranger_is_cut_off_at_the_head_of_a_large_body(parser: RequestParser, key: str) -> None:
    parser.feed(post(SIZED % (MAX_STRANGERS_BODY + 1), key=key))
    (request,) = parser.requests
    assert (request.is_cut, request.length, request.keep_alive) == (True, MAX_STRANGERS_BODY + 1, False)
    parser.feed(b"x" * 1000)
    assert parser.is_closed and not parser.body_bytes and not request.body


def test_a_stranger_is_cut_off_when_a_chunked_body_grows_large(parser: RequestParser) -> None:
    parser.feed(post(CHUNKED, body=b"%x\r\n" % (2 * MAX_STRANGERS_BODY) + b"x" * MAX_STRANGERS_BODY))
    assert not parser.requests and parser.body_bytes == MAX_STRANGERS_BODY
    parser.feed(b"x")
    (request,) = parser.requests
    assert request.is_cut and not request.body and not parser.body_bytes and parser.is_closed


def test_a_stranger_who_waits_to_be_told_to_go_on_is_not(parser: RequestParser) -> None:
    for frame in (SIZED % 5, CHUNKED):
        parser.feed(post(frame, EXPECT, key=KEY))
        assert parser.awaits_continue()
        parser.feed(b"5\r\nhello\r\n0\r\n\r\n" if frame is CHUNKED else b"hello")
    parser.feed(post(SIZED % 5, EXPECT))
    assert not parser.awaits_continue()
    assert [(each.body, each.is_cut) for each in parser.requests] == [(b"hello", False), (b"hello", False), (b"", True)]


def test_a_small_body_is_read_whoever_sends_it_and_no_key_is_looked_for(parser: RequestParser, asked: Asked) -> None:
    body = b"x" * MAX_STRANGERS_BODY
    parser.feed(post(SIZED % len(body), body=body) + post() + post(CHUNKED, body=b"2\r\nhi\r\n0\r\n\r\n"))
    assert [len(each.body) for each in parser.requests] == [len(body), 0, 2] and not parser.is_closed
    assert not asked.values


def test_whoever_has_a_key_may_send_all_and_is_asked_for_it_once(parser: RequestParser, asked: Asked) -> None:
    body = b"x" * LIMITS.body
    for frame in (SIZED % len(body), CHUNKED):
        parser.feed(post(frame, EXPECT, key=KEY))
        assert parser.awaits_continue()
        data = body if frame is not CHUNKED else b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for start in range(0, len(data), 50_000):
            parser.feed(data[start : start + 50_000])
    assert [request.body == body for request in parser.requests] == [True, True]
    assert asked.values == [f"Bearer {KEY}"] * 2  # each request anew
    parser.feed(post(SIZED % (LIMITS.body + 1), key=KEY))
    assert parser.requests[-1].is_cut and len(asked.values) == 2


def test_a_key_among_others_is_none(parser: RequestParser, asked: Asked) -> None:
    parser.feed(post(SIZED % LIMITS.body, b"authorization: x\r\n", key=KEY))
    assert parser.requests[0].is_cut and asked.values == [f"x,Bearer {KEY}"]


# A server.


@pytest.fixture(scope="module")
def guarded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one worker and keys."""
    keys = {"SERVEKIT_INFERENCE_KEY": KEY, "SERVEKIT_MANAGEMENT_KEY": OWNER}
    log = tmp_path_factory.mktemp("guarded") / "log"
    with running(log, SERVEKIT_MODEL_STORE=str(store), WEB_CONCURRENCY="1", **keys) as server:
        yield server
    assert "Traceback" not in server.text()


@pytest.fixture
def client(guarded: Server) -> Iterator[Client]:
    with Client(("127.0.0.1", guarded.port)) as client:
        yield client


def refused_keys(server: Server) -> float:
    page = server.request("GET", "/metrics", headers={"Authorization": f"Bearer {OWNER}"})[2].decode()
    return sum(float(value) for value in re.findall(r"^servekit_refused_keys_total\{.*\} (\S+)$", page, re.MULTILINE))


def peak_of(server: Server, anew: bool = False) -> int:
    """Return the most bytes that its worker has had, since this was asked `anew`."""
    (pid,) = server.workers()
    if anew:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[0])


@pytest.mark.parametrize(
    "path", ["/predict", "/v1/models/mnist:predict", "/v2/models/mnist/infer", "/predictions/mnist", "/nowhere"]
)
def test_a_stranger_is_refused_before_the_body_is_sent(guarded: Server, client: Client, path: str) -> None:
    before = refused_keys(guarded)
    client.send(post(SIZED % (20 * MIB), FORM, path=path))
    (answer,) = client.last_answers()
    assert (answer.status, answer.headers["connection"], answer.headers["www-authenticate"]) == (401, "close", "Bearer")
    assert b"This server asks for a key" in answer.body
    assert refused_keys(guarded) == before + 1


def test_bodies_of_strangers_take_no_memory(guarded: Server) -> None:
    before = peak_of(guarded, anew=True)
    piece = b"x" * MIB
    for fields, body in ((SIZED % (20 * MIB), piece * 20), (CHUNKED, b"100000\r\n%b\r\n" % piece * 20)):
        with Client(("127.0.0.1", guarded.port)) as client:
            client.send(post(fields, FORM, key="not-the-key-of-anybody", body=body))
            client.finish()
            (answer,) = client.last_answers()
        assert answer.status == 401 and b"That key is not known here" in answer.body
    assert peak_of(guarded) < before + 4 * MIB


def test_a_stranger_who_waits_for_100_gets_401(client: Client) -> None:
    client.send(post(SIZED % 7, FORM, EXPECT))
    assert [answer.status for answer in client.last_answers()] == [401]


def test_whoever_has_a_key_is_told_to_go_on(client: Client) -> None:
    assert client.ask(post(SIZED % 7, FORM, EXPECT, key=KEY)).status == 100
    assert client.ask(b"value=5").json()["input"] == 5.0
    large = b"value=5" + b"&x=" + b"y" * MAX_STRANGERS_BODY
    assert client.ask(post(CHUNKED, FORM, key=KEY, body=b"%x\r\n%b\r\n0\r\n\r\n" % (len(large), large))).status == 200


def test_small_requests_of_strangers_keep_their_connection(client: Client) -> None:
    for _ in range(2):
        assert client.ask(post(SIZED % 7, FORM, body=b"value=5")).status == 401
    assert client.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
    assert client.ask(post(SIZED % 7, FORM, key=KEY, body=b"value=5")).status == 200
