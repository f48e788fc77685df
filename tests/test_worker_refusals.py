"""Whatever two servers could read in two ways is refused: answered at most once, not run, and the connection closed."""

from collections.abc import Iterator

import pytest

from tests.raw import Client, PlainServer, plain

CANARY = b"GET /canary?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
HOST = b"Host: x\r\n"
SETTINGS = ["--limit-request-line", "1000", "--limit-request-fields", "20", "--limit-request-field_size", "500"]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    deadlines = {"SERVEKIT_HEADER_SECONDS": "2", "SERVEKIT_BODY_SECONDS": "2"}
    with plain(tmp_path_factory.mktemp("refusals"), *SETTINGS, **deadlines) as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers
        assert "Traceback" not in server.text()


def request(fields: bytes = b"", body: bytes = b"hello", line: bytes = b"POST /canary?run HTTP/1.1") -> bytes:
    """Return a request that leaves a mark if it is run, with `fields` in its head."""
    return line + b"\r\n" + HOST + fields + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    """Return a request with `body` as its chunks."""
    return request(b"Transfer-Encoding: chunked\r\n", body)


def with_length(value: bytes) -> bytes:
    """Return a request whose length is `value`."""
    return request(b"Content-Length:" + value + b"\r\n")


def with_encoding(line: bytes) -> bytes:
    """Return a request with a line that a lax server takes for Transfer-Encoding: chunked."""
    return request(line + b"\r\n", b"5\r\nhello\r\n0\r\n\r\n")


def get(line: bytes = b"GET /canary?run HTTP/1.1", fields: bytes = HOST) -> bytes:
    """Return a request without a body."""
    return line + b"\r\n" + fields + b"\r\n"


