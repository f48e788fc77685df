"""Between HTTP and handlers: what a handler gets of a request, and answers and errors in TorchServe's dress."""

import json
import logging
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from flask import Request, Response
from werkzeug.exceptions import HTTPException

from servekit.engines.torchserve import HandlerRequest, HandlerResponse, Parameter
from servekit.errors import (
    DeadlineExceeded,
    Forbidden,
    ForeignSite,
    HandlerFailed,
    InvalidInput,
    OutOfMemory,
    PayloadTooLarge,
    RequestError,
    TooManyRequests,
    Unauthorized,
    UnsupportedMediaType,
)
from servekit.guardian import GONE
from servekit.lean import PlainResponse
from servekit.logs import request_id, tell_failure
from servekit.middleware import new_id
from servekit.payload import FORM, MAX_PARTS, MULTIPART, parse_multipart, split_uploads
from servekit.tensors import Tensors
from servekit.torchserve import exposition
from servekit.torchserve.refusals import NO_METHOD, NO_RESOURCE, STATUSES, Refusal
from servekit.torchserve.registry import current

log = logging.getLogger(__name__)

JSON = "application/json"
MAX_ESCAPES = 2**20  # percent signs of a form: each costs its parser a hundred times its size

_UNKNOWN = "application/octet-stream"  # of a file whose type was not sent
_BODY = "body"  # what is not a form is a parameter of this name
_UNCACHED = (
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache; no-store, must-revalidate, private"),
    ("Expires", "Thu, 01 Jan 1970 00:00:00 UTC"),
)
# Names of headers that WSGI spells otherwise than TorchServe's clients and handlers do.
_NAMES = {
    "CONTENT_TYPE": "Content-Type",
    "CONTENT_LENGTH": "Content-Length",
    **{
        f"HTTP_TS_REQUEST_SEQUENCE_{part}": f"ts_request_sequence_{part.lower()}" for part in ("ID", "START", "END")
    },
}
_SECRET = "HTTP_AUTHORIZATION"  # nosec B105  # where a key stands, which is none of a handler's business
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*")  # RFC 9110, sections 5.1 and 5.5
_REASON = re.compile(r"[\t -~\x80-\xff]+")
_SENDABLE = range(200, 1000)  # statuses that end an answer
_FAMILIES = {2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}  # of statuses without a phrase
# the server's own
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "date", "server", "x-request-id"))
_TOO_LARGE = "The request is too large; at most {limit} bytes and {parts} files or fields are read."
_DAMAGED = "The form is damaged; it needs a boundary, and all its parts."
_FAILED = "The server failed; its log says why, under the x-request-id of this answer."
_KINDS: Mapping[type[RequestError], str] = {
    InvalidInput: "BadRequestException",
    UnsupportedMediaType: "BadRequestException",
    PayloadTooLarge: "PayloadTooLargeException",
    HandlerFailed: "InternalServerException",
    OutOfMemory: "OutOfMemoryError",
    Unauthorized: "InvalidKeyException",
    Forbidden: "InvalidKeyException",
    ForeignSite: "InvalidKeyException",
    TooManyRequests: "ServiceUnavailableException",
}
_OF_KIND = (OutOfMemory, Unauthorized, Forbidden)  # the status is that of TorchServe's kind, and not of the error


# Requests.


def handler_request(
    request: Request, headers: Mapping[str, str] | None = None, with_query: bool = False
) -> HandlerRequest:
    """Return what a handler gets of `request`; `headers` are added to the client's.

    Fields of a form are parameters, and so is the query if that is asked for; any other body is the parameter `body`.
    Of two with the same name the last one counts. Raises InvalidInput, PayloadTooLarge, or Werkzeug's 413.
    """
    parameters: dict[str, Parameter] = {}
    if with_query:
        _add_texts(parameters, request.query_string)
    kind = request.mimetype
    if kind == FORM:
        others, _, last = request.get_data().rpartition(b"&")
        # TorchServe passes over an end without "=", and so over all that `curl -d 5.0` sends.
        _add_texts(parameters, others + b"&" + last if b"=" in last else others)
    elif kind == MULTIPART and "boundary" in request.mimetype_params:
        _add_parts(parameters, request)
    else:
        sent = request.environ.get("CONTENT_TYPE", "").partition(";")[0].strip()
        parameters[_BODY] = Parameter(_BODY, sent or None, request.get_data())
    return HandlerRequest(request_id(), headers_of(request) | dict(headers or {}), list(parameters.values()))


