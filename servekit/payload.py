"""What a request carries, whatever its content type: named members, each sent once or more."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn, cast
from urllib.parse import parse_qsl

from flask import Request
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.utils import cached_property

from servekit.codecs.values import parse_json
from servekit.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
JSON = "application/json"
IMAGES = ("image/png", "image/jpeg")
MAX_FORM_BYTES = 2**20  # of a form of text: a percent sign costs its parser a hundred times its size
MAX_PARTS = 1000  # files of one batch, or fields of a form

MAX_PART_HEAD = 4096  # bytes of what stands before the content of a part, with room for a name and a type
MAX_PART_FIELDS = 16  # lines and semicolons in it; Werkzeug's parser takes microseconds for each
MAX_BOUNDARY = 200  # characters; RFC 2046 allows 70, and Werkzeug's own test client sometimes writes a few more

_LONG_BOUNDARY = f"The boundary of the form is too long; {MAX_BOUNDARY} characters are the most that are read."
_LARGE_HEAD = f"A part of the form has too large a head; it may have {MAX_PART_HEAD} bytes and {MAX_PART_FIELDS} fields."
_HEAD_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")  # Werkzeug takes each of them
_DAMAGED = "The form is damaged; it needs a boundary, all its parts, and names in UTF-8."
_BOUNDARY = re.compile(r"multipart/form-data; ?boundary=([A-Za-z0-9'+_.-]{1,70})")
# Names without quotes, backslashes and percent signs, which stand for others in some clients' spelling.
_UPLOAD = re.compile(
    rb'Content-Disposition: form-data; name="([A-Za-z0-9_.\[\]-]+)"; filename="([A-Za-z0-9 _.()+,@-]+)"'
    rb"(?:\r\nContent-Type: ([A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+))?",
    re.IGNORECASE,
)


class BodyInMemory(Request):
    """A request whose body is read whole, at most `max_content_length` bytes, and whose uploads stay in memory.

    Werkzeug's own stream cuts a chunked body off at the limit and parses what it has as if it were all.
    """

    @cached_property
    def stream(self) -> IO[bytes]:
        """The body; reading it raises 413 over the limit, and 400 when the client went away or sent broken chunks."""
        limit, length = cast(int, self.max_content_length), self.content_length
        if length is None and "wsgi.input_terminated" not in self.environ:
            return io.BytesIO()  # the development server: without a length there is no body
        if length is not None and length > limit:
            self._refuse(limit, length)
        try:
            body = self.environ["wsgi.input"].read(limit + 1 if length is None else length)
        except MemoryError:
            raise
        except Exception:  # each server has its own exceptions for broken chunks and for clients that went away
            raise ClientDisconnected from None
        if length is not None and len(body) < length:
            raise ClientDisconnected
        if len(body) > limit:
            self._refuse(limit, len(body))
        return io.BytesIO(body)

    @cached_property
    def payload(self) -> "Payload":
        """What this request carries, read on first use; raises as `read_payload` does."""
        return read_payload(self)

    def _refuse(self, limit: int, length: int) -> NoReturn:
        """Raise 413; before that, take off the wire a body that is not far over the limit.

        Many clients read no answer before they have sent all, and a connection closed meanwhile hides the answer.
        """
        if length <= 2 * limit:
            left = 2 * limit
            with contextlib.suppress(Exception):
                while left > 0 and (piece := self.environ["wsgi.input"].read(min(left, 2**16))):
                    left -= len(piece)
        raise RequestEntityTooLarge

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        return io.BytesIO()


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file that was sent: its name and its type, if it has them, and its content."""

    filename: str | None
    content: bytes
    content_type: str | None = None


class Payload:
    """Members by name: text of a form, any value of JSON, or an `Upload`."""

    def __init__(self, members: Mapping[str, Sequence[Any]]) -> None:
        self._members = members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def all(self, name: str) -> Sequence[Any]:
        """Return every member called `name`, in the order they were sent."""
        return self._members.get(name, ())

    def one(self, name: str) -> Any:
        """Return the member called `name`, or None; raise InvalidInput if it was sent more than once."""
        members = self.all(name)
        if len(members) > 1:
            raise InvalidInput(f"{name} was sent {len(members)} times; send it once.")
        return members[0] if members else None


def require_plain(request: Request) -> None:
    """Raise UnsupportedMediaType for a body that is compressed: what is no JSON or image then would puzzle its client."""
    if request.environ.get("HTTP_CONTENT_ENCODING", "").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("Bodies are not read in that Content-Encoding here; send the body as it is, without one.")


