"""Bodies that are larger than they may be, or become so: announced, in chunks, in crumbs, and compressed."""

import contextlib
import functools
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.faults import rig
from bench.faults.fault import Fault, Outcome
from servekit.memory import memory_of

MIB = 2**20
OVER = 26 * MIB  # the limit is 25
CRUMBS = 65_537
BOMB = 512 * MIB
PROMPT_SECONDS, MOST_MIB = 1.0, 32.0
SAMPLE_SECONDS = 0.003
CLOSE_SECONDS = 5.0  # by then the connection must be closed: what a client still sends is thrown away for 2 s
JSON, FORM, OCTETS = "application/json", rig.FORM, "application/octet-stream"
MULTIPART = "multipart/form-data; boundary=b"
ROUTES = (
    ("/predict", "image/png"),
    ("/predict", MULTIPART),
    ("/predict/batch", MULTIPART),
    ("/linear/predict", FORM),
    ("/mnist/predict", "image/jpeg"),
    ("/v1/models/linear:predict", JSON),
    ("/v1/models/linear:classify", JSON),
    ("/v1/models/linear:regress", JSON),
    ("/v2/models/linear/infer", JSON),
    ("/v2/models/mnist/infer", OCTETS),
    ("/v2/repository/index", JSON),
    ("/predictions/linear", JSON),
    ("/predictions/mnist", "image/png"),
)
INFLATING = ("/v1/", "/v2/models/")  # contracts that read a Content-Encoding


@dataclass(frozen=True)
class Greed:
    """A kind of too large request: `fields` of its head, and the pieces of its body."""

    fields: str
    pieces: Callable[[], Iterable[bytes]]
    statuses: tuple[int, ...] = (413, 400)
    closes: bool = True
    only: tuple[str, ...] = ("/",)  # beginnings of the paths that it is sent to


def _zeros(count: int, size: int = 2**16) -> Iterator[bytes]:
    for _ in range(count // size):
        yield bytes(size)


def _chunks() -> Iterator[bytes]:
    for piece in _zeros(OVER):
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


@functools.cache
def _bomb(of: bytes, size: int, kind: int) -> bytes:
    """Return `size` bytes that repeat `of`, compressed; `kind` is zlib's number of a form."""
    deflator = zlib.compressobj(9, zlib.DEFLATED, kind)
    piece = of * (MIB // len(of))
    return b"".join(deflator.compress(piece) for _ in range(size // MIB)) + deflator.flush()


def _bombs() -> dict[str, Greed]:
    bombs = {
        "gzip bomb": ("gzip", _bomb(b"\0", BOMB, 31)),
        "deflate bomb": ("deflate", _bomb(b"[", BOMB, 15)),
        "gzip bomb of two members": ("gzip", gzip.compress(b"{}") + _bomb(b"\0", BOMB, 31)),
    }
    found = {}
    for name, (coding, body) in bombs.items():
        fields = f"Content-Encoding: {coding}\r\nContent-Length: {len(body)}\r\n"
        found[name] = Greed(fields, lambda body=body: [body], closes=False, only=INFLATING)  # type: ignore[misc]
    plain = bombs["gzip bomb"][1]
    statuses = (400, 404, 413, 415)
    fields = f"Content-Length: {len(plain)}\r\n"
    return found | {"gzip as it is": Greed(fields, lambda: [plain], statuses, closes=False)}


GREEDS = {
    "26 MiB": Greed(f"Content-Length: {OVER}\r\n", lambda: _zeros(OVER)),
    "26 MiB in chunks": Greed("Transfer-Encoding: chunked\r\n", _chunks),
    "10 GB announced": Greed("Content-Length: 10000000000\r\n", lambda: [bytes(1000)]),
    f"{CRUMBS} chunks of a byte": Greed("Transfer-Encoding: chunked\r\n", lambda: [b"1\r\na\r\n" * CRUMBS]),
}


class Gauge:
    """The most memory that processes held since it began, in MiB above what they held then."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._base = self._peak = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Gauge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth(self) -> float:
        """By how much it was more than at the beginning, in MiB."""
        return (max(self._peak, self._now()) - self._base) / MIB

    def _now(self) -> int:
        return sum(map(memory_of, self._pids))

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, self._now())


def send(port: int, path: str, content_type: str, greed: Greed) -> tuple[int, float, bool]:
    """Send a too large request; return the status, the seconds it took from the first byte over the limit, and whether
    the server closed the connection.

    That byte is the last one of the head where the head says it all, and else the last one of the body.
    """
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\n{greed.fields}\r\n".encode()
    with contextlib.closing(socket.create_connection((rig.HOST, port), timeout=10)) as client:
        client.sendall(head)
        since = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for piece in greed.pieces():
                client.sendall(piece)
                if "Content-Length: 2" not in greed.fields and "10000000000" not in greed.fields:
                    since = time.monotonic()
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = client.recv(2**16)
        seconds = time.monotonic() - since
        status = int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0
        return status, seconds, _is_closed(client)


def _is_closed(client: socket.socket) -> bool:
    client.settimeout(0.5)
    until = time.monotonic() + CLOSE_SECONDS
    with contextlib.suppress(TimeoutError):
        try:
            while time.monotonic() < until:
                if not client.recv(2**16):
                    return True
        except ConnectionError:
            return True
    return False


def too_large() -> Outcome:
    """Send each kind of too large request to each route."""
    missed, figures, worst = [], {}, 0.0
    count = 0
    with rig.server() as server:
        for path, content_type in ROUTES * (2 * rig.WORKERS):  # what is made once is not what a request costs
            rig.ask(server.port, path, b"x" * MIB, content_type=content_type)
        with Gauge(server.members()) as gauge:
            for name, greed in (GREEDS | _bombs()).items():
                for path, content_type in ROUTES:
                    if not path.startswith(greed.only):
                        continue
                    status, seconds, is_closed = send(server.port, path, content_type, greed)
                    count, worst = count + 1, max(worst, seconds)
                    row = (status, round(seconds, 3), is_closed, round(gauge.growth, 1))
                    figures[f"{name} {path} {content_type}"] = row
                    is_kept = not is_closed and (greed.closes or status == 413)
                    if status not in greed.statuses or seconds > PROMPT_SECONDS or is_kept:
                        missed.append(f"{name} to {path}: {status} after {seconds:.2f} s, closed: {is_closed}")
            growth = gauge.growth
    words = f"{len(missed)} of {count} not refused so; slowest after {worst:.2f} s; memory of all +{growth:.0f} MiB"
    return Outcome("; ".join([words, *missed[:3]]), not missed and growth <= MOST_MIB, figures)


FAULTS = (
    Fault(
        "greedy",
        f"26 MiB with a length, chunked; 10 GB announced; {CRUMBS} one-byte chunks; gzip bombs; on every contract",
        "413 or 400 within 1 s, memory up by at most 32 MiB, connection closed",
        too_large,
        limit_seconds=180.0,
    ),
)
