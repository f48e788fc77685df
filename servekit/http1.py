"""HTTP/1.1 requests out of the bytes of a connection (RFC 9112); no socket and no WSGI here.

httptools (llhttp) frames and reads; what it takes but a server should not is refused here. A request that is refused
ends its connection, so nothing behind it is ever read as another request.
"""

import dataclasses
import io
import re
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools

MAX_HEAD_BYTES = 2**16  # of a whole head, unless Gunicorn's limits allow one line more
MAX_LENGTH_DIGITS = 20  # of a Content-Length; with zeros in front it could have thousands
MAX_FRAMING_BYTES = 2**18  # of chunk sizes, extensions and trailers: a body in crumbs costs more than its bytes
# Of the body of a client without a key, where keys are asked for: an ordinary small request is refused in the ordinary way,
# and its connection goes on.
MAX_STRANGERS_BODY = 2**16

# Visible ASCII (RFC 3986), without the fragment that a client never sends.
_TARGET = re.compile(rb"(/|https?://[^/?#@]+(?=[/?]|\Z)|\*\Z)[!\"$-~]*", re.IGNORECASE)
# RFC 9110, section 7.2: a name or an address, and a port; empty where the target has no authority.
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+;=%-]*)(:[0-9]*)?")

_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class Refused(Exception):
    """A request that cannot be read safely; `status` and one sentence for the client."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message


class _Stop(Exception):
    """Ends the parsing of a connection whose next request will not be read."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may measure, in bytes, and how many header fields it may have; 0 for no limit of its own."""

    line: int
    fields: int
    field_size: int
    body: int

    @property
    def head(self) -> int:
        """The bytes of the whole head."""
        return max(MAX_HEAD_BYTES, self.line + self.field_size)


class Request:
    """A request whose body has arrived, or is more than its client may send: then `is_cut`, and none of it is held."""

    __slots__ = ("body", "expects_continue", "fields", "host", "is_cut", "keep_alive", "length", "method", "target", "version")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.version = "1.1"
        self.fields: list[tuple[bytes, bytes]] = []  # the header, names as they were sent
        self.host: bytes | None = None
        # As announced; None for a chunked body and for none. Of a chunked body that was cut, what had arrived of it.
        self.length: int | None = None
        self.body = b""
        self.is_cut = False
        self.keep_alive = True
        self.expects_continue = False

    @property
    def authorization(self) -> str:
        """The header Authorization as the application will find it, "" without one."""
        return ",".join(value.decode("latin-1") for name, value in self.fields if name.lower() == b"authorization")

    # What Gunicorn's logger and the users' hooks read of a request.

    @property
    def uri(self) -> str:
        """The request target as it was sent."""
        return self.target.decode("latin-1")

    @property
    def path(self) -> str:
        """The request target up to its query."""
        return self.uri.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows the question mark."""
        return self.uri.partition("?")[2]

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The header fields, their names in capitals."""
        return [(name.decode("latin-1").upper(), value.decode("latin-1")) for name, value in self.fields]


