"""One client's connection: its socket, what has arrived and not been answered, what has not been taken yet."""

import contextlib
import math
import socket
import struct
import time
from enum import Enum
from typing import Any

from greenlet import greenlet

from servekit.http1 import RequestParser

_TCP_INFO = struct.Struct("8B24I")  # the beginning of tcp_info in linux/tcp.h
_LAST_DATA_RECV = 8 + 11  # index of tcpi_last_data_recv: milliseconds since bytes arrived


class Phase(Enum):
    """What a connection waits for; each but BUSY has a deadline."""

    IDLE = "idle"  # for the first byte of a request
    HEAD = "head"  # for the rest of a head
    BODY = "body"  # for the rest of a body
    BUSY = "busy"  # for the application
    WRITING = "writing"  # for the client to take an answer
    CLOSING = "closing"  # for the client to read the last answer and close; what it still sends is thrown away


class ClientGone(Exception):
    """The client is not there any more; nobody needs the rest of the answer."""


class Connection:
    """A client's connection."""

    __slots__ = (
        "can_be_asked",
        "deadline",
        "discarded",
        "environ",
        "has_begun",
        "has_ended",
        "held",
        "is_gone",
        "is_reset",
        "out",
        "parser",
        "phase",
        "request",
        "since",
        "sock",
        "taken",
        "watched",
        "will_close",
        "writer",
    )

    def __init__(self, sock: socket.socket, parser: RequestParser, environ: dict[str, Any]) -> None:
        self.sock = sock
        self.parser = parser
        self.environ = environ  # what the environs of all its requests share
        self.phase = Phase.IDLE
        self.since = 0.0  # when it came into this phase
        self.deadline = math.inf
        self.out = memoryview(b"")  # of an answer, what the client has not taken
        self.writer: greenlet | None = None  # the request that waits until `out` is empty
        self.watched = 0  # the events that the selector reports
        self.has_begun = False  # the answer to the request that runs
        self.has_ended = False  # the client sends nothing more
        self.is_reset = False  # the client neither sends nor reads any more
        self.is_gone = False  # closed
        self.can_be_asked = False  # whether it is still there, by an answer that says nothing; see Clients
        self.request: greenlet | None = None  # the one that runs
        self.held = 0  # bytes of its body
        self.will_close = False  # once `out` is empty
        self.taken = 0  # bytes of `out` since the deadline was set
        self.discarded = 0  # bytes thrown away while closing

    def read(self, size: int) -> bytes | None:
        """Return what has arrived, at most `size` bytes: b"" at the end, None if there is nothing now."""
        try:
            return self.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            self.is_reset = True
            return b""

    def has_failed(self) -> bool:
        """Return True if the client's system has answered that nobody reads what is sent there."""
        return bool(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def has_unread(self) -> bool:
        """Return True if bytes have arrived that nobody has read."""
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def write(self, data: bytes | memoryview) -> None:
        """Send what the socket takes now and keep the rest in `out`; raise ClientGone."""
        if self.is_gone:
            raise ClientGone
        if self.out:
            self.out = memoryview(bytes(self.out) + data)
            return
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            raise ClientGone from None
        self.out = memoryview(data)[sent:] if sent < len(data) else memoryview(b"")

    def write_rest(self) -> None:
        """Send more of `out`; raise ClientGone."""
        rest, self.out = self.out, memoryview(b"")
        self.write(rest)

    def arrived(self) -> float:
        """Return when, on the monotonic clock, bytes arrived last, also those that were not read at once."""
        now = time.monotonic()
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            return now - _TCP_INFO.unpack(info)[_LAST_DATA_RECV] / 1000
        except (OSError, AttributeError, struct.error):  # a unix socket, or not Linux
            return now

    def forget_unsent(self) -> None:
        """Let closing reset the connection: its system would offer what it holds to a client that does not read."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def finish_sending(self) -> None:
        """Tell the client that nothing more will come."""
        with contextlib.suppress(OSError):  # it has gone already
            self.sock.shutdown(socket.SHUT_WR)
