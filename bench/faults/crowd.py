"""Many clients that misbehave, in a process of their own, so that they do not slow the good ones that are timed."""

import contextlib
import multiprocessing
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench import machine
from bench.faults.fault import NotMeasured

HOST = "127.0.0.1"
DRIP_SECONDS = 0.5  # between two bytes of a client that drips
ARRIVAL_SECONDS = 0.005  # between two of them: what is measured is that they are slow, and not that they come at once
READ_BYTES = 1  # at a time of one that reads slowly: never all that an answer lacks
SMALL_BUFFER = 4096  # of a slow reader: its system takes no more for it
SMALL_SEGMENT = 500  # bytes; the server's system then takes little for it, too


@dataclass(frozen=True)
class Manners:
    """What a client does: it sends `opening`, then the bytes of `drip` one by one, and reads little or all."""

    opening: bytes
    drip: bytes = b""
    reads_slowly: bool = False


HEAD_DRIP = Manners(b"POST /linear/predict HTTP/1.1\r\nHost: x\r\nX-A: ", b"a")
BODY_DRIP = Manners(b"POST /linear/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", b"a")
CHUNK_DRIP = Manners(
    b"POST /linear/predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n1\r\nb\r\n"
)
SLOW_READ = Manners(b"GET /docs/swagger-ui.css HTTP/1.1\r\nHost: x\r\n\r\n" * 2, reads_slowly=True)
IDLE = Manners(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
LATER_DRIP = Manners(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nG")  # one byte of the next request


class _Client:
    def __init__(self, port: int, manners: Manners) -> None:
        self.manners = manners
        self.socket = socket.socket()
        if manners.reads_slowly:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
        self.socket.settimeout(10)
        self.socket.connect((HOST, port))
        self.socket.sendall(manners.opening)
        self.socket.setblocking(False)
        self.began = time.monotonic()
        self.closed = 0.0  # when the server did it
        self.sent = 0

    def look(self) -> None:
        """Read what there is, or a little of it; note when the server has closed the connection."""
        with contextlib.suppress(BlockingIOError):
            try:
                ended = not self.socket.recv(READ_BYTES if self.manners.reads_slowly else 2**16)
            except ConnectionError:
                ended = True
            if ended:
                self.close()

    def close(self) -> None:
        """Note that the server has closed the connection, though not all that it sent may have been read."""
        self.closed = time.monotonic()
        self.socket.close()

    def drip(self) -> None:
        """Send the next byte."""
        if drip := self.manners.drip:
            with contextlib.suppress(OSError):
                self.socket.send(drip[self.sent % len(drip) :][:1])
                self.sent += 1


def _live(port: int, crowd: Sequence[Manners], seconds: float, pipe: Connection) -> None:
    """Connect a crowd, say so, let it misbehave for `seconds`; give for each after how many seconds it was closed, or 0."""
    os.sched_setaffinity(0, {machine.split_cores().load})
    os.nice(15)  # the good clients, which are timed, go first
    clients = []
    for manners in crowd:
        clients.append(_Client(port, manners))
        time.sleep(ARRIVAL_SECONDS)
    pipe.send(len(clients))
    poll = select.poll()
    by_number = {client.socket.fileno(): client for client in clients}
    for number, client in by_number.items():
        poll.register(number, select.POLLHUP | select.POLLERR if client.manners.reads_slowly else select.POLLIN)
    until = time.monotonic() + seconds
    line = deque(by_number)  # whose turn it is to drip; evenly over the time
    due = time.monotonic()
    while by_number and (now := time.monotonic()) < until and not pipe.poll():
        for number, events in poll.poll(max(0.0, min(due, until) - now) * 1000):
            if events & (select.POLLHUP | select.POLLERR):
                by_number[number].close()
            _look(by_number, poll, number)
        if time.monotonic() >= due:
            due += DRIP_SECONDS / len(clients)
            line.rotate(-1)
            if line[0] in by_number:
                by_number[line[0]].drip()
                if by_number[line[0]].manners.reads_slowly:
                    _look(by_number, poll, line[0])
    pipe.send([client.closed - client.began if client.closed else 0.0 for client in clients])


def _look(by_number: dict[int, _Client], poll: select.poll, number: int) -> None:
    if not by_number[number].closed:
        by_number[number].look()
    if by_number[number].closed:
        poll.unregister(number)
        del by_number[number]


class Crowd:
    """A crowd that is there; `closed` ends it, or waits for its time to be over."""

    def __init__(self, pipe: Connection, seconds: float) -> None:
        self._pipe = pipe
        self._seconds = seconds

    def closed(self, waits: bool = True) -> list[float]:
        """Return for each client after how many seconds the server closed its connection, 0 if it did not."""
        if not waits:
            self._pipe.send(None)
        if not self._pipe.poll(self._seconds + 10):
            raise NotMeasured("the crowd does not end")
        return list(self._pipe.recv())


@contextlib.contextmanager
def crowd(port: int, manners: Sequence[Manners], seconds: float) -> Iterator[Crowd]:
    """Connect a client for each of `manners`; they are all there when the `with` block begins, and gone when it ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_live, args=(port, list(manners), seconds, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(30) or ours.recv() != len(manners):
            raise NotMeasured("the crowd could not connect")
        yield Crowd(ours, seconds)
    except EOFError:
        raise NotMeasured("the crowd has failed") from None
    finally:
        process.kill()
        process.join()
