"""HTTP/1.1 to one server on kept-alive connections of an event loop; httptools (llhttp) reads the answers."""

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import httptools

CONNECT_SECONDS = 5.0
VALUE = re.compile(r"[\x20-\x7e]*")  # of a header field; a line break would begin another one


class Unreachable(Exception):
    """The server cannot be connected to, or has closed a connection before its answer was complete."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status, the header with names in small letters, and the whole body."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Connections:
    """The connections to the server at `host` and `port`; up to `max_idle` that no call uses are kept for the next ones."""

    def __init__(self, host: str, port: int, max_idle: int = 256) -> None:
        self._host, self._port, self._max_idle = host, port, max_idle
        self._authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._idle: list[_Connection] = []

    async def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: Sequence[bytes] = ()
    ) -> Answer:
        """Send one request, `body` being its pieces; return the answer. `target` is sent as it is.

        A connection that was kept may have been closed by the server at the same moment; a call that fails on one before
        any byte of its answer is sent once more, on a new one. Raises Unreachable. Whoever cancels the wait closes the
        connection, and so tells the server that nobody wants the answer any more.
        """
        data = [self._head(method, target, headers or {}, sum(map(len, body))), *body]
        if self._idle:
            connection = self._idle.pop()
            with contextlib.suppress(_NothingCame):
                return await connection.exchange(data)
        try:
            return await (await self._connect()).exchange(data)
        except _NothingCame:
            raise Unreachable from None

    def close(self) -> None:
        """Close the connections that no call uses."""
        while self._idle:
            self._idle.pop().close()

    def keep(self, connection: "_Connection") -> None:
        """Take a connection whose answer is complete."""
        if len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: "_Connection") -> None:
        """Drop a connection that has been closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def _head(self, method: str, target: str, headers: Mapping[str, str], length: int) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._authority}"]
        if method == "POST":
            lines.append(f"Content-Length: {length}")
        for name, value in headers.items():
            if not VALUE.fullmatch(value):
                raise ValueError(f"the header field {name} holds a character that may not be sent")
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:  # a TimeoutError is one
            raise Unreachable from None
        return connection


class _NothingCame(Exception):
    """A connection was lost before the first byte of the answer."""


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._answer: asyncio.Future[Answer] | None = None
        self._transport: Any = None
        self._parser: Any = None
        self._came = False  # a byte of the answer has arrived
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    async def exchange(self, data: Sequence[bytes]) -> Answer:
        """Send `data`, one request, and return its answer; raises _NothingCame or Unreachable."""
        if self._transport.is_closing():
            raise _NothingCame
        self._answer = asyncio.get_running_loop().create_future()
        self._came, self._headers, self._body = False, {}, []
        self._transport.writelines(data)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection now, with whatever is under way on it."""
        self._transport.abort()

    # What follows is called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Read a piece of the answer; close the connection over what is none."""
        self._came = True
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the call that is under way."""
        self._owner.forget(self)
        self._parser = None  # it refers back to this object
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unreachable() if self._came else _NothingCame())

    # What follows is called by httptools while it reads.

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field."""
        self._headers[name.lower()] = value

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._body.append(data)

    def on_message_complete(self) -> None:
        """Hand over the answer, and keep the connection if the server does."""
        assert self._answer is not None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._answer.set_result(Answer(self._parser.get_status_code(), self._headers, body))
        self._headers, self._body = {}, []
        if self._parser.should_keep_alive():
            self._owner.keep(self)
        else:
            self.close()
