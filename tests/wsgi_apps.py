"""A plain WSGI application that shows what a worker class makes of HTTP: no Flask, no models."""

import ctypes
import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs
from wsgiref.validate import validator

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
MEGABYTE = b"0123456789abcdef" * 65536
PIECES = [b"one", b"two ", b"three"]
TEXT = ("Content-Type", "text/plain")
UNSENT = b"this must not be sent"


def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer by path; a path that names nothing answers the environ."""
    return ROUTES.get(environ["PATH_INFO"], environ_as_json)(environ, start_response)


def environ_as_json(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer what the application was given: the simple values, the names of all, and the body's length and hash."""
    body = environ["wsgi.input"].read()
    simple = {name: value for name, value in environ.items() if isinstance(value, str | bool | tuple)}
    seen = {"environ": simple, "names": sorted(environ), "body": len(body), "sha": hashlib.sha256(body).hexdigest()}
    content = json.dumps(seen).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
    return [content]


def echo(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer the body of the request."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [TEXT, ("Content-Length", str(len(body)))])
    return [body]


def stream(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer in pieces, one of them empty, without a length."""
    start_response("200 OK", [TEXT])
    yield PIECES[0]
    yield b""
    yield from PIECES[1:]


def stream_length(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer in pieces, with their length."""
    start_response("200 OK", [TEXT, ("Content-Length", str(sum(map(len, PIECES))))])
    yield from PIECES


def file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a file: this one, or for ?memory one that has no descriptor."""
    start_response("200 OK", [TEXT])
    source = io.BytesIO(MEGABYTE) if environ["QUERY_STRING"] == "memory" else open(__file__, "rb")
    return environ["wsgi.file_wrapper"](source, 1000)


def write(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer as the oldest applications do, by the write() callable, and one piece more."""
    send = start_response("200 OK", [TEXT])
    for piece in PIECES[:2]:
        send(piece)
    return PIECES[2:]


def write_nothing(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Call write() with no bytes before the pieces; as a chunk that would be the end."""
    start_response("200 OK", [TEXT])(b"")
    return [PIECES[0], b"", PIECES[1]]


def empty(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer 204, wrongly with a body."""
    start_response("204 No Content", [])
    return [UNSENT]


def not_modified(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer 304, wrongly with a body."""
    start_response("304 Not Modified", [("ETag", '"1"')])
    return [UNSENT]


def too_long(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Promise three bytes and give more."""
    start_response("200 OK", [TEXT, ("Content-Length", "3")])
    return [b"one", b"two", b"three"]


def too_short(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Promise ten bytes and give three."""
    start_response("200 OK", [TEXT, ("Content-Length", "10")])
    return [b"one"]


def fail(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Raise before the answer has begun."""
    raise RuntimeError("a secret of the application")


def fail_late(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Raise after the first piece of the answer."""
    start_response("200 OK", [TEXT])
    yield PIECES[0]
    raise RuntimeError("a secret of the application")


def fail_then_answer(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Change the answer by exc_info before any of it has been sent."""
    start_response("200 OK", [TEXT])
    try:
        raise RuntimeError("a secret of the application")
    except RuntimeError as error:
        start_response("409 Conflict", [TEXT, ("Content-Length", "3")], (type(error), error, error.__traceback__))
    return [b"one"]


def bad_header(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer a header with a line break in it, as an application does that copies a client's words into one."""
    start_response("200 OK", [TEXT, ("X-Copied", "a\r\nSet-Cookie: b=c"), ("Content-Length", "3")])
    return [b"one"]


def hop_by_hop(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Answer headers that belong to the connection, which is the server's."""
    hop = [("Keep-Alive", "timeout=99"), ("Transfer-Encoding", "gzip"), ("TE", "trailers"), ("Upgrade", "other")]
    start_response("200 OK", [TEXT, ("Content-Length", "3"), *hop])
    return [b"one"]


def close(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Ask the server to close the connection."""
    start_response("200 OK", [TEXT, ("Content-Length", "3"), ("Connection", "close")])
    return [b"one"]


def canary(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Leave a mark that this request was run."""
    mark(f"{environ['REQUEST_METHOD']} {environ['QUERY_STRING']}")
    start_response("200 OK", [TEXT, ("Content-Length", "3")])
    return [b"one"]


class Noted:
    """An answer of many pieces that leaves a mark when it is closed."""

    def __init__(self, pieces: int) -> None:
        self._pieces = iter([MEGABYTE[:65536]] * pieces)

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        """Leave the mark."""
        mark("closed")


def noted(environ: Environ, start_response: StartResponse) -> Noted:
    """Answer as many pieces of 64 KiB as ?pieces= says, and leave a mark when the answer is closed."""
    start_response("200 OK", [TEXT])
    return Noted(number(environ, "pieces"))


def big(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer as many megabytes as ?mb= says, each a piece."""
    count = number(environ, "mb")
    start_response("200 OK", [TEXT, ("Content-Length", str(count * len(MEGABYTE)))])
    for _ in range(count):
        yield MEGABYTE


def busy(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Keep the processor for as many milliseconds as ?ms= says."""
    until = time.monotonic() + number(environ, "ms") / 1000
    while time.monotonic() < until:
        pass
    return echo(environ, start_response)


def hang(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Never answer: for ?sleep without using the processor."""
    while True:
        if environ["QUERY_STRING"] == "sleep":
            time.sleep(60)


def die(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """End the process as ?crash, ?kill or ?gil says: the last by never letting go of the interpreter."""
    while environ["QUERY_STRING"] == "gil":
        library, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)  # which it has itself; no signal ends that
    if environ["QUERY_STRING"] == "crash":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def checked(environ: Environ, start_response: StartResponse) -> list[bytes]:
    """Read all and answer in a way that the validator of the standard library finds right."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.errors"].write(f"checked {environ['REQUEST_METHOD']}\n")
    environ["wsgi.errors"].flush()
    start_response("200 OK", [TEXT, ("Content-Length", str(len(body)))])
    return [body]


def mark(text: str) -> None:
    """Append a line to the canary's file."""
    with open(os.environ["TEST_CANARY"], "a") as file:
        file.write(text + "\n")


def number(environ: Environ, name: str) -> int:
    """Return a number of the query string."""
    return int(parse_qs(environ["QUERY_STRING"])[name][0])


ROUTES: dict[str, Callable[[Environ, StartResponse], Iterable[bytes]]] = {
    "/echo": echo,
    "/stream": stream,
    "/stream-length": stream_length,
    "/file": file,
    "/write": write,
    "/write-nothing": write_nothing,
    "/empty": empty,
    "/not-modified": not_modified,
    "/too-long": too_long,
    "/too-short": too_short,
    "/fail": fail,
    "/fail-late": fail_late,
    "/fail-then-answer": fail_then_answer,
    "/bad-header": bad_header,
    "/hop-by-hop": hop_by_hop,
    "/close": close,
    "/canary": canary,
    "/noted": noted,
    "/big": big,
    "/busy": busy,
    "/hang": hang,
    "/die": die,
    "/checked": validator(checked),
}
