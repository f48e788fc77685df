"""The clients of one event loop: who may send, who must hurry, whose request is next, and whose answer is under way."""

import contextlib
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from greenlet import getcurrent

from servekit.connection import ClientGone, Connection, Phase
from servekit.gateway import refusal
from servekit.http1 import Limits, Refused, Request, RequestParser

log = logging.getLogger(__name__)

PROGRESS_BYTES = 2**18  # a client that takes so much of its answer has its time for the next as much
MAX_BODIES = 8  # of the largest size may be there at a time; more would be a way to take a worker's memory
RECEIVE_BYTES = 2**16  # of one client in one turn, of a body
# Of what may be heads: what is read can be many requests, which are kept though others wait. More of one that has begun
# and is not complete: a large head would take many turns.
HEAD_BYTES, MORE_HEAD_BYTES = 2**11, 2**13
STOP_SECONDS = 2.0  # a stopping worker waits so long for requests that are under way on idle connections

_LATE = {
    Phase.HEAD: "The head of the request did not arrive in time.",
    Phase.BODY: "The body of the request did not arrive in time.",
}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAKING_ROOM = ((Phase.IDLE, Phase.CLOSING), (Phase.HEAD,), (Phase.BODY,), (Phase.WRITING,))


class Clients:
    """The open connections of a worker."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        limits: Limits,
        seconds: Mapping[Phase, float],
        on_request: Callable[[Connection, Request], None],
        on_refusal: Callable[[HTTPStatus, str, str], str],
        park: Callable[[], None],
        resume: Callable[[Any], None],
        abandon: Callable[[Any], None],
    ) -> None:
        """`seconds` a connection may stay in a phase; `on_request` is given each request, one at a time a connection.

        `on_refusal` is told of each request that is refused here: status, sentence, client; it returns the request's id.
        A request that must wait for its client is parked with `park`; `resume` goes on with it. `abandon` is told of a
        request that runs, and whose client has gone.
        """
        self._selector = selector
        self._limits = limits
        self._seconds = dict(seconds)
        self._on_request = on_request
        self._on_refusal = on_refusal
        self._park = park
        self._resume = resume
        self._abandon = abandon
        self._open: set[Connection] = set()
        self._ready: deque[Connection] = deque()  # to be looked at in this turn, though nothing may arrive
        self._body_bytes = 0  # of all bodies that are arriving, or whose requests run
        self._has_unread_answers = False  # since they were counted last
        # By the server's port, and for all others by "": says whether a value of Authorization holds a key.
        self.judges: Mapping[str, Callable[[str], bool]] = {}
        self.is_stopping = False

    def __len__(self) -> int:
        return len(self._open)

    @property
    def has_work(self) -> bool:
        """Return True if the loop should not block before its next turn."""
        return bool(self._ready)

    def add(self, sock: socket.socket, environ: dict[str, Any]) -> None:
        """Take over a new connection; `environ` is what the environs of its requests share."""
        knows = self.judges.get(environ["SERVER_PORT"], self.judges.get("")) if self.judges else None
        connection = Connection(sock, RequestParser(self._limits, knows), environ)
        self._open.add(connection)
        # Not keep-alive's time: nothing has been answered yet.
        connection.phase, connection.since = Phase.IDLE, time.monotonic()
        connection.deadline = connection.since + (STOP_SECONDS if self.is_stopping else self._seconds[Phase.HEAD])
        self.attend(connection, self._watch)
        if not connection.is_gone:
            self.attend(connection, self.on_readable)  # a client that connects mostly has sent, too

    def attend(self, connection: Connection, step: Callable[[Connection], None]) -> None:
        """Take a step on a connection; what goes wrong with it (there is no memory, say) is that connection's loss."""
        try:
            step(connection)
        except Exception:
            log.exception("A connection was dropped")
            self.drop(connection)

    def on_readable(self, connection: Connection) -> None:
        """Read what has arrived and go on with it."""
        size = self._bytes_to_read(connection)
        data = connection.read(size)
        if data is None:
            return
        if connection.is_reset:
            self.drop(connection)
            return
        if connection.phase is Phase.CLOSING:
            connection.discarded += len(data)
            if not data or connection.discarded > 2 * self._limits.body:
                self.drop(connection)
            return
        if data:
            self._feed(connection, data)
            is_more = len(data) == size < RECEIVE_BYTES and connection.parser.is_in_body
            if is_more and (rest := connection.read(RECEIVE_BYTES)):
                self._feed(connection, rest)
        else:
            connection.has_ended = True
        self._advance(connection)

    def _bytes_to_read(self, connection: Connection) -> int:
        if connection.parser.is_in_body or connection.phase is Phase.CLOSING:
            return RECEIVE_BYTES
        return MORE_HEAD_BYTES if connection.parser.is_in_head else HEAD_BYTES

    def _feed(self, connection: Connection, data: bytes) -> None:
        parser = connection.parser
        before = parser.body_bytes
        parser.feed(data)
        self._body_bytes += parser.body_bytes - before
        if parser.is_in_body and self._body_bytes > MAX_BODIES * self._limits.body:
            self._make_room_for_bodies(connection)

    def _make_room_for_bodies(self, newest: Connection) -> None:
        """Refuse the largest body that is arriving: else whoever sends many large ones would shut out the small ones."""
        arriving = [each for each in self._open if each.parser.is_in_body]
        largest = max(arriving, key=lambda each: each.parser.body_bytes)
        self._body_bytes -= largest.parser.body_bytes
        largest.parser.refuse(
            Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The server holds too many bodies; try again later.")
        )
        if largest is not newest:  # which is looked at next anyway
            self._advance(largest)

    def on_writable(self, connection: Connection) -> None:
        """Send more of an answer."""
        before = len(connection.out)
        try:
            connection.write_rest()
        except ClientGone:
            self.drop(connection)
            return
        if connection.out:
            connection.taken += before - len(connection.out)
            if connection.taken > PROGRESS_BYTES:
                connection.taken = 0
                connection.deadline = time.monotonic() + self._seconds[Phase.WRITING]
            return
        if (writer := connection.writer) is not None:
            connection.writer = None
            self._enter(connection, Phase.BUSY)
            self._resume(writer)
        elif connection.phase is Phase.WRITING:
            self._answered(connection)
        else:
            self._watch(connection)

    def send(self, connection: Connection, data: bytes, is_last: bool) -> None:
        """Send a piece of an answer; called in a request, which waits here if its client is slow and more will come."""
        connection.has_begun = True
        connection.write(data)
        if connection.out and not is_last:
            self._has_unread_answers = True
            connection.writer = getcurrent()
            self._enter(connection, Phase.WRITING)
            self._park()
            if connection.is_gone:
                raise ClientGone

    def finished(self, connection: Connection, keep_alive: bool) -> None:
        """Go on after the application has answered a request; without `keep_alive` it was the last one."""
        if connection.is_gone:
            return
        self._body_bytes -= connection.held
        connection.held, connection.request = 0, None
        connection.will_close, connection.has_begun = not keep_alive, False
        if connection.out:
            self._has_unread_answers = True
            self._enter(connection, Phase.WRITING)
        else:
            self._answered(connection)

    def refuse(self, connection: Connection, status: HTTPStatus, message: str) -> None:
        """Answer instead of the application, and close."""
        self._say(connection, status, message)
        self.finished(connection, keep_alive=False)

    def _say(self, connection: Connection, status: HTTPStatus, message: str) -> None:
        identity = self._on_refusal(status, message, connection.environ["REMOTE_ADDR"])
        with contextlib.suppress(ClientGone):
            connection.write(refusal(status, message, connection.environ["SERVER_PORT"], identity=identity))

    def drop(self, connection: Connection) -> None:
        """Close at once."""
        if connection.is_gone:
            return
        connection.is_gone = True
        self._open.discard(connection)
        self._body_bytes -= connection.parser.body_bytes + connection.held
        connection.parser.close()
        if connection.watched:
            self._selector.unregister(connection.sock)
            connection.watched = 0
        connection.sock.close()
        if (writer := connection.writer) is not None:
            connection.writer = None
            self._resume(writer)
        elif connection.request is not None:
            self._abandon(connection.request)

    def advance_ready(self) -> None:
        """Go on with the connections whose next request has arrived already: one each, so that all get their turn."""
        if self._has_unread_answers:
            self._has_unread_answers = False
            self._bound_unread_answers()
        for _ in range(len(self._ready)):
            connection = self._ready.popleft()
            if connection.phase is Phase.IDLE and not connection.is_gone:
                self.attend(connection, self._advance)

    def expire(self, now: float) -> None:
        """Close the connections that have been too slow, and those whose clients have gone without a word."""
        late = []
        for connection in self._open:
            if connection.deadline <= now or connection.phase is Phase.BUSY and connection.has_ended:
                late.append(connection)
        for connection in late:
            if connection.phase is Phase.BUSY:
                self.attend(connection, self._ask_whether_it_reads)
            elif connection.phase is not Phase.IDLE or not connection.has_unread():  # this process may have been stopped
                if (message := _LATE.get(connection.phase)) is not None:
                    self._say(connection, HTTPStatus.REQUEST_TIMEOUT, message)
                elif connection.phase is Phase.WRITING:
                    connection.forget_unsent()
                self.drop(connection)

    def _ask_whether_it_reads(self, connection: Connection) -> None:
        """Find out whether a client that sends no more still waits for its answer: many close when they give up.

        The two look alike from here until something is sent. An interim answer means nothing to whoever waits
        (RFC 9110, section 15.2), and the system of whoever has closed resets the connection for it.
        """
        if connection.has_failed():
            self.drop(connection)
        elif connection.can_be_asked and not connection.has_begun:
            connection.can_be_asked = False
            try:
                connection.write(_CONTINUE)
            except ClientGone:
                self.drop(connection)

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest, else one that has been slow; return False if none can go."""
        for phases in _MAKING_ROOM:
            for connection in sorted(self._removable(phases), key=lambda each: each.since):
                has_request = connection.phase is Phase.IDLE and (connection.parser.requests or connection.has_unread())
                if not has_request:
                    self.drop(connection)
                    return True
        return False

    def can_make_room(self) -> bool:
        """Return True if a connection could be closed for a new one: not all wait for an answer or have begun to read it."""
        return any(True for phases in _MAKING_ROOM for _ in self._removable(phases))

    def _removable(self, phases: tuple[Phase, ...]) -> Iterator[Connection]:
        """Give the connections in `phases` that may be closed for others; who reads an answer has some time to do it."""
        began = time.monotonic() - self._seconds[Phase.WRITING]
        for connection in self._open:
            if connection.phase in phases and (connection.phase is not Phase.WRITING or connection.since < began):
                yield connection

    def _bound_unread_answers(self) -> None:
        """Close those who have been reading for longest while answers that nobody takes fill the memory."""
        writing = sorted((each for each in self._open if each.phase is Phase.WRITING), key=lambda each: each.since)
        unread = sum(len(each.out) for each in writing)
        for connection in writing:
            if unread <= MAX_BODIES * self._limits.body:
                return
            unread -= len(connection.out)
            connection.forget_unsent()
            self.drop(connection)

    def stop(self) -> None:
        """From now on each answer is its connection's last, and idle connections have little time left."""
        self.is_stopping = True
        self._seconds[Phase.IDLE] = STOP_SECONDS
        end = time.monotonic() + STOP_SECONDS
        for connection in self._open:
            if connection.phase is Phase.IDLE:
                connection.deadline = min(connection.deadline, end)

    def waiting(self) -> list[Connection]:
        """Return the connections that wait for an answer: of the application, or because nobody has read them yet."""
        return [
            each
            for each in list(self._open)
            if each.phase is Phase.BUSY and not each.has_begun or each.phase is Phase.IDLE and each.has_unread()
        ]

    def _advance(self, connection: Connection) -> None:
        """Do what is next on a connection that is not being closed."""
        parser = connection.parser
        if connection.phase is Phase.BUSY or connection.phase is Phase.WRITING:
            self._watch(connection)
        elif parser.requests:
            request = parser.requests.popleft()
            connection.held, connection.can_be_asked = len(request.body), request.version == "1.1"
            self._body_bytes += connection.held
            self._enter(connection, Phase.BUSY)
            self._on_request(connection, request)
        elif parser.refusal is not None:
            self.refuse(connection, parser.refusal.status, parser.refusal.message)
        elif connection.has_ended and (parser.is_in_head or parser.is_in_body):
            self.refuse(connection, HTTPStatus.BAD_REQUEST, "The request ended early; send all of it.")
        elif connection.has_ended:
            self.drop(connection)
        elif parser.is_in_body:
            if parser.awaits_continue():
                self._continue(connection)
            self._enter(connection, Phase.BODY)
        elif parser.is_in_head:
            self._enter(connection, Phase.HEAD)

    def _continue(self, connection: Connection) -> None:
        with contextlib.suppress(ClientGone):
            connection.write(_CONTINUE)

    def _answered(self, connection: Connection) -> None:
        """An answer has been taken by the client's system: wait for the next request, or close."""
        parser = connection.parser
        if connection.will_close:
            self._close(connection)
            return
        self._enter(connection, Phase.IDLE)
        if parser.requests or parser.refusal is not None or parser.is_in_head or parser.is_in_body or connection.has_ended:
            self._ready.append(connection)

    def _close(self, connection: Connection) -> None:
        """Close, but let the client read the answer first: bytes of its that arrive unread would destroy it."""
        if connection.has_ended or connection.parser.is_clean and not connection.has_unread():
            self.drop(connection)
            return
        connection.finish_sending()
        self._enter(connection, Phase.CLOSING)

    def _enter(self, connection: Connection, phase: Phase) -> None:
        if connection.phase is not phase:
            connection.phase, connection.since, connection.taken = phase, time.monotonic(), 0
            connection.deadline = connection.since + self._seconds[phase]
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        """Ask the selector for the events that this connection waits for now."""
        events = selectors.EVENT_WRITE if connection.out else 0
        # While requests wait their turn, no more are read: the client's system holds them back.
        holds_back = connection.parser.requests and connection.phase is not Phase.CLOSING
        if not connection.has_ended and not holds_back:
            events |= selectors.EVENT_READ
        if events == connection.watched:
            return
        if not events:
            self._selector.unregister(connection.sock)
        elif connection.watched:
            self._selector.modify(connection.sock, events, connection)
        else:
            self._selector.register(connection.sock, events, connection)
        connection.watched = events