def read_payload(request: Request) -> Payload:
    """Read the whole body; raise InvalidInput, UnsupportedMediaType, or Werkzeug's 413 when it is over a limit.

    A raw PNG or JPEG counts as the member `file`. A request without a body carries nothing.
    """
    require_plain(request)
    kind = request.environ.get("CONTENT_TYPE", "")
    if kind not in IMAGES and kind != FORM:  # as most clients write them
        kind = request.mimetype
    if kind in (FORM, MULTIPART):
        return _read_form(request, kind)
    if kind == JSON:
        value = parse_json(request.get_data(cache=False))
        if not isinstance(value, dict):
            raise InvalidInput('The JSON must be an object, such as {"value": 5}.')
        return Payload({name: [member] for name, member in value.items()})
    if kind in IMAGES:
        return Payload({"file": [Upload(None, request.get_data(cache=False))]})
    if not kind and not request.get_data(cache=False):
        return Payload({})
    raise UnsupportedMediaType(f"That content type is not read; send one of: {', '.join([FORM, MULTIPART, JSON, *IMAGES])}.")


def _read_form(request: Request, kind: str) -> Payload:
    body = request.get_data()
    if kind == FORM:
        return _read_text_form(body)
    uploads = split_uploads(body, request.environ["CONTENT_TYPE"])
    if uploads is not None:
        return Payload(uploads)
    try:
        form, files = parse_multipart(request, body)
    except ValueError:
        raise InvalidInput(_DAMAGED) from None
    members: dict[str, list[Any]] = {name: list(values) for name, values in form.lists()}
    for name, received in files.lists():
        members.setdefault(name, []).extend(_upload(file) for file in received)
    return Payload(members)


def parse_multipart(request: Request, body: bytes) -> tuple[MultiDict[str, str], MultiDict[str, FileStorage]]:
    """Let Werkzeug take a multipart body apart, if that cannot take long; return its texts and its files.

    Raises InvalidInput for heads that would take long, PayloadTooLarge for too many parts, ValueError for what is damaged.
    """
    _require_small_heads(body, request.mimetype_params.get("boundary", ""))
    parser = request.make_form_data_parser()
    parser.silent = False  # else a damaged form would be an empty one
    _, form, files = parser.parse(io.BytesIO(body), MULTIPART, len(body), request.mimetype_params)
    return form, files


def _require_small_heads(body: bytes, boundary: str) -> None:
    """Look at what follows each boundary, also at one that is none: a part's content may not hold it."""
    if len(boundary) > MAX_BOUNDARY:
        raise InvalidInput(_LONG_BOUNDARY)
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    at, count = body.find(delimiter), 0
    while at >= 0:
        count += 1
        if count > MAX_PARTS + 1:
            raise PayloadTooLarge(f"A form may have {MAX_PARTS} files or fields.")
        start = at + len(delimiter)
        window = body[start : start + MAX_PART_HEAD]
        end = _HEAD_END.search(window)
        head = window[: end.end()] if end else window
        is_last = window.startswith(b"--") and not window[2:].strip()
        if not is_last and (end is None and len(window) == MAX_PART_HEAD or _fields_in(head) > MAX_PART_FIELDS):
            raise InvalidInput(_LARGE_HEAD)
        at = body.find(delimiter, start)


def _fields_in(head: bytes) -> int:
    return head.count(b";") + max(head.count(b"\n"), head.count(b"\r"))


def _upload(file: FileStorage) -> Upload:
    return Upload(file.filename, file.read(), file.content_type or None)


def _read_text_form(body: bytes) -> Payload:
    if len(body) > MAX_FORM_BYTES or body.count(b"&") >= MAX_PARTS:
        raise PayloadTooLarge(
            f"A form of text may have {MAX_FORM_BYTES} bytes and {MAX_PARTS} fields; send files as {MULTIPART}."
        )
    members: dict[str, list[Any]] = {}
    try:
        for name, value in parse_qsl(body.decode(), keep_blank_values=True, errors="strict"):
            members.setdefault(name, []).append(value)
    except ValueError:
        raise InvalidInput(_DAMAGED) from None
    return Payload(members)


def split_uploads(body: bytes, content_type: str) -> dict[str, list[Upload]] | None:
    """Return the uploads of a multipart body (RFC 7578) that has the usual form, else None.

    Usual is what curl, browsers and the common libraries write for files with plain names. It is cut at its boundaries;
    Werkzeug's parser, which takes longer than the network, reads all else: text fields, escaped names, encodings.
    """
    boundary = _BOUNDARY.fullmatch(content_type)
    if boundary is None:
        return None
    body = body.removeprefix(b"\r\n")  # a preamble that says nothing
    opening = b"--" + boundary[1].encode()
    delimiter = b"\r\n" + opening
    end = len(body) - len(delimiter) - 2 - (2 if body.endswith(b"\r\n") else 0)
    if not body.startswith(opening + b"\r\n") or body[end:].rstrip(b"\r\n") != delimiter + b"--":
        return None
    parts = body[len(opening) + 2 : max(end, 0)].split(delimiter + b"\r\n")
    if len(parts) > MAX_PARTS:
        return None
    uploads: dict[str, list[Upload]] = {}
    for part in parts:
        head, _, content = part.partition(b"\r\n\r\n")
        found = _UPLOAD.fullmatch(head)
        if found is None or opening in content:
            return None
        uploads.setdefault(found[1].decode(), []).append(
            Upload(found[2].decode(), content, found[3].decode() if found[3] else None)
        )
    return uploads
