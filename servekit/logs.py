"""What a log line looks like: readable text or one JSON object, each with the id of the request it belongs to.

Standard library only; `servekit/hooks.py` puts these onto Gunicorn's own handlers.
"""

import datetime
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from servekit.record import NO_REQUEST, Record, record
from servekit.trace import Trace

RECORD, TRACE = "servekit.record", "servekit.trace"  # environ keys of WSGI: what a request has cost, and its trace

ACCESS_LOGGER = "gunicorn.access"
# %(r)s is the request line as it was sent: percent-encoded, so no client can write a line break into the log.
ACCESS_FORMAT = '%(h)s "%(r)s" %(s)s %(B)s bytes %(D)s us'
_FIELDS = "servekit_fields"  # attribute of a LogRecord: more members for its line in JSON
QUIET_SECONDS = 60.0  # between two sentences that a log cannot be written
PROBE_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/ping"})


_YEAR = tuple("0123456789")  # what a line of the log begins with


def on_its_own_lines(text: str) -> str:
    """Return `text` so that nothing in it, a client's words perhaps, passes for a line of the log or moves a terminal.

    What is not printable is escaped (line separators of Unicode and ANSI's sequences, too); a further line that begins
    as those of the log do is indented.
    """
    if text.isprintable():
        return text
    shown = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    first, *others = shown.split("\n")
    return "\n".join([first, *(f"  {line}" if line.startswith(_YEAR) else line for line in others)])


def request_id() -> str:
    """Return the id of the request that runs, NO_REQUEST outside of one."""
    taken = record.get()
    return NO_REQUEST if taken is None else taken.identity


def _request_id_of(line: logging.LogRecord) -> str:
    # Gunicorn writes the access line when the application is done; the id is in the answer's headers by then.
    if line.name == ACCESS_LOGGER and isinstance(line.args, Mapping):
        return str(line.args["{x-request-id}o"])
    return request_id()


def _trace_of(line: logging.LogRecord) -> Trace | None:
    if line.name == ACCESS_LOGGER and isinstance(line.args, Mapping):
        return trace_of_access(line.args)
    return taken.trace if (taken := record.get()) is not None else None


def trace_of_access(atoms: Mapping[str, Any]) -> Trace | None:
    """Return the trace of the request that an access line is about; `atoms` are what the line may name."""
    found = getattr(atoms, "environ", {}).get(TRACE)
    return found if isinstance(found, Trace) else None


def marked(identity: str, context: Trace | None) -> str:
    """Return what stands for a request in a line of text: its id, and that of its trace if it is another."""
    return identity if context is None or context.trace_id == identity else f"{identity} trace {context.trace_id}"


def with_fields(log: logging.Logger, level: int, message: str, fields: Mapping[str, object]) -> None:
    """Write a line whose JSON has `fields` as members, too."""
    log.log(level, "%s", message, extra={_FIELDS: fields})


def tell_failure(log: logging.Logger, error: BaseException) -> None:
    """Write the traceback of what a request failed with, after one line on what it was and where its time went."""
    taken = record.get() or Record()
    log.error("A request failed unexpectedly; %s", taken, exc_info=error, extra={_FIELDS: taken.fields()})


