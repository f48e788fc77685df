"""Between HTTP and WSGI (PEP 3333): a request as an environ, and what the application answers as bytes."""

import io
import json
import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.types import WSGIApplication

from gunicorn.config import Config
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper

from servekit.http1 import Refused, Request

SERVER = "servekit"
FLUSH_BYTES = 2**16  # an answer is collected up to here before it is sent on

_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*")  # RFC 9110, sections 5.1 and 5.5
_STATUS = re.compile(r"[1-9][0-9]{2}( [\t -~\x80-\xff]*)?")
# RFC 9110, section 7.6.1: these are between the server and its client.
_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection")
)


class Gateway:
    """What the environs of all requests of a worker share."""

    def __init__(self, cfg: Config) -> None:
        self._cfg = cfg
        self._schemes = {
            "HTTP_" + name.upper().replace("-", "_"): secure for name, secure in cfg.secure_scheme_headers.items()
        }
        self._keys: dict[bytes, str] = {}  # a header's name as it was sent -> its key in the environ, or ""
        self._shared = {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": WSGIErrorsWrapper(cfg),
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "SERVER_SOFTWARE": SERVER,
            "SCRIPT_NAME": "",
        }

    def environ_of(self, peer: Any, server: Any) -> dict[str, Any]:
        """Return what the environs of one connection share; `peer` and `server` are socket addresses."""
        environ = dict(self._shared)
        if isinstance(peer, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = peer[0], str(peer[1])
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        else:  # a unix socket
            environ["REMOTE_ADDR"] = ""
            environ["SERVER_NAME"], environ["SERVER_PORT"] = "localhost", "80"
        return environ

    def environ(self, shared: dict[str, Any], request: Request) -> dict[str, Any]:
        """Return the environ of `request`; `shared` is that of its connection. Raises Refused for a spoofed scheme."""
        target = request.target
        path, _, query = target.partition(b"?")
        if not path.startswith((b"/", b"*")):  # absolute-form: its authority wins over Host (RFC 9112, section 3.2.2)
            _, _, rest = path.partition(b"://")
            authority, slash, path = rest.partition(b"/")
            path = slash + path or b"/"
            request.fields = [field for field in request.fields if field[0].lower() != b"host"]
            request.fields.append((b"Host", authority))
        environ = shared.copy()
        environ["REQUEST_METHOD"] = request.method
        environ["RAW_URI"] = target.decode("latin-1")
        environ["PATH_INFO"] = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        environ["QUERY_STRING"] = query.decode("latin-1")
        environ["SERVER_PROTOCOL"] = "HTTP/" + request.version
        environ["wsgi.input"] = io.BytesIO(request.body)
        keys = self._keys
        for name, value in request.fields:
            key = keys.get(name)
            if key is None:
                key = self._key(name)
            if key in environ:
                separator = "; " if key == "HTTP_COOKIE" else ","  # RFC 9113, section 8.2.3
                environ[key] = environ[key] + separator + value.decode("latin-1")
            elif key:
                environ[key] = value.decode("latin-1")
        if request.is_cut:  # what was sent in chunks is given as if it had been announced: nobody is to wait for it
            environ["CONTENT_LENGTH"] = str(request.length)
            environ.pop("HTTP_TRANSFER_ENCODING", None)
        if not self._schemes.keys().isdisjoint(environ):
            self._set_scheme(environ)
        return environ

    def _key(self, name: bytes) -> str:
        """Return the key of a header, or "" for one that is dropped: `X_A` and `X-A` would be the same key."""
        text = name.decode("ascii").upper()
        key = "HTTP_" + text.replace("-", "_")
        if text in ("CONTENT-TYPE", "CONTENT-LENGTH"):
            key = key.removeprefix("HTTP_")
        elif "_" in text and self._cfg.header_map != "dangerous":
            if self._cfg.header_map == "refuse":
                raise Refused(HTTPStatus.BAD_REQUEST, "A header's name has an underscore.")
            key = ""
        if len(self._keys) < 1000:  # clients may invent names without end
            self._keys[name] = key
        return key

    def _set_scheme(self, environ: dict[str, Any]) -> None:
        """Believe a proxy that Gunicorn's `forwarded_allow_ips` names about the scheme that its client uses."""
        if not self._is_trusted(environ["REMOTE_ADDR"]):
            return
        said = {environ[key] == secure for key, secure in self._schemes.items() if key in environ}
        if len(said) > 1:
            raise Refused(HTTPStatus.BAD_REQUEST, "The headers disagree about the scheme.")
        if said == {True}:
            environ["wsgi.url_scheme"] = "https"

    def _is_trusted(self, address: str) -> bool:
        allowed = self._cfg.forwarded_allow_ips
        if not address or "*" in allowed or address in allowed:
            return True
        return any(ip_address(address) in network for network in self._cfg.forwarded_allow_networks())


class Response:
    """What the application answers to one request, framed and handed on piece by piece.

    Gunicorn's logger and `post_request` read `status`, `headers` and `sent`.
    """

    __slots__ = (
        "_buffer",
        "_buffered",
        "_chunked",
        "_has_flushed",
        "_head_sent",
        "_length",
        "_request",
        "_says_keep_alive",
        "_send",
        "headers",
        "keep_alive",
        "sent",
        "status",
    )

    def __init__(self, request: Request, keep_alive: bool, send: Callable[[bytes, bool], None]) -> None:
        """`send` takes bytes for the client; unless they are the last ones, it may wait until the client has taken them."""
        self._request = request
        self._send = send
        self.keep_alive = keep_alive
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        self.sent = 0  # bytes of the body
        self._length: int | None = None
        self._chunked = False
        self._says_keep_alive = False  # HTTP/1.1 need not, but some contracts do
        self._head_sent = False  # into the buffer
        self._has_flushed = False
        self._buffer: list[bytes] = []
        self._buffered = 0

    @property
    def has_begun(self) -> bool:
        """Something of the answer is on its way; it cannot be another one any more."""
        return self._has_flushed

    def run(self, app: WSGIApplication, environ: dict[str, Any]) -> None:
        """Call the application and hand its answer on; raise what it raises."""
        pieces: Iterable[bytes] = app(environ, self.start_response)
        try:
            is_fresh = self._length is None and self.status and not self._head_sent
            if is_fresh and isinstance(pieces, list | tuple) and len(pieces) == 1:
                self._length = len(pieces[0])
                self.headers.append(("Content-Length", str(self._length)))
            for piece in pieces:
                if piece:
                    self.write(piece)
                    if self._chunked:
                        self._flush()  # whoever streams wants each piece to arrive
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        self._finish()

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], None]:
        """Take the status and the headers; WSGI's `start_response`."""
        if exc_info is not None and self._head_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        if self.status and exc_info is None:
            raise AssertionError("start_response was called twice")
        if not _STATUS.fullmatch(status):
            raise ValueError("the application gives a status that is none")
        if status.startswith("413"):  # whoever sends too much begins anew
            self.keep_alive = False
        self.status, self.headers, self._length = status, [], None
        for name, value in headers:
            if not _HEADER.fullmatch(f"{name}: {value}"):
                raise ValueError("the application gives a header that would break the answer")
            kind = name.lower()
            if kind == "content-length":
                self._length = int(value)
            elif kind in _HOP_BY_HOP:
                if kind == "connection":
                    self.keep_alive = self.keep_alive and value.lower() != "close"
                    self._says_keep_alive = value.lower() == "keep-alive"
                continue
            self.headers.append((name, value))
        return self.write

    def write(self, piece: bytes) -> None:
        """Hand on a piece of the body."""
        if not self._head_sent:
            self._begin()
        if self._omits_body():
            return
        if self._length is not None:
            piece = piece[: self._length - self.sent]
        if not piece:
            return  # as a chunk it would be the end
        self.sent += len(piece)
        if self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        if self._buffered > FLUSH_BYTES:
            self._flush()
        self._buffer.append(piece)
        self._buffered += len(piece)

    def _finish(self) -> None:
        if not self._head_sent:
            if self._length is None and not self._omits_body():
                self._length = 0
                self.headers.append(("Content-Length", "0"))
            self._begin()
        if self._chunked:
            self._buffer.append(b"0\r\n\r\n")
        elif self._length is not None and self.sent < self._length and not self._omits_body():
            self.keep_alive = False  # fewer bytes than it promised: only the end of the connection can say so
        self._flush(is_last=True)

    def _begin(self) -> None:
        if not self.status:
            raise AssertionError("the application answers without start_response")
        self._head_sent = True
        bodiless = self.status.startswith(("1", "204"))
        if self._length is None and not self._omits_body():
            self._chunked = self._request.version == "1.1"
            self.keep_alive = self.keep_alive and self._chunked
        lines = [f"HTTP/1.1 {self.status}\r\nServer: {SERVER}\r\nDate: {http_date()}\r\n"]
        if not self.keep_alive:
            lines.append("Connection: close\r\n")
        elif self._request.version == "1.0" or self._says_keep_alive:
            lines.append("Connection: keep-alive\r\n")
        if self._chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in self.headers if not bodiless or name.lower() != "content-length"]
        lines.append("\r\n")
        self._buffer.append("".join(lines).encode("latin-1"))

    def _omits_body(self) -> bool:
        return self._request.method == "HEAD" or self.status.startswith(("1", "204", "304"))

    def _flush(self, is_last: bool = False) -> None:
        if self._buffer:
            data = b"".join(self._buffer)
            self._buffer, self._buffered = [], 0
            self._has_flushed = True
            self._send(data, is_last)


# A status and a sentence as a contract shows them: status, body in JSON, more headers.
Dress = Callable[[HTTPStatus, str], tuple[HTTPStatus, bytes, Iterable[tuple[str, str]]]]


def plain(status: HTTPStatus, message: str) -> tuple[HTTPStatus, bytes, Iterable[tuple[str, str]]]:
    """Return status and body of an error in servekit's own form."""
    return status, json.dumps({"error": message}).encode(), ()


dresses: dict[str, Dress] = {}  # by the server's port, of contracts that have an address of their own


def refusal(status: HTTPStatus, message: str, port: str, method: str = "GET", identity: str = "") -> bytes:
    """Return a whole answer in the form of the errors on `port`, after which the connection is closed.

    `identity` is what the log calls this request.
    """
    status, body, headers = dresses.get(port, plain)(status, message)
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    more += f"X-Request-Id: {identity}\r\n" if identity else ""
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: {SERVER}\r\nDate: {http_date()}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode("latin-1") + (b"" if method == "HEAD" else body)


_date = (0, "")


def http_date() -> str:
    """Return the time as HTTP writes it (RFC 9110, section 5.6.7), formatted once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, formatdate(now, usegmt=True))
    return _date[1]