def headers_of(request: Request) -> dict[str, str]:
    """Return the client's headers for a handler, but for its key to the server; names are spelt As-Usual."""
    headers = {}
    for key, value in request.environ.items():
        name = _NAMES.get(key)
        if name is None and key.startswith("HTTP_") and key != _SECRET:
            name = key[5:].replace("_", "-").title()
        if name is not None:
            headers[name] = str(value)
    return headers


def _add_texts(parameters: dict[str, Parameter], text: bytes) -> None:
    """Add the fields of a query, or of a form without files."""
    if text.count(b"%") > MAX_ESCAPES or text.count(b"&") >= MAX_PARTS:
        raise PayloadTooLarge(f"A form may have {MAX_PARTS} fields, and {MAX_ESCAPES} percent signs in them.")
    # Each byte is a character of Latin-1, so values come through as they were sent, in whatever encoding.
    for name, value in parse_qsl(text.decode("latin-1"), keep_blank_values=True, encoding="latin-1"):
        key = name.encode("latin-1").decode(errors="replace")
        parameters[key] = Parameter(key, None, value.encode("latin-1"))


def _add_parts(parameters: dict[str, Parameter], request: Request) -> None:
    body = request.get_data()
    uploads = split_uploads(body, request.environ["CONTENT_TYPE"])  # in a tenth of the time that Werkzeug takes
    if uploads is not None:
        for name, found in uploads.items():
            parameters[name] = Parameter(name, found[-1].content_type or _UNKNOWN, found[-1].content)
        return
    try:
        form, files = parse_multipart(request, body)
    except ValueError:
        raise InvalidInput(_DAMAGED) from None
    for name, values in form.lists():
        parameters[name] = Parameter(name, None, values[-1].encode(errors="surrogateescape"))
    for name, sent in files.lists():
        kind = (sent[-1].content_type or "").partition(";")[0].strip()
        parameters[name] = Parameter(name, kind or _UNKNOWN, sent[-1].read())


# Answers.


def answer(value: Any, status: int = HTTPStatus.OK) -> Response:
    """Return `value` as TorchServe writes JSON: indented, without members that are None, with a line break."""
    text = json.dumps(_without_none(value), indent=2, ensure_ascii=False) + "\n"
    # A lone surrogate, which JSON's escapes can make, has no other way to be sent.
    response = PlainResponse(text.encode(errors="replace"), content_type=JSON)
    response.status = f"{status:d} {_phrase(status)}"  # Werkzeug writes the words in capitals
    return dressed(response)


def status(message: str, code: int = HTTPStatus.OK) -> Response:
    """Return `{"status": message}`."""
    return answer({"status": message}, code)


def nothing() -> Response:
    """Return the empty answer that TorchServe gives where it has nothing to say."""
    return dressed(PlainResponse(b"\n", content_type=JSON))


def handler_answer(made: HandlerResponse) -> Response:
    """Return what a handler has answered; what would break the answer's framing is left out."""
    response = PlainResponse(made.body)
    code = made.status if made.status in _SENDABLE else HTTPStatus.INTERNAL_SERVER_ERROR
    reason = made.reason if _REASON.fullmatch(made.reason) else _phrase(code)
    response.status = f"{code:d} {reason}"
    del response.headers["Content-Type"]
    if made.content_type:
        _set(response, [("Content-Type", made.content_type)])
    _set(response, made.headers)
    return dressed(response)


def streamed(
    made: HandlerRequest, first: bytes, rest: Generator[bytes | Tensors, None, None], when_done: Callable[[], None]
) -> Response:
    """Return the answer to `made`, whose pieces go to the client as the handler sends them.

    `when_done` is called after the last, or when the client has gone or the handler failed.
    """

    def pieces() -> Iterator[bytes]:
        yield first
        for piece in rest:
            yield piece if isinstance(piece, bytes) else piece["response"][0].body

    response = PlainResponse(pieces())
    response.call_on_close(rest.close)  # now, and not when it is found to be garbage: it takes part in the loop
    response.call_on_close(when_done)
    del response.headers["Content-Type"]
    _set(response, made.early_headers)
    return dressed(response)


