"""What surrounds every request, as WSGI classes: its id, its meter, its deadline."""

import random
import re
import time
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from servekit import metrics
from servekit.config import ARRIVED, Settings
from servekit.logs import request_id

DEADLINE = "servekit.deadline"  # environ key: a time of the monotonic clock, in seconds
_REQUEST = "werkzeug.request"  # environ key: Flask's request, which knows the route that it matched
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # of a UUID: the first digit of its fourth part

# An id from outside is written into logs and headers: letters, digits and the marks that id schemes use, at most 128.
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def new_id() -> str:
    """Return a random UUID (RFC 9562, version 4), from a generator that is fast; nobody's secret depends on it."""
    text = f"{random.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANTS[text[16]]}{text[17:20]}-{text[20:]}"


class RequestId:
    """Gives each request an id, the client's `X-Request-Id` if it is sane, and puts it on the answer and in the log."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the header `X-Request-Id`."""
        given = environ.get("HTTP_X_REQUEST_ID", "")
        identity = given if _SANE_ID.fullmatch(given) else new_id()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            return start_response(status, [*headers, ("X-Request-Id", identity)], exc_info)

        token = request_id.set(identity)
        try:
            return self._app(environ, start)
        finally:
            request_id.reset(token)


class Meter:
    """Counts requests and measures their time, by method, route pattern and status."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the application does, and observe it."""
        started = time.monotonic()

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            rule = getattr(environ.get(_REQUEST), "url_rule", None)
            route = metrics.UNMATCHED if rule is None else rule.rule
            seconds = time.monotonic() - started
            metrics.observe_request(environ["REQUEST_METHOD"], route, int(status[:3]), seconds)
            return start_response(status, headers, exc_info)

        metrics.add_in_flight(1)
        try:
            return self._app(environ, start)
        finally:
            metrics.add_in_flight(-1)


class Deadline:
    """Sets the time until which a request may wait; whoever makes it wait checks it (see `Batcher`)."""

    def __init__(self, app: WSGIApplication, *, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the application does, with the deadline in `environ`."""
        environ[DEADLINE] = environ.get(ARRIVED, time.monotonic()) + self._seconds
        return self._app(environ, start_response)


def stack(app: WSGIApplication, settings: Settings) -> WSGIApplication:
    """Put the layers around `app`, the first of the list outermost."""
    layers: list[tuple[type, dict[str, Any]]] = [
        (RequestId, {}),
        (Meter, {}),
        (Deadline, {"seconds": settings.deadline_seconds}),
    ]
    for layer, options in reversed(layers):
        app = layer(app, **options)
    return app