class Sparingly:
    """Lets one line a second through, so that what goes wrong a thousand times a second does not fill the log."""

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._next = 0.0
        self._skipped = 0

    def skipped(self, now: float) -> int | None:
        """Return how many lines were left out since the last one, or None if this one is to be left out."""
        if now < self._next:
            self._skipped += 1
            return None
        self._next = now + self._seconds
        skipped, self._skipped = self._skipped, 0
        return skipped


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO [pid] [request id] message`, then the traceback if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] [%(request_id)s] %(message)s")
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        """Format `record`, with the id of the request it belongs to."""
        record.request_id = marked(_request_id_of(record), _trace_of(record))
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of `record`, whose message stays on its own lines."""
        record.message = on_its_own_lines(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Return the traceback, with the message of its exception on its own lines."""
        return on_its_own_lines(super().formatException(ei))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time of `record`."""
        return self._time(record.created)

    def access_line(self, moment: float, identity: str, message: str) -> str:
        """Return the line that `format` would make of an access record, which takes longer to make than this."""
        return f"{self._time(moment)} INFO [{os.getpid()}] [{identity}] {on_its_own_lines(message)}"

    def _time(self, moment: float) -> str:
        second = int(moment)
        if self._second[0] != second:  # what is the same for all lines of a second is formatted once
            self._second = (second, time.strftime(self.default_time_format, time.localtime(second)))
        return f"{self._second[1]},{int(moment % 1 * 1000):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts (RFC 3339, UTC), level, logger, pid, request_id, msg; more for an access and a failure."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as one line of JSON."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "ts": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "request_id": _request_id_of(record),
        }
        if context := _trace_of(record):
            line |= {"trace_id": context.trace_id, "span_id": context.span_id}
        line["msg"] = record.getMessage()
        if record.name == ACCESS_LOGGER and isinstance(record.args, Mapping):
            line |= _access_fields(record.args)
        line |= getattr(record, _FIELDS, {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _printable(json.dumps(line, ensure_ascii=False))


def _printable(text: str) -> str:
    """Return JSON with escapes for what does not print, such as the line separators that it may hold as they are."""
    return text if text.isprintable() else "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _access_fields(atoms: Mapping[str, Any]) -> dict[str, object]:
    environ: Mapping[str, Any] = getattr(atoms, "environ", {})
    status = int(str(atoms["s"]))
    taken = environ.get(RECORD) or Record()
    line: dict[str, object] = {"client": atoms["h"], "method": atoms["m"], "path": atoms["U"]}
    line |= {"route": taken.route or None, "status": status, "duration_ms": int(atoms["D"]) / 1000}
    line |= {"bytes_in": _body_bytes(environ), "bytes_out": atoms["B"]}
    if status >= HTTPStatus.BAD_REQUEST:
        line["error.type"] = str(status)  # as OpenTelemetry's conventions have it, unless the model knows better
    return line | taken.fields()


def _body_bytes(environ: Mapping[str, Any]) -> int | None:
    length = str(environ.get("CONTENT_LENGTH") or "")
    if length.isdecimal():
        return int(length)
    body = environ.get("wsgi.input")
    return body.getbuffer().nbytes if isinstance(body, io.BytesIO) else None


def is_worth_a_line(path: str, status: str) -> bool:
    """Return False for the access line of a health check or a scrape that went well: nobody reads those."""
    return path not in PROBE_PATHS or status >= "400"


class Losses:
    """Counts the lines that a log could not take, because its disk is full, say, and says so now and then.

    The requests they tell of are answered all the same. Python's own handlers would write a traceback for every line.
    """

    def __init__(self, handler: logging.Handler, clock: Callable[[], float] = time.monotonic) -> None:
        self._handler = handler
        self._clock = clock
        self._said = -QUIET_SECONDS
        self._lines = 0

    def note(self, record: logging.LogRecord | None = None) -> None:
        """Count a line; called where the error is being handled that kept it from being written."""
        self._lines += 1
        if (now := self._clock()) - self._said < QUIET_SECONDS:
            return
        self._said = now
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or type(error).__name__
        words = f"A log cannot be written ({reason}); requests are served, and lines are lost: {self._lines} so far."
        line = self._handler.format(logging.makeLogRecord({"name": __name__, "levelname": "ERROR", "msg": words}))
        try:
            os.write(2, line.encode() + b"\n")  # no log is sure to take it
        except OSError:
            pass  # there is nobody left to tell


def configure_handler(handler: logging.Handler, log_format: str) -> None:
    """Give `handler` the formatter for `log_format` ("text" or "json"), and let it lose lines quietly."""
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.handleError = Losses(handler).note  # type: ignore[method-assign]