def _set(response: Response, headers: Iterable[tuple[str, str]]) -> None:
    for name, value in headers:
        if _FIELD.fullmatch(f"{name}: {value}") and name.lower() not in _FRAMING:
            response.headers[name] = value
        else:
            log.warning("A handler's header was left out: %.100r", name)


def dressed(response: Response) -> Response:
    """Return `response` with the headers that all of TorchServe's answers have, and count it."""
    response.headers.extend(_UNCACHED)
    response.headers.extend(current().headers)
    response.headers["Connection"] = "close" if response.status_code >= HTTPStatus.BAD_REQUEST else "keep-alive"
    exposition.observe_answer(response.status_code)
    return response


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(member) for name, member in value.items() if member is not None}
    return [_without_none(member) for member in value] if isinstance(value, list | tuple) else value


# Errors.


def render(error: Exception) -> Response:
    """Return `error` as TorchServe shows errors; what nobody expected is told to the log."""
    if isinstance(error, HTTPException):
        return _render_http(error)
    if isinstance(error, MemoryError):
        log.error("There was no memory for a request: %s", error)
        return refuse("OutOfMemoryError", "Out of resources")
    if not isinstance(error, RequestError):
        tell_failure(log, error)
        return refuse("InternalServerException", _FAILED)
    if isinstance(error, DeadlineExceeded):  # TorchServe ends a worker that is late, and its clients know this answer
        return refuse("InternalServerException", "Worker died.")
    kind = error.kind if isinstance(error, Refusal) else _kind_of(error)
    code = STATUSES[kind] if isinstance(error, _OF_KIND) else error.status
    response = refuse(kind, str(error), code)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    return response


def refuse(kind: str, message: str, code: int | None = None) -> Response:
    """Return an error of `kind`, a key of `STATUSES`, which decides the status if `code` does not."""
    code = int(STATUSES[kind] if code is None else code)
    return answer({"code": code, "type": kind, "message": message}, code)


def refusal(status: HTTPStatus, message: str) -> tuple[HTTPStatus, bytes, Sequence[tuple[str, str]]]:
    """Return status, body and headers of an error that the worker answers with, since the application does not."""
    headers: Sequence[tuple[str, str]] = ()
    if status is HTTPStatus.GATEWAY_TIMEOUT or message == GONE:  # it did not come back, or has ended
        status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "Worker died."
        headers = [("x-request-id", new_id()), *_UNCACHED]
    kinds = (kind for kind, code in STATUSES.items() if code == status)
    content = {"code": int(status), "type": next(kinds, "BadRequestException"), "message": message}
    return status, (json.dumps(content, indent=2) + "\n").encode(), headers


def _kind_of(error: RequestError) -> str:
    for known, kind in _KINDS.items():
        if isinstance(error, known):
            return kind
    return next((kind for kind, code in STATUSES.items() if code == error.status), "InternalServerException")


def _render_http(error: HTTPException) -> Response:
    """Answer an error that Flask or Werkzeug raised; a redirect goes through as it is."""
    code = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    if code < HTTPStatus.BAD_REQUEST:
        return Response(status=code, headers=dict(error.get_headers()))
    if code is HTTPStatus.NOT_FOUND:
        return refuse("ResourceNotFoundException", NO_RESOURCE)
    if code is HTTPStatus.METHOD_NOT_ALLOWED:
        return refuse("MethodNotAllowedException", NO_METHOD)
    if code is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        message = _TOO_LARGE.format(limit=current().properties.max_request_size, parts=MAX_PARTS)
        return refuse("PayloadTooLargeException", message)
    kind = "BadRequestException" if code < HTTPStatus.INTERNAL_SERVER_ERROR else "InternalServerException"
    return refuse(kind, f"{code.phrase}.", code)


def _phrase(code: int) -> str:
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return f"{_FAMILIES.get(code // 100, 'Unknown Status')} ({code:d})"
