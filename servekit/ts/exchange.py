"""A request as a handler's row, and what the handler returned for it as an answer."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from servekit.codecs.values import require_shallow
from servekit.errors import InvalidInput
from servekit.ts.answers import content_type_of, to_bytes
from servekit.ts.context import CONTENT_TYPE, Context, RequestProcessor


@dataclass
class Parameter:
    """A field of a form, or the whole body under the name "body"; `content_type` is its own, without parameters."""

    name: str
    content_type: str | None
    value: bytes


@dataclass
class HandlerRequest:
    """One request for a handler; `send` takes parts of the answer that are ready before the rest."""

    id: str
    headers: Mapping[str, str]
    parameters: Sequence[Parameter]
    send: Callable[[bytes], None] | None = None
    early_headers: Sequence[tuple[str, str]] = ()  # the answer's, as they were when its first part was sent
    begun: float = 0.0  # when its batch began, of the monotonic clock; the engine's


@dataclass
class HandlerResponse:
    """The answer to one request; `content_type` is the handler's, or that of what it returned."""

    body: bytes
    status: int
    reason: str
    headers: Sequence[tuple[str, str]]
    content_type: str | None


def row_of(request: HandlerRequest, decode: bool = True) -> dict[str, Any]:
    """Return what the handler gets for `request`: a value by each parameter's name, of two alike the last.

    JSON is read, text is a str, and all else a bytearray, as is everything if `decode` is False.
    """
    return {each.name: _decoded(each) if decode else bytearray(each.value) for each in request.parameters}


def _decoded(parameter: Parameter) -> Any:
    content_type = (parameter.content_type or "").partition(";")[0].strip().lower()
    try:
        if content_type == "application/json":
            require_shallow(parameter.value)  # handlers and envelopes go down into it by calls of functions
            return json.loads(parameter.value)
        if content_type.startswith("text"):
            return parameter.value.decode()
    except (ValueError, InvalidInput):
        pass  # the handler may know better what it is
    return bytearray(parameter.value)


def processor_of(request: HandlerRequest) -> RequestProcessor:
    """Return the header that the handler sees: the content type of each parameter, then the request's own fields."""
    fields: dict[str, Any] = {each.name: {CONTENT_TYPE: each.content_type or ""} for each in request.parameters}
    return RequestProcessor({**fields, **request.headers})


def response_of(item: Any, context: Context, index: int) -> HandlerResponse:
    """Return the answer to row `index`, with the status and header that the handler has set in `context`.

    Raise TypeError if `item` cannot be written, ValueError for a status or header that HTTP does not allow.
    """
    status, reason = context.get_response_status(index)
    fields = [(str(name), str(value)) for name, value in context.get_response_headers(index).items()]
    if any("\r" in text or "\n" in text for field in fields for text in field) or "\n" in (reason or ""):
        raise ValueError("a header field of the answer has more than one line")
    status = 200 if status is None else int(status)
    if not 200 <= status <= 999:
        raise ValueError(f"the status {status} is no status of an answer")
    content_type = dict((name.lower(), value) for name, value in fields).get(CONTENT_TYPE) or content_type_of(item)
    others = [(name, value) for name, value in fields if name.lower() != CONTENT_TYPE]
    return HandlerResponse(to_bytes(item), status, reason or "", others, content_type)
