"""Thousands of damaged requests: none kills a worker, none is a server error, none smuggles another in."""

import random
from collections.abc import Iterator

import pytest

from tests.raw import PlainServer, plain
from tests.server import wait_for

INNER = b"GET /canary?smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(INNER)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x;a=b\r\n%s\r\n%x\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n"
SEEDS = (
    b"POST /echo?a=%20b HTTP/1.1\r\nHost: x\r\nX-A: b\r\n" + LENGTH + b"X-C: d\r\n\r\n" + INNER,
    b"POST /echo HTTP/1.1\r\nHost: x:80\r\n" + CHUNKED % (len(INNER), INNER, len(INNER), INNER),
    b"PUT http://x/echo HTTP/1.0\r\nConnection: keep-alive\r\n" + LENGTH + b"\r\n" + INNER,
    b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\nPOST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    + (LENGTH + b"\r\n" + INNER),
)
# A control byte anywhere outside a body is an error in HTTP, so no such request may end before its body does.
CONTROLS = [bytes([code]) for code in (*range(9), *range(10, 32), 127)]
WORDS = (b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"0", b"-1", b"fffffff", b"\xff\xfe", b"chunked", b"%00")
GOOD = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\ngood"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    deadlines = {"SERVEKIT_HEADER_SECONDS": "2", "SERVEKIT_BODY_SECONDS": "2", "SERVEKIT_MAX_BODY_BYTES": "100000"}
    with plain(tmp_path_factory.mktemp("fuzz"), **deadlines) as server:
        yield server


def with_control(data: bytes, chance: random.Random) -> bytes:
    """Return `data` with one control byte put in, or in the place of another byte."""
    at = chance.randrange(len(data))
    return data[:at] + chance.choice(CONTROLS) + data[at + chance.randrange(2) :]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return `data` with up to four places changed, lost, repeated, filled or swapped, and without a canary in it."""
    data = data.replace(b"/canary", b"/echo/x")
    for _ in range(chance.randint(1, 4)):
        at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        to = min(to, at + chance.choice((1, 2, 20)))
        fillings = [b"", bytes([chance.randrange(256)]), data[at:to] * 2, chance.choice(WORDS), data[to:at:-1]]
        data = (data[:at] + chance.choice(fillings) + data[to:]) or b"\r"
    return data


def statuses(http: PlainServer, data: bytes, chance: random.Random) -> set[int]:
    """Send `data`, in one piece or two, and return the statuses that can be seen in what comes back."""
    with http.client() as client:
        client.send(data, step=chance.choice((0, 0, 0, len(data) // 2)))
        client.finish()
        received = client.rest(5)
    return {int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:] if part[:3].isdigit()}


@pytest.mark.parametrize("change", [with_control, damaged])
def test_no_damaged_request_does_damage(http: PlainServer, change: object) -> None:
    assert callable(change)
    chance = random.Random(5001)
    before, descriptors = http.workers(), http.descriptors()
    http.clear_marks()
    seen: set[int] = set()
    for number in range(1000):
        data = change(SEEDS[number % len(SEEDS)], chance)
        got = statuses(http, data, chance)
        assert not {status for status in got if status >= 500} - {501, 505}, data
        assert http.marks() == [], data
        seen |= got
        if number % 100 == 0:
            assert http.ask(GOOD).body == b"good"
    assert {200, 400} <= seen
    assert http.workers() == before
    assert wait_for(lambda: http.descriptors() <= descriptors)
    assert http.ask(GOOD).body == b"good"
    assert "Traceback" not in http.text()


def test_noise_does_no_damage(http: PlainServer) -> None:
    chance = random.Random(5002)
    before = http.workers()
    for _ in range(200):
        got = statuses(http, chance.randbytes(chance.randint(1, 400)) + b"\r\n\r\n", chance)
        assert got <= {400, 414, 431, 501, 505}
    assert http.workers() == before
    assert http.ask(GOOD).body == b"good"
    assert "Traceback" not in http.text()


def test_requests_cut_at_every_byte_do_no_damage(http: PlainServer) -> None:
    chance = random.Random(5003)
    http.clear_marks()
    for seed in SEEDS[:2]:
        for end in range(len(seed)):
            assert statuses(http, seed[:end] or b"P", chance) <= {100, 400, 408}, seed[:end]
    assert http.marks() == []
    assert http.ask(GOOD).body == b"good"
    assert "Traceback" not in http.text()
