"""Clients in an open loop, and a ledger of what became of every request of theirs."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from bench import machine
from bench.cases import Request
from bench.faults.fault import NotMeasured
from bench.faults.rig import FORM, HOST, POLL_SECONDS
from bench.load import IN, OUT, READ_BYTES, percentile
from bench.wire import Malformed, parse

FIRST_NONCE = 1000  # above every number that a model takes for something else


@dataclasses.dataclass(slots=True)
class Sent:
    """What became of one request. Times are those of time.monotonic()."""

    nonce: int
    due: float  # when it should have been sent
    sent: float = 0.0
    port: int = 0  # of the client's end of its connection
    is_kept: bool = False  # its connection had been there before
    answered: float = 0.0
    status: int = 0  # 0: it got no answer
    is_right: bool = False  # the answer is the one to this request
    fault: str = ""  # why it got no answer: refused, closed, malformed, timeout

    @property
    def seconds(self) -> float:
        """How long it took from when it was due."""
        return self.answered - self.due


@dataclasses.dataclass
class Ledger:
    """Every request of a load, in the order in which they were due."""

    sent: list[Sent] = dataclasses.field(default_factory=list)

    def failed(self) -> list[Sent]:
        """Return the requests that were not answered 200."""
        return [each for each in self.sent if each.status != 200]

    def lost(self) -> list[Sent]:
        """Return the requests that got no answer at all."""
        return [each for each in self.sent if not each.status]

    def wrong(self) -> list[Sent]:
        """Return the requests that got the answer to another."""
        return [each for each in self.sent if each.status == 200 and not each.is_right]

    def p(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the milliseconds within which `share` percent of those due in a time were answered 200."""
        taken = (each.seconds for each in self.sent if each.status == 200 and since <= each.due < until)
        return percentile(sorted(taken), share) * 1000

    def statuses(self) -> dict[str, int]:
        """Return how many requests got which status, or which fault."""
        counts: dict[str, int] = {}
        for each in self.sent:
            key = str(each.status) if each.status else each.fault
            counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))


Make = Callable[[int], Request]
Judge = Callable[[int, bytes], bool]


def linear(nonce: int) -> Request:
    """Return a request to linear that carries a nonce."""
    return Request("/linear/predict", FORM, b"value=%d" % nonce)


