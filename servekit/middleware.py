"""What surrounds every request, as WSGI classes: its id and trace, its meter, its deadline."""

import logging
import random
import re
import time
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from servekit import metrics
from servekit.config import ARRIVED, Settings
from servekit.logs import RECORD, TRACE, Sparingly, with_fields
from servekit.record import Record, record
from servekit.trace import Trace, trace_of

DEADLINE = "servekit.deadline"  # environ key: a time of the monotonic clock, in seconds
REQUEST = "werkzeug.request"  # environ key: Flask's request, which knows the route that it matched
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}  # of a UUID: the first digit of its fourth part

log = logging.getLogger(__name__)

# An id from outside is written into logs and headers: letters, digits and the marks that id schemes use, at most 128.
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def new_id() -> str:
    """Return a random UUID (RFC 9562, version 4), from a generator that is fast; nobody's secret depends on it."""
    text = f"{random.getrandbits(128):032x}"  # nosec B311  # an id, and no secret depends on it
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{_VARIANTS[text[16]]}{text[17:20]}-{text[20:]}"


class RequestId:
    """Gives each request an id and a record, and puts the id on the answer and in the log.

    The id is the client's `X-Request-Id` if it is sane, else that of the trace that its `traceparent` names, else a new
    one. Who reads the request's headers after this, as the code of models does, finds a `traceparent` to pass on.
    """

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer with the header `X-Request-Id`."""
        given = environ.get("HTTP_X_REQUEST_ID", "")
        context = _trace_of(environ) if TRACE in environ or "HTTP_TRACEPARENT" in environ else None
        identity = given if _SANE_ID.fullmatch(given) else context.trace_id if context is not None else new_id()
        environ[RECORD] = taken = Record()
        taken.identity = identity
        if context is not None:
            taken.trace = context

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            return start_response(status, [*headers, ("X-Request-Id", identity)], exc_info)

        before = record.set(taken)  # the one variable of a request: setting one costs more than all that is noted in it
        try:
            return self._app(environ, start)
        finally:
            record.reset(before)


def _trace_of(environ: WSGIEnvironment) -> Trace | None:
    """Return the trace of a request, and put into its headers what is passed on; one that is none is passed on by nobody."""
    parent, state = environ.pop("HTTP_TRACEPARENT", ""), environ.pop("HTTP_TRACESTATE", "")
    found: Trace | None = environ.get(TRACE) or trace_of(parent, state)
    if found is not None:
        environ[TRACE] = found
        environ["HTTP_TRACEPARENT"] = found.parent
        if found.state:
            environ["HTTP_TRACESTATE"] = found.state
    return found


class Meter:
    """Counts requests and measures their time, by method, route pattern and status; says where that of a slow one went."""

    def __init__(self, app: WSGIApplication, *, slow_seconds: float) -> None:
        self._app = app
        self._slow_seconds = slow_seconds
        self._sparingly = Sparingly()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the application does, and observe it."""
        started = time.monotonic()
        in_flight = 1

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            nonlocal in_flight
            now = time.monotonic()
            rule = getattr(environ.get(REQUEST), "url_rule", None)
            if rule is not None:
                environ[RECORD].route = rule.rule  # Flask forgets the request before others ask for it
            route = metrics.UNMATCHED if rule is None else rule.rule
            metrics.observe_request(environ["REQUEST_METHOD"], route, status[:3], now - started, in_flight)
            in_flight = 0
            seconds = now - environ.get(ARRIVED, started)
            if seconds > self._slow_seconds and (skipped := self._sparingly.skipped(now)) is not None:
                _tell_slow(environ, status, seconds, skipped)
            return start_response(status, headers, exc_info)

        metrics.add_in_flight(1)
        try:
            return self._app(environ, start)
        finally:
            if in_flight:
                metrics.add_in_flight(-1)


def _tell_slow(environ: WSGIEnvironment, status: str, seconds: float, skipped: int) -> None:
    """Write one line about a request that took long; `skipped` others got none."""
    taken: Record = environ[RECORD]
    others = f" (and {skipped} more since the last such line)" if skipped else ""
    what = f"{environ['REQUEST_METHOD']} {taken.route or metrics.UNMATCHED} took {seconds:.3f} s and got {status[:3]}"
    with_fields(log, logging.WARNING, f"Slow: {what}; {taken}{others}", taken.fields())


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
        (Meter, {"slow_seconds": settings.slow_seconds}),
        (Deadline, {"seconds": settings.deadline_seconds}),
    ]
    for layer, options in reversed(layers):
        app = layer(app, **options)
    return app