class RequestParser:
    """Feeds the bytes of one connection to httptools; `requests` are those complete, `refusal` ends the connection."""

    def __init__(self, limits: Limits, knows: Callable[[str], bool] | None = None) -> None:
        """`knows` says whether a value of Authorization holds a key; None where nobody needs one.

        It is asked when a body is announced that is large or waits for `100 Continue`, or when one grows large.
        """
        self.requests: deque[Request] = deque()
        self.refusal: Refused | None = None
        self.is_closed = False  # nothing more will be read, because of a refusal or a request that is the last one
        self._limits, self._head_limit, self._knows = limits, limits.head, knows
        self._open_to_all = limits.body if knows is None else min(limits.body, MAX_STRANGERS_BODY)  # bytes of a body
        self._request: Request | None = None  # the one that is arriving
        self._in_body = False
        self._body: bytes | io.BytesIO = b""  # joined as it arrives: joined at its end, it would be there twice
        self._fed = 0  # bytes since the part of the request that is arriving began
        self._target_bytes = self._head_bytes = self._body_bytes = 0
        self._may_be_strange = False  # nobody has looked for a key of the request that is arriving, or it has none
        self._was_kept_alive, self._was_cut = True, False  # the last request that is complete
        self._parser: Any = httptools.HttpRequestParser(self)

    def close(self) -> None:
        """Let go of all that has arrived: httptools refers back to this object, so a body would outlive its connection."""
        self.is_closed = True
        self.requests.clear()
        self._request, self._body, self._in_body = None, b"", False
        self._parser = None

    @property
    def body_bytes(self) -> int:
        """The bytes that are held of a body that is arriving."""
        return self._body_bytes if self._in_body else 0

    @property
    def is_in_head(self) -> bool:
        """Part of a request's head has arrived."""
        return self._request is not None and not self._in_body

    @property
    def is_in_body(self) -> bool:
        """The head of a request has arrived, but not its whole body."""
        return self._in_body

    @property
    def is_clean(self) -> bool:
        """All that was fed has become requests, and none was refused or cut."""
        return not (self.refusal or self._was_cut or self._request is not None or self.requests)

    def awaits_continue(self) -> bool:
        """Return True, once for each request, if its client waits for `100 Continue` before it sends the body."""
        request = self._request
        if request is None or not self._in_body or not request.expects_continue:
            return False
        request.expects_continue = False
        return self._body_bytes == 0

    def feed(self, data: bytes) -> None:
        """Read more bytes; afterwards look at `requests`, `refusal` and `is_closed`."""
        while data and not self.is_closed:
            self._fed += len(data)
            try:
                self._parser.feed_data(data)
                data = b""
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                self._fed = 0
            except httptools.HttpParserCallbackError as error:
                self._end(error.__context__)
            except httptools.HttpParserError as error:
                self._end(error)
        if not self.is_closed:
            self._check_growth()

    def refuse(self, refusal: Refused) -> None:
        """Read no more of this connection, and refuse the request that is arriving."""
        self._end(refusal)

    def _without_upgrade(self) -> bytes:
        """Return the head that has just arrived without its invitation to another protocol, which is declined.

        httptools takes what follows such a head for that protocol, though it may be the body of this request.
        """
        request = self._request
        assert request is not None
        lines = [b"%s %s HTTP/%s" % (request.method.encode(), request.target, request.version.encode())]
        lines += [b"%s: %s" % field for field in request.fields if field[0].lower() != b"upgrade"]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def _end(self, reason: BaseException | None) -> None:
        self.is_closed = True
        self._request, self._body, self._in_body = None, b"", False
        if isinstance(reason, Refused):
            self.refusal = reason
        elif isinstance(reason, httptools.HttpParserInvalidMethodError):
            self.refusal = Refused(HTTPStatus.NOT_IMPLEMENTED, "That method is not known here.")
        elif isinstance(reason, httptools.HttpParserError):
            # Data behind `Connection: close` is an error, too; the request before it is answered and was the last one.
            self.refusal = Refused(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP/1.1.")
        elif not isinstance(reason, _Stop):
            raise RuntimeError("a callback of the parser failed") from reason

    def _check_growth(self) -> None:
        """Refuse what grows without becoming complete: httptools reports a field only when it has all of it."""
        if self.is_in_head and self._fed > self._head_limit:
            self._end(Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The head of the request is too large."))
        elif self._in_body and self._fed - self._body_bytes > MAX_FRAMING_BYTES:
            self._end(Refused(HTTPStatus.BAD_REQUEST, "The body is cut into too many or too wordy chunks."))

    # What follows is called by httptools while it reads.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._request = Request()
        self._body = b""
        self._may_be_strange = self._knows is not None
        self._target_bytes = self._head_bytes = self._body_bytes = 0

    def on_url(self, target: bytes) -> None:
        """Take a piece of the request target."""
        assert self._request is not None
        self._request.target += target
        self._target_bytes += len(target)
        line = len(self._parser.get_method()) + self._target_bytes + len("  HTTP/1.1\r\n")
        if 0 < self._limits.line < line:
            raise Refused(HTTPStatus.REQUEST_URI_TOO_LONG, "The request line is too long.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; one behind the body (a trailer) is dropped, since nobody may rely on it."""
        if self._in_body:
            return
        request, limits = self._request, self._limits
        assert request is not None
        size = len(name) + len(value) + 4  # with ": " and the line's end
        value = value.strip(b" \t")
        self._head_bytes += size
        if 0 < limits.field_size < size or self._target_bytes + self._head_bytes > self._head_limit:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "A header field is too large.")
        request.fields.append((name, value))
        if len(request.fields) > limits.fields > 0:
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "There are too many header fields.")
        kind = name.lower()
        if kind in _FRAMING:
            self._judge_field(request, kind, value)

    def _judge_field(self, request: Request, kind: bytes, value: bytes) -> None:
        if kind == b"host":
            if request.host is not None:
                raise Refused(HTTPStatus.BAD_REQUEST, "There is more than one Host.")
            request.host = value
        elif kind == b"content-length":
            if len(value) > MAX_LENGTH_DIGITS:
                raise Refused(HTTPStatus.BAD_REQUEST, "The Content-Length is not valid.")
            request.length = int(value)  # httptools has refused all but digits, and a second one
        elif kind == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Refused(HTTPStatus.NOT_IMPLEMENTED, "The only transfer coding that is read is chunked.")
            if self._parser.get_http_version() == "1.0":
                raise Refused(HTTPStatus.BAD_REQUEST, "The length of the body is ambiguous.")
        else:
            if value.lower() != b"100-continue":
                raise Refused(HTTPStatus.EXPECTATION_FAILED, "The only expectation that is met is 100-continue.")
            request.expects_continue = True

    def on_headers_complete(self) -> None:
        """Judge the head; end the reading here if the body is announced as too large, or a stranger would be told to send it."""
        request, parser = self._request, self._parser
        assert request is not None
        request.version = parser.get_http_version()
        request.method = parser.get_method().decode("ascii")
        request.keep_alive = parser.should_keep_alive()
        if request.version not in ("1.1", "1.0"):
            raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 and HTTP/1.0 are spoken here.")
        if request.method == "CONNECT":  # its connection would become a tunnel, and httptools treats it as one
            raise Refused(HTTPStatus.NOT_IMPLEMENTED, "There is no tunnel here.")
        if not _TARGET.fullmatch(request.target) or (request.target == b"*" and request.method != "OPTIONS"):
            raise Refused(HTTPStatus.BAD_REQUEST, "The request target is not valid.")
        if request.host is None:
            if request.version == "1.1":
                raise Refused(HTTPStatus.BAD_REQUEST, "There is no Host.")
        elif not _HOST.fullmatch(request.host):
            raise Refused(HTTPStatus.BAD_REQUEST, "The Host is not valid.")
        if request.version == "1.0":
            request.expects_continue = False  # RFC 9110, section 10.1.1
        if parser.should_upgrade():
            return  # it is read again, see _without_upgrade
        self._in_body = True
        self._fed = 0
        length = request.length or 0
        if length > self._open_to_all and self._is_too_large(length) or request.expects_continue and self._is_strange():
            self._complete(is_cut=True)
            raise _Stop

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body; end the reading once there is more than may be."""
        self._body_bytes += len(data)
        if self._body_bytes > self._open_to_all and self._is_too_large(self._body_bytes):
            self._complete(is_cut=True)
            raise _Stop
        if not self._body:
            self._body = data
            return
        if isinstance(self._body, bytes):
            first, self._body = self._body, io.BytesIO()
            self._body.write(first)
        self._body.write(data)

    def _is_too_large(self, size: int) -> bool:
        """Return True if `size` bytes of a body, more than everyone may send, are more than this client may."""
        return size > self._limits.body or self._is_strange()

    def _is_strange(self) -> bool:
        """Return True if the request that is arriving has no key though one is needed; a known key is looked for once."""
        request = self._request
        if self._may_be_strange and self._knows is not None and request is not None:
            self._may_be_strange = not self._knows(request.authorization)
        return self._may_be_strange

    def on_message_complete(self) -> None:
        """Put the request among those that are complete."""
        if not self._in_body:
            return  # see _without_upgrade
        self._complete(is_cut=False)
        if not self._was_kept_alive:
            raise _Stop

    def _complete(self, is_cut: bool) -> None:
        request = self._request
        assert request is not None
        if is_cut:
            request.length = self._body_bytes if request.length is None else request.length
        else:
            request.body = self._body if isinstance(self._body, bytes) else self._body.getvalue()
        request.is_cut = self._was_cut = is_cut
        request.keep_alive = self._was_kept_alive = request.keep_alive and not is_cut
        self.requests.append(request)
        self._request = None
        self._body = b""
        self._in_body = False
        self._fed = 0
