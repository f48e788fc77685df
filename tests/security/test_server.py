"""Requests that two servers could read in two ways, and bodies that end workers, over a real server and every contract."""

import contextlib
import json
import socket
from urllib.parse import quote

import pytest

from tests.server import Server

PATHS = {
    "/linear/predict": (b"value=5", b"application/x-www-form-urlencoded"),
    "/predict": (b'{"value": 5}', b"application/json"),
    "/v1/models/linear:predict": (b'{"instances": [[5]]}', b"application/json"),
    "/v2/models/linear/infer": (
        b'{"inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}]}',
        b"application/json",
    ),
    "/predictions/linear": (b"[5]", b"application/json"),
}


@pytest.fixture(autouse=True)
def watched() -> None:
    """Nothing is watched here: the server is another process, and asking it opens sockets."""


def count(server: Server) -> int:
    """Return how many requests have been answered by the model `linear`: what was smuggled and run is counted, too."""
    status, _, answer = server.get("/v2/models/linear/stats")
    assert status == 200
    stats = answer["model_stats"][0]["inference_stats"]
    return int(stats["success"]["count"]) + int(stats["fail"]["count"])


def exchanged(server: Server, content: bytes) -> bytes:
    """Send bytes and return all that comes back until the server hangs up."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(content)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def request(path: str, fields: bytes = b"", body: bytes | None = None, line: bytes = b"POST %s HTTP/1.1") -> bytes:
    """Return a request to `path`, with more lines in its head, and with its length unless `body` is given."""
    usual, kind = PATHS[path]
    if body is None:
        fields, body = fields + b"Content-Length: %d\r\n" % len(usual), usual
    return line.replace(b"%s", path.encode()) + b"\r\nHost: x\r\nContent-Type: " + kind + b"\r\n" + fields + b"\r\n" + body


def chunked(path: str, size: bytes = b"%x", end: bytes = b"0\r\n\r\n") -> bytes:
    body = PATHS[path][0]
    return size.replace(b"%x", b"%x" % len(body)) + b"\r\n" + body + b"\r\n" + end


# What is refused, as lines of the head and a body; behind each stands a second request, which must not be run.
HEADS: dict[str, bytes] = {
    "length and chunks": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"Content-Length: 4\r\nContent-Length: 400\r\n",
    "a length with a sign": b"Content-Length: +4\r\n",
    "a negative length": b"Content-Length: -1\r\n",
    "a length in hexadecimal": b"Content-Length: 0x4\r\n",
    "a length with an underscore": b"Content-Length: 1_0\r\n",
    "a list of lengths": b"Content-Length: 4, 4\r\n",
    "a length beyond 64 bits": b"Content-Length: 18446744073709551620\r\n",
    "an unknown coding": b"Transfer-Encoding: xchunked\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n",
    "identity": b"Transfer-Encoding: identity\r\n",
    "a space before the colon": b"Transfer-Encoding : chunked\r\n",
    "a folded header": b"Transfer-Encoding:\r\n chunked\r\n",
    "a bare line feed": b"X: a\nTransfer-Encoding: chunked\r\n",
    "a NUL": b"X: a\0b\r\nContent-Length: 4\r\n",
    "two hosts": b"Host: y\r\nContent-Length: 4\r\n",
}
CHUNKS = {
    "a negative size": b"-1",
    "a size with a sign": b"+%x",
    "a size with an underscore": b"0_%x",
    "a size beyond 64 bits": b"1000000000000000%x",
    "a size in other words": b"0x%x",
    "a CR in an extension": b"%x;a\rb",
    "a LF in an extension": b"%x;a\nb",
}


@pytest.mark.parametrize("path", PATHS)
def test_cve_2024_1135_nothing_that_is_ambiguous_is_run_and_nothing_behind_it(server: Server, path: str) -> None:
    """Gunicorn (CVE-2024-1135, CVE-2024-6827, CVE-2018-1000164) let a second request pass by behind the first."""
    second = request(path)
    before = count(server)
    cases = {name: request(path, fields, chunked(path)) for name, fields in HEADS.items()}
    coded = b"Transfer-Encoding: chunked\r\n"
    cases |= {name: request(path, coded, chunked(path, size)) for name, size in CHUNKS.items()}
    cases["coded in HTTP/1.0"] = request(path, coded, chunked(path), b"POST %s HTTP/1.0")
    for name, content in cases.items():
        answer = exchanged(server, content + second)
        assert answer.count(b"HTTP/1.1 ") == 1, (name, answer)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 413 ")), (name, answer)
        # Gunicorn's own workers hang up as well, but do not say so where the application has refused.
        assert b"\r\nConnection: close\r\n" in answer or "gthread" in server.text(), (name, answer)
    assert count(server) == before
    assert exchanged(server, second + second).count(b"HTTP/1.1 200 OK") == 2  # what is not ambiguous is run
    assert count(server) == before + 2


BREAKERS = {
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and ended": b"[" * 50_000 + b"]" * 50_000,
    "a long number": b'{"value": ' + b"9" * 100_000 + b"}",
    "a wide list": b'{"instances": [' + b"[]," * 1_000_000 + b"[]]}",
    "no UTF-8": b'{"instances": "\xff\xfe"}',
}


@pytest.mark.parametrize("case", BREAKERS)
def test_cve_2024_27454_no_body_ends_a_worker(server: Server, case: str) -> None:
    """orjson (CVE-2024-27454, CVE-2025-67221) ran out of stack, and the process with it."""
    workers = server.workers()
    for path in (*PATHS, "/mnist/predict", "/v1/models/mnist:predict", "/v2/models/mnist/infer", "/v2/repository/index"):
        status, _, answer = server.post(path, BREAKERS[case], "application/json")
        assert status == 400, (path, answer)
    assert server.workers() == workers


def test_cve_2025_23310_many_small_chunks_take_little(server: Server) -> None:
    """Triton put a buffer for each chunk on its stack."""
    workers = server.workers()
    pieces = b"1\r\n[\r\n" * 65_537 + b"0\r\n\r\n"
    answer = exchanged(server, request("/predictions/linear", b"Transfer-Encoding: chunked\r\n", pieces))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), answer[:200]
    assert server.workers() == workers


LINES = (
    *("x\r\n2026-01-01 00:00:00,000 INFO [1] [-] forged", "x\n2026-01-01 00:00:00,000 INFO forged", "\x1b[2J\x1b[31mred"),
    *("x\u2028 2026-01-01 forged", "x\x85forged", "\x9b31m", "\u202eforged", "%0d%0aforged", "x\x00y"),
)


@pytest.mark.parametrize("text", LINES)
def test_no_client_writes_a_line_of_the_log(server: Server, text: str) -> None:
    """Log injection (CWE-117): by the path, the query, and every header that is written down."""
    escaped = quote(text.encode())
    for path in (f"/v2/models/{escaped}/infer", f"/nothing?q={escaped}", f"/{escaped}"):
        server.request("POST", path, b"{}", {"Content-Type": "application/json"})
    raw = text.encode().replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")
    exchanged(server, b"GET /" + raw + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head = b"GET /nothing HTTP/1.1\r\nHost: " + raw + b"\r\nX-Request-Id: " + raw + b"\r\nUser-Agent: " + raw
    exchanged(server, head + b"\r\nReferer: " + raw + b"\r\nConnection: close\r\n\r\n")
    for line in server.text().splitlines():
        assert line.isprintable() and not line.startswith("forged"), line
        assert "forged" not in line or "GET" in line or "POST" in line or "Invalid" in line, line


def test_every_error_of_the_worker_itself_is_json_without_its_inside(server: Server) -> None:
    for content in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\r\n\r\n"):
        answer = exchanged(server, content)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Traceback" not in answer and b".py" not in answer and b"/usr" not in answer
        if b"application/json" in head:
            assert set(json.loads(body)) == {"error"}
