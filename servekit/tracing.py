"""Spans of OpenTelemetry: one for a request, and below it one for each part of what its model did.

For the extra `tracing` and SERVEKIT_TRACING=true. Where spans go, how many, and under which name is said by
OpenTelemetry's own OTEL_* variables; names of attributes are those of its conventions for HTTP servers, 1.44
(https://opentelemetry.io/docs/specs/semconv/http/http-spans/), and `servekit.*` for what those do not know.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPMethod
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import servekit
from servekit.config import ARRIVED
from servekit.errors import SettingError
from servekit.logs import PROBE_PATHS, RECORD, TRACE
from servekit.record import Record
from servekit.trace import Trace, trace_of

try:
    from opentelemetry import context as contexts
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import (
        NonRecordingSpan,
        Span,
        SpanContext,
        SpanKind,
        Status,
        StatusCode,
        TraceFlags,
        TraceState,
        set_span_in_context,
    )
except ImportError:
    raise SettingError("SERVEKIT_TRACING needs OpenTelemetry; install it with: pip install 'servekit[tracing]'") from None

_METHODS = frozenset(HTTPMethod)
_PARTS = ("preprocess", "queue", "inference", "postprocess")  # in the order in which a request meets them
_SECOND = 1_000_000_000  # nanoseconds, in which spans count


def provider() -> TracerProvider:
    """Return what sends spans by OTLP over HTTP, as the OTEL_* variables say; raise SettingError if it cannot be made."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    attributes: dict[str, Any] = {"service.version": servekit.__version__}
    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not is_named:
        attributes["service.name"] = "servekit"
    try:
        made = TracerProvider(resource=Resource.create(attributes))
        made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        raise SettingError(f"A variable OTEL_* cannot be used: {error}.") from None
    return made


class Tracing:
    """Makes a span of each request but the probes; who looks at the request's trace finds this span in it."""

    def __init__(self, app: WSGIApplication, *, provider: TracerProvider) -> None:
        self._app = app
        self._tracer = provider.get_tracer("servekit", servekit.__version__)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the application does; the span ends with the answer."""
        if environ.get("PATH_INFO") in PROBE_PATHS:
            return self._app(environ, start_response)
        came = trace_of(environ.get("HTTP_TRACEPARENT", ""), environ.get("HTTP_TRACESTATE", ""))
        span = self._begin(environ, came)
        environ[TRACE] = _ours(span, came)
        statuses: list[int] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            statuses.append(int(status[:3]))
            return start_response(status, headers, exc_info)

        def end() -> None:
            self._end(span, environ, statuses[-1] if statuses else None)

        token = contexts.attach(set_span_in_context(span))  # spans that a model's own code makes are below this one
        try:
            pieces = self._app(environ, start)
        except BaseException:
            end()
            raise
        finally:
            contexts.detach(token)
        if isinstance(pieces, list):
            end()
            return pieces
        return _Ending(pieces, end)

    def _begin(self, environ: WSGIEnvironment, came: Trace | None) -> Span:
        method = environ["REQUEST_METHOD"]
        attributes = {
            "http.request.method": method if method in _METHODS else "_OTHER",
            "url.scheme": environ["wsgi.url_scheme"],
            "url.path": environ.get("PATH_INFO", ""),
            "network.protocol.version": environ.get("SERVER_PROTOCOL", "").removeprefix("HTTP/"),
            "client.address": environ.get("REMOTE_ADDR", ""),
            "user_agent.original": environ.get("HTTP_USER_AGENT", ""),
        }
        return self._tracer.start_span(
            method if method in _METHODS else "HTTP",
            context=_context_of(came),
            kind=SpanKind.SERVER,
            attributes={name: value for name, value in attributes.items() if value},
            start_time=_wall(environ.get(ARRIVED, time.monotonic())),
        )

    def _end(self, span: Span, environ: WSGIEnvironment, status: int | None) -> None:
        if not span.is_recording():
            return
        taken = environ.get(RECORD) or Record()
        if taken.route:
            method = environ["REQUEST_METHOD"]
            span.update_name(f"{method if method in _METHODS else 'HTTP'} {taken.route}")
            span.set_attribute("http.route", taken.route)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:  # a client's mistake is no failure of the server
            span.set_attribute("error.type", taken.error or str(status))
            span.set_status(Status(StatusCode.ERROR))
        if taken.model:
            span.set_attributes(_attributes_of(taken))
            self._add_parts(span, taken)
        span.end()

    def _add_parts(self, span: Span, taken: Record) -> None:
        """Make spans of what the model's record tells, one after the other as they were."""
        below, moment = set_span_in_context(span), taken.began
        for part in _PARTS:
            seconds = getattr(taken, f"{part}_seconds")
            if seconds:
                child = self._tracer.start_span(part, context=below, start_time=_wall(moment))
                moment += seconds
                child.end(_wall(moment))


class _Ending:
    """The pieces of an answer, and what is to be done when the last one is gone or the client is."""

    def __init__(self, pieces: Iterable[bytes], end: Callable[[], None]) -> None:
        self._pieces = pieces
        self._end = end

    def __iter__(self) -> Any:
        return iter(self._pieces)

    def close(self) -> None:
        """Close the pieces, then end."""
        try:
            if (close := getattr(self._pieces, "close", None)) is not None:
                close()
        finally:
            self._end()


def _context_of(came: Trace | None) -> Any:
    """Return OpenTelemetry's form of the trace that a request names; without one a new trace begins."""
    if came is None:
        return contexts.Context()
    state = TraceState.from_header([came.state]) if came.state else None
    caller = SpanContext(int(came.trace_id, 16), int(came.parent_id, 16), True, TraceFlags(came.flags), state)
    return set_span_in_context(NonRecordingSpan(caller), contexts.Context())


def _ours(span: Span, came: Trace | None) -> Trace:
    ours = span.get_span_context()
    parent, state = ("", "") if came is None else (came.parent_id, came.state)
    return Trace(f"{ours.trace_id:032x}", parent, f"{ours.span_id:016x}", int(ours.trace_flags), state)


def _attributes_of(taken: Record) -> Mapping[str, Any]:
    return {
        "servekit.model": taken.model,
        "servekit.model.version": taken.version,
        "servekit.rows": taken.rows,
        "servekit.batch.rows": taken.batch_rows,
    }


def _wall(moment: float) -> int:
    """Return a time of the monotonic clock as nanoseconds of the clock on the wall, as spans want it."""
    return time.time_ns() - int((time.monotonic() - moment) * _SECOND)
