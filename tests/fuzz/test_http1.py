"""The parser of requests: cutting changes nothing, no bytes make two requests of one, and Gunicorn's parser agrees."""

from collections.abc import Sequence
from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request as Message
from gunicorn.http.unreader import IterUnreader
from hypothesis import example, given
from hypothesis import strategies as st

from servekit.http1 import Limits, RequestParser
from tests.fuzz.made import bounded, damaged

LIMITS = Limits(line=4094, fields=20, field_size=1000, body=300)
TAIL = b"GET /tail HTTP/1.1\r\nHost: tail\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
SEEDS = (
    b"GET /a?b=%20c HTTP/1.1\r\nHost: x\r\nX-A: b, c\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x:80\r\nContent-Length: 5\r\nX-A:\tb \r\n\r\nhello",
    CHUNKED + b"5;a=b\r\nhello\r\n0A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"PUT http://x/a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n" + b"x" * 400,
)
WORDS = (
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b"\t",
        b":",
        b",",
        b";",
        b"0",
        b"-",
        b"+",
        b"_",
        b"0x",
        b"f" * 17,
        b"\xff",
        b"#",
        b"\x0b",
    ),
    *(
        b"Content-Length: 3\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
    ),
    *(b"Transfer-Encoding: identity\r\n", b"Host: y\r\n", b"Connection: close\r\n", b" folded\r\n", b"\r\n0\r\n\r\n", TAIL),
)


def outcome(pieces: Sequence[bytes]) -> tuple[list[Any], bool, tuple[bool, ...]]:
    """Return what a parser that is fed `pieces` makes of them: requests, whether one was refused, and where it stands."""
    parser = RequestParser(LIMITS)
    found: list[Any] = []
    for piece in pieces:
        parser.feed(piece)
        while parser.requests:
            request = parser.requests.popleft()
            found.append(
                (
                    request.method,
                    request.target,
                    request.version,
                    tuple(request.fields),
                    request.body,
                    request.is_cut,
                    request.keep_alive,
                )
            )
    # Which refusal it is depends on the cut where a request has two faults: httptools reports a field when the next begins.
    state = (parser.is_closed, parser.is_in_head, parser.is_in_body)
    is_refused = parser.refusal is not None
    parser.close()
    return found, is_refused, state


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces that end at `places`."""
    ends = sorted({min(place, len(data)) for place in places})
    return [data[start:stop] for start, stop in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(damaged(SEEDS, WORDS), st.booleans(), st.lists(st.integers(0, 400), max_size=6))
def test_cutting_a_stream_changes_nothing(data: bytes, has_tail: bool, places: list[int]) -> None:
    data += TAIL * has_tail
    whole = bounded(outcome, [data])
    assert outcome(cut(data, places)) == whole
    assert outcome([data[at : at + 1] for at in range(len(data))]) == whole


@given(damaged(SEEDS, WORDS))
def test_every_request_is_honest(data: bytes) -> None:
    for _, target, version, fields, body, is_cut, _ in outcome([data + TAIL])[0]:
        names = [name.lower() for name, _ in fields]
        assert version in ("1.0", "1.1") and target
        assert names.count(b"content-length") + names.count(b"transfer-encoding") <= 1
        assert names.count(b"host") == 1 or version == "1.0"
        assert not any(byte in part for field in fields for part in field for byte in b"\r\n\0")
        assert len(body) <= LIMITS.body + is_cut


# A request that is whole, with anything inside what its own framing says is its body.
@given(
    st.binary(max_size=120) | st.just(TAIL) | damaged((TAIL + TAIL,), WORDS),
    st.integers(1, 40),
    st.lists(st.integers(0, 400), max_size=4),
)
def test_a_body_is_never_read_as_a_request(body: bytes, size: int, places: list[int]) -> None:
    by_length = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    by_chunks = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    for data in (by_length, by_chunks):
        found, is_refused, _ = outcome(cut(data + TAIL, places))
        assert [(request[1], request[4]) for request in found] == [(b"/a", body), (b"/tail", b"")]
        assert not is_refused


class Peer:
    """Gunicorn's own parser, as strict as it is by default."""

    def __init__(self, data: bytes) -> None:
        self._unreader = IterUnreader(iter([data]))
        self._config = Config()
        self._number = 0

    def request(self) -> tuple[str, bytes, bytes] | None:
        """Return method, target and body of the next request; None if it refuses, or has not all of it."""
        self._number += 1
        try:
            message = Message(self._config, self._unreader, ("127.0.0.1", 1), self._number)
            body = message.body.read()
        except (ParseException, StopIteration, OSError):
            return None
        length = next((value for name, value in message.headers if name == "CONTENT-LENGTH"), None)
        if length is not None and len(body) < int(length):
            return None
        return message.method, message.uri.encode("latin-1"), body


@given(damaged(SEEDS[:5], WORDS))
@example(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
def test_what_gunicorns_parser_reads_too_it_reads_alike(data: bytes) -> None:
    peer = Peer(data + TAIL)
    for method, target, _, _, body, is_cut, keep_alive in outcome([data + TAIL])[0]:
        other = peer.request()
        if other is None or is_cut or not keep_alive:
            return
        assert (method, target, body) == other