LENGTHS = {
    "length and encoding": request(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "encoding and length": request(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "length and identity": request(b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n"),
    "two lengths": request(b"Content-Length: 5\r\nContent-Length: 6\r\n"),
    "a length of thousands of digits": request(b"Content-Length: " + b"0" * 5000 + b"5\r\n"),
    "the same length twice": request(b"Content-Length: 5\r\nContent-Length: 5\r\n"),
    "length with plus": with_length(b" +5"),
    "negative length": with_length(b" -1"),
    "list of lengths": with_length(b" 5, 5"),
    "list of different lengths": with_length(b" 5,6"),
    "hexadecimal length": with_length(b" 0x5"),
    "empty length": with_length(b""),
    "blank length": with_length(b"  "),
    "length of 30 digits": with_length(b" " + b"9" * 30),
    "length above 64 bits": with_length(b" 18446744073709551621"),  # 5, where numbers wrap
    "length with underscore": with_length(b" 0_5"),
    "length with space": with_length(b" 5 5"),
    "fractional length": with_length(b" 5.0"),
    "length in other digits": with_length(b" \xd9\xa5"),
    "length with vertical tab": with_length(b" \x0b5"),
    "length with form feed": with_length(b" 5\x0c"),
    "quoted length": with_length(b' "5"'),
    "space before the colon of the length": request(b"Content-Length : 5\r\n"),
    "folded length": request(b"Content-Length:\r\n 5\r\n"),
}
ENCODINGS = {
    "space before the colon": with_encoding(b"Transfer-Encoding : chunked"),
    "tab before the colon": with_encoding(b"Transfer-Encoding\t: chunked"),
    "space before the name": with_encoding(b" Transfer-Encoding: chunked"),
    "tab before the name": with_encoding(b"\tTransfer-Encoding: chunked"),
    "folded": with_encoding(b"Transfer-Encoding:\r\n chunked"),
    "gzip, chunked": with_encoding(b"Transfer-Encoding: gzip, chunked"),
    "gzip and chunked": with_encoding(b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked"),
    "chunked, chunked": with_encoding(b"Transfer-Encoding: chunked, chunked"),
    "chunked and chunked": with_encoding(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
    "chunked, identity": with_encoding(b"Transfer-Encoding: chunked, identity"),
    "chunked, gzip": with_encoding(b"Transfer-Encoding: chunked, gzip"),
    "identity": with_encoding(b"Transfer-Encoding: identity"),
    "xchunked": with_encoding(b"Transfer-Encoding: xchunked"),
    "chunkedx": with_encoding(b"Transfer-Encoding: chunkedx"),
    "quoted": with_encoding(b'Transfer-Encoding: "chunked"'),
    "with a parameter": with_encoding(b"Transfer-Encoding: chunked;q=1"),
    "vertical tab before": with_encoding(b"Transfer-Encoding: \x0bchunked"),
    "vertical tab after": with_encoding(b"Transfer-Encoding: chunked\x0b"),
    "form feed before": with_encoding(b"Transfer-Encoding:\x0cchunked"),
    "NUL after": with_encoding(b"Transfer-Encoding: chunked\0"),
    "CR before": with_encoding(b"Transfer-Encoding: \rchunked"),
    "LF before": with_encoding(b"X-A: b\nTransfer-Encoding: chunked"),
    "CR as line end": with_encoding(b"X-A: b\rTransfer-Encoding: chunked"),
    "other letters": with_encoding("Transfer-Encoding: chun\u212aed".encode()),
    "empty": with_encoding(b"Transfer-Encoding:"),
    "in HTTP/1.0": with_encoding(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0"),
}
HEADS = {
    "LF after the request line": b"GET /canary?run HTTP/1.1\nHost: x\r\n\r\n",
    "LF after a header": get(fields=b"Host: x\nX-A: b\r\n"),
    "LF at the end of the head": b"GET /canary?run HTTP/1.1\r\nHost: x\r\n\n",
    "LF LF at the end of the head": b"GET /canary?run HTTP/1.1\r\nHost: x\n\n",
    "LF everywhere": b"GET /canary?run HTTP/1.1\nHost: x\n\n",
    "CR CR LF": get(fields=HOST + b"X-A: b\r\r\n"),
    "CR in a value": get(fields=HOST + b"X-A: b\rc\r\n"),
    "CR in a name": get(fields=HOST + b"X\rA: b\r\n"),
    "CR in the request line": get(b"GET /canary?run\rHTTP/1.1"),
    "NUL in the request line": get(b"GET /canary?run\0 HTTP/1.1"),
    "NUL in a name": get(fields=HOST + b"X\0A: b\r\n"),
    "NUL in a value": get(fields=HOST + b"X-A: b\0c\r\n"),
    "folded header": get(fields=HOST + b"X-A: b\r\n c\r\n"),
    "header folded by a tab": get(fields=HOST + b"X-A: b\r\n\tc\r\n"),
    "folded first header": get(fields=b" X-A: b\r\n" + HOST),
    "blank line of a space": get(fields=HOST + b" \r\n"),
    "space before a colon": get(fields=HOST + b"X-A : b\r\n"),
    "no colon": get(fields=HOST + b"X-A\r\n"),
    "empty name": get(fields=HOST + b": b\r\n"),
    "space in a name": get(fields=HOST + b"X A: b\r\n"),
    "name that is no token": get(fields=HOST + b"X(A): b\r\n"),
    "name beyond ASCII": get(fields=HOST + b"X-\xc3\xa9: b\r\n"),
    "no host": get(fields=b""),
    "two hosts": get(fields=HOST + HOST),
    "two different hosts": get(fields=HOST + b"Host: y\r\n"),
    "host with a space": get(fields=b"Host: a b\r\n"),
    "host with a comma": get(fields=b"Host: a,b\r\n"),
    "host with a slash": get(fields=b"Host: a/b\r\n"),
    "host with a user": get(fields=b"Host: user@host\r\n"),
    "host with a query": get(fields=b"Host: a?b\r\n"),
    "host with a backslash": get(fields=b"Host: a\\b\r\n"),
    "host with a port of letters": get(fields=b"Host: a:b\r\n"),
    "host beyond ASCII": get(fields=b"Host: \xe9\r\n"),
    "two hosts, absolute target": get(b"GET http://a/canary?run HTTP/1.1", HOST + HOST),
}
LINES = {
    "no slash": b"GET canary?run HTTP/1.1",
    "no slash, with scheme-like start": b"GET :canary?run HTTP/1.1",
    "space in the target": b"GET /canary?run it HTTP/1.1",
    "tab for a space": b"GET\t/canary?run HTTP/1.1",
    "tab in the target": b"GET /canary?run\tit HTTP/1.1",
    "escape in the target": b"GET /canary?run\x1b HTTP/1.1",
    "delete in the target": b"GET /canary?run\x7f HTTP/1.1",
    "target beyond ASCII": b"GET /canary?run\xc3\xa9 HTTP/1.1",
    "fragment": b"GET /canary?run#here HTTP/1.1",
    "star for GET": b"GET * HTTP/1.1",
    "absolute target with a user": b"GET http://user@x/canary?run HTTP/1.1",
    "absolute target without a host": b"GET http:///canary?run HTTP/1.1",
    "absolute target of another scheme": b"GET ftp://x/canary?run HTTP/1.1",
    "authority": b"CONNECT x:80 HTTP/1.1",
    "a tunnel to a path": b"CONNECT / HTTP/1.1",
    "a tunnel to a host": b"CONNECT http://x/ HTTP/1.1",
    "empty target": b"GET  HTTP/1.1",
    "no version": b"GET /canary?run",
    "HTTP/0.9": b"GET /canary?run HTTP/0.9",
    "HTTP/1.2": b"GET /canary?run HTTP/1.2",
    "HTTP/2.0": b"GET /canary?run HTTP/2.0",
    "HTTP/2": b"GET /canary?run HTTP/2",
    "HTTP/1.10": b"GET /canary?run HTTP/1.10",
    "HTTP/1": b"GET /canary?run HTTP/1",
    "http/1.1": b"GET /canary?run http/1.1",
    "space after the version": b"GET /canary?run HTTP/1.1 ",
    "space before the method": b" GET /canary?run HTTP/1.1",
    "method that is no token": b"GE(T /canary?run HTTP/1.1",
    "method of NUL": b"\0 /canary?run HTTP/1.1",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    "garbage": b"hello",
    "an answer": b"HTTP/1.1 200 OK",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(32)) + b" \x13\x02",
}
CHUNKS = {
    "0x5": b"0x5\r\nhello\r\n0\r\n\r\n",
    "space after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "space before an extension": b"5 ;a\r\nhello\r\n0\r\n\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "size with plus": b"+5\r\nhello\r\n0\r\n\r\n",
    "size with underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "only an extension": b";a\r\nhello\r\n0\r\n\r\n",
    "size that is no number": b"g\r\nhello\r\n0\r\n\r\n",
    "size above 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",  # 5, where numbers wrap
    "size of 30 digits": b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n",
    "more than its size": b"5\r\nhello!\r\n0\r\n\r\n",
    "no line end after the data": b"5\r\nhello0\r\n\r\n",
    "LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\nhello\r\n0\r\n\r\n",
    "LF after the last size": b"5\r\nhello\r\n0\n\r\n",
    "LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "LF LF at the end": b"5\r\nhello\r\n0\n\n",
    "CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "CR CR LF after the size": b"5\r\r\nhello\r\n0\r\n\r\n",
    "CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "CR and a byte after the data": b"5\r\nhello\rx0\r\n\r\n",
    "NUL in an extension": b"5;a\0\r\nhello\r\n0\r\n\r\n",
    "NUL after the size": b"5\0\r\nhello\r\n0\r\n\r\n",
    "trailer without a colon": b"5\r\nhello\r\n0\r\nX-A\r\n\r\n",
    "trailer with a space in its name": b"5\r\nhello\r\n0\r\nX A: b\r\n\r\n",
    "folded trailer": b"5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n",
    "LF after a trailer": b"5\r\nhello\r\n0\r\nX-A: b\n\r\n",
    "NUL in a trailer": b"5\r\nhello\r\n0\r\nX-A: \0\r\n\r\n",
}
CASES = (
    {f"length: {name}": case for name, case in LENGTHS.items()}
    | {f"encoding: {name}": case for name, case in ENCODINGS.items()}
    | {f"head: {name}": case for name, case in HEADS.items()}
    | {f"line: {name}": get(line) for name, line in LINES.items()}
    | {f"chunk: {name}": chunked(body) for name, body in CHUNKS.items()}
)


@pytest.fixture
def client(http: PlainServer) -> Iterator[Client]:
    http.clear_marks()
    with http.client() as client:
        yield client


def assert_refused(http: PlainServer, client: Client, statuses: set[int]) -> None:
    answers = client.last_answers(5)
    assert len(answers) == 1, answers
    assert answers[0].status in statuses, answers
    assert answers[0].headers["connection"] == "close"
    assert http.marks() == []


@pytest.mark.parametrize("name", CASES)
def test_what_is_ambiguous_is_refused_and_nothing_behind_it_runs(http: PlainServer, client: Client, name: str) -> None:
    client.send(CASES[name] + CANARY)
    assert_refused(http, client, {400, 405, 411, 413, 417, 426, 431, 501, 505})


@pytest.mark.parametrize("line", [b"SOURCE /a ICE/1.0", b"OPTIONS /a RTSP/1.0", b"GET  /a HTTP/1.1"])
def test_nothing_runs_behind_a_line_that_is_nearly_http(http: PlainServer, client: Client, line: bytes) -> None:
    client.send(get(line, HOST + b"Connection: close\r\n") + CANARY)
    assert len(client.last_answers(5)) == 1
    assert http.marks() == []


@pytest.mark.parametrize("name", ["length: length and encoding", "encoding: LF before", "chunk: more than its size"])
def test_it_is_refused_too_when_it_arrives_a_byte_at_a_time(http: PlainServer, client: Client, name: str) -> None:
    client.send(CASES[name] + CANARY, step=1)
    assert_refused(http, client, {400})


def test_it_is_refused_too_behind_a_good_request(http: PlainServer, client: Client) -> None:
    client.send(b"GET /stream-length HTTP/1.1\r\nHost: x\r\n\r\n" + CASES["length: two lengths"] + CANARY)
    answers = client.last_answers(5)
    assert [answer.status for answer in answers] == [200, 400]
    assert http.marks() == []


@pytest.mark.parametrize("name", ["length: two lengths", "encoding: chunked, chunked", "chunk: 0x5", "head: no host"])
def test_it_is_refused_too_with_an_invitation_to_another_protocol(
    http: PlainServer, client: Client, name: str
) -> None:
    invitation = b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    client.send(CASES[name].replace(b"\r\n", invitation, 1) + CANARY)
    assert_refused(http, client, {400, 501})


def test_a_refusal_is_one_sentence_in_json(client: Client) -> None:
    client.send(CASES["length: length and encoding"])
    (answer,) = client.last_answers(5)
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()
    assert list(error) == ["error"] and error["error"].strip() and "\n" not in error["error"]


@pytest.mark.parametrize("rest", [b" HTTP/1.1\r\nHost: x\r\n\r\n", b"a" * 100_000])
def test_a_request_line_over_gunicorns_limit_is_refused(http: PlainServer, client: Client, rest: bytes) -> None:
    client.send(b"GET /canary?" + b"a" * 1000 + rest)
    assert_refused(http, client, {414})


@pytest.mark.parametrize(
    "fields",
    [
        b"X-A: " + b"a" * 500 + b"\r\n",
        b"a" * 500 + b": b\r\n",
        b"X-A: b\r\n" * 20,
        b"X-A: b\r\n" * 10_000,
        b"X-A: " + b"a" * 100_000,
    ],
    ids=["long value", "long name", "too many", "many too many", "without an end"],
)
def test_header_fields_over_gunicorns_limits_are_refused(http: PlainServer, client: Client, fields: bytes) -> None:
    client.send(get(fields=HOST + fields))
    assert_refused(http, client, {431})


def test_endless_trailers_are_refused(http: PlainServer, client: Client) -> None:
    client.send(chunked(b"5\r\nhello\r\n0\r\n" + b"X-A: b\r\n" * 60_000))
    assert_refused(http, client, {400, 431})


def test_an_endless_chunk_extension_is_refused(http: PlainServer, client: Client) -> None:
    client.send(chunked(b"5;" + b"a" * 400_000))
    assert_refused(http, client, {400, 413, 431})


def test_requests_within_gunicorns_limits_are_served(client: Client) -> None:
    line = b"GET /%s HTTP/1.1\r\n" % (b"a" * 980)
    assert client.ask(line + HOST + b"X-A: " + b"a" * 480 + b"\r\n" + b"X-B: c\r\n" * 18 + b"\r\n").status == 200
