"""Who may use TorchServe's APIs, and how much they may send.

Each address asks for its key, except for what describes the API or has a key of its own.
"""

from collections.abc import Callable
from typing import TypeVar

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from servekit import access
from servekit.torchserve import wire
from servekit.torchserve.refusals import Refusal
from servekit.torchserve.registry import current
from servekit.torchserve.tokens import MANAGEMENT

View = TypeVar("View", bound=Callable[..., Response])

_OPEN = "is_open_to_all"


def open_to_all(view: View) -> View:
    """Mark `view` as one that asks for no key, or for one of its own."""
    setattr(view, _OPEN, True)
    return view


def bound_body() -> None:
    """Take no larger body of the current request than the properties allow; raise Werkzeug's 413 if it is announced."""
    request.max_content_length = limit = current().properties.max_request_size
    if (request.content_length or 0) > limit:
        raise RequestEntityTooLarge


def require_key(name: str) -> None:
    """Raise Refusal if the current request needs the key called `name` and does not hold it; run before each view."""
    tokens = current().tokens
    view = current_app.view_functions.get(request.endpoint or "")
    if tokens is not None and not hasattr(view, _OPEN) and request.path != "/":
        tokens.check(name, request.headers.get("Authorization"))
    if tokens is None and name == MANAGEMENT:
        access.require_own_address(current().properties.cors_allowed_origin)


def guarded(name: str, error: Exception) -> Response:
    """Return `error` in TorchServe's dress. Without the key called `name` nobody learns which paths there are."""
    if isinstance(error, HTTPException) and error is request.routing_exception:
        try:
            require_key(name)
        except Refusal as refusal:
            return wire.render(refusal)
    return wire.render(error)