def to_model(name: str) -> Make:
    """Return what makes requests, like those of `linear`, to another model."""
    path = f"/v2/models/{name}/infer"

    def make(nonce: int) -> Request:
        tensor = {"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [nonce]}
        return Request(path, "application/json", json.dumps({"id": str(nonce), "inputs": [tensor]}).encode())

    return make


def echoes(nonce: int, body: bytes) -> bool:
    """Return whether an answer is the one to the request with this nonce: linear says its input, V2 the request's id."""
    answer = json.loads(body)
    return bool(answer.get("input") == nonce or answer.get("id") == str(nonce))


class _Client:
    """One connection, and the request under way on it."""

    __slots__ = ("sock", "unsent", "received", "current", "port", "is_kept")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = self.received = b""
        self.current: Sent | None = None
        self.port = 0
        self.is_kept = False


class Load:
    """Sends requests at an even rate, whatever the server does; a `with` block gives the ledger, complete at its end.

    A share of `new` of them goes over connections of their own, the others over at most `kept` that are kept alive,
    each used in turn. It never waits for a connection: if none is free, it opens another.
    """

    def __init__(
        self, port: int, rate: float, *, kept: int = 16, new: float = 0.5, timeout: float = 10.0,
        make: Make = linear, judge: Judge = echoes, first: int = FIRST_NONCE,
    ) -> None:  # fmt: skip
        """A request unanswered for `timeout` seconds is lost; nonces count from `first`."""
        self.ledger = Ledger()
        self._address, self._rate, self._timeout = (HOST, port), rate, timeout
        self._most_kept, self._new = kept, new
        self._make, self._judge, self._next = make, judge, first
        self._epoll = select.epoll()
        self._clients: dict[int, _Client] = {}
        self._kept = 0  # connections that are kept alive
        self._free: deque[_Client] = deque()
        self._chance = random.Random(first)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> Ledger:
        self._thread.start()
        return self.ledger

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(self._timeout + 10)
        if self._thread.is_alive():
            raise NotMeasured("the load generator does not end")

    def _run(self) -> None:
        os.sched_setaffinity(0, {machine.split_cores().load})  # of this thread
        began, count = time.monotonic(), 0
        while not self._stop.is_set():
            now = time.monotonic()
            while (due := began + count / self._rate) <= now:
                self._send(due)
                count += 1
            self._turn(max(0.0, due - time.monotonic()))
        until = time.monotonic() + self._timeout + 1
        while any(client.current for client in self._clients.values()) and time.monotonic() < until:
            self._turn(POLL_SECONDS)
        for client in list(self._clients.values()):
            self._drop(client, "timeout")
        self._epoll.close()

    def _send(self, due: float) -> None:
        sent = Sent(self._next, due, time.monotonic())
        self._next += 1
        self.ledger.sent.append(sent)
        request = self._make(sent.nonce)
        is_new = self._chance.random() < self._new
        client = None
        while not is_new and self._kept >= self._most_kept and self._free and client is None:
            client = self._free.popleft()
            if self._clients.get(client.sock.fileno()) is not client:
                client = None  # the server has closed it
        if client is None:
            if (client := self._connect(sent)) is None:
                return
            client.is_kept = not is_new and self._kept < self._most_kept
            self._kept += client.is_kept
        else:
            sent.is_kept = True
        client.current, sent.port = sent, client.port
        if not client.is_kept:
            request = dataclasses.replace(request, headers=(*request.headers, ("Connection", "close")))
        client.unsent = request.encode()
        self._flush(client)

    def _connect(self, sent: Sent) -> _Client | None:
        sock = socket.socket()
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((HOST, 0))
            sock.setblocking(False)
            sock.connect_ex(self._address)
        except OSError as error:  # no ports or descriptors are left
            sent.fault = f"not connected: {error.strerror}"
            sock.close()
            return None
        client = _Client(sock)
        client.port = sock.getsockname()[1]
        self._clients[sock.fileno()] = client
        self._epoll.register(sock.fileno(), OUT)
        return client

    def _turn(self, wait: float) -> None:
        for fd, events in self._epoll.poll(min(wait, POLL_SECONDS)):
            client = self._clients.get(fd)
            if client is None:
                continue
            if client.unsent and events & select.EPOLLOUT:
                self._flush(client)
            elif events & ~select.EPOLLOUT:
                self._receive(client)
        oldest = time.monotonic() - self._timeout
        for client in [each for each in self._clients.values() if each.current and each.current.due < oldest]:
            self._drop(client, "timeout")

    def _flush(self, client: _Client) -> None:
        try:
            count = client.sock.send(client.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # not yet
                return
            self._drop(client, "refused" if isinstance(error, ConnectionRefusedError) else "closed")
            return
        client.unsent = client.unsent[count:]
        self._epoll.modify(client.sock.fileno(), OUT if client.unsent else IN)

    def _receive(self, client: _Client) -> None:
        try:
            data = client.sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionRefusedError:
            self._drop(client, "refused")
            return
        except OSError:
            data = b""
        if not data or client.current is None:
            self._drop(client, "closed")
            return
        client.received += data
        try:
            answer = parse(client.received)
        except Malformed:
            self._drop(client, "malformed")
            return
        if answer is not None:
            self._finish(client, client.current, *answer)

    def _finish(self, client: _Client, sent: Sent, status: int, is_kept: bool) -> None:
        sent.answered, sent.status = time.monotonic(), status
        if status == 200:
            with contextlib.suppress(ValueError, AttributeError):  # what is no such JSON is not right
                sent.is_right = self._judge(sent.nonce, client.received.partition(b"\r\n\r\n")[2])
        client.current, client.received = None, b""
        if is_kept and client.is_kept:
            self._free.append(client)
        else:
            self._drop(client)

    def _drop(self, client: _Client, fault: str = "") -> None:
        if client.current is not None:
            client.current.fault = fault
            client.current = None
        if self._clients.pop(client.sock.fileno(), None):
            self._kept -= client.is_kept
        client.sock.close()  # which also takes it out of epoll
