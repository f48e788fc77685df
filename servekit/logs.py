"""What a log line looks like: readable text or one JSON object, each with the id of the request it belongs to.

Standard library only; `servekit/hooks.py` puts these onto Gunicorn's own handlers.
"""

import datetime
import json
import logging
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar

NO_REQUEST = "-"
request_id: ContextVar[str] = ContextVar("request_id", default=NO_REQUEST)

ACCESS_LOGGER = "gunicorn.access"
# %(r)s is the request line as it was sent: percent-encoded, so no client can write a line break into the log.
ACCESS_FORMAT = '%(h)s "%(r)s" %(s)s %(B)s bytes %(D)s us'
PROBE_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/metrics", "/ping"})


def _request_id_of(record: logging.LogRecord) -> str:
    # Gunicorn writes the access line when the application is done; the id is in the answer's headers by then.
    if record.name == ACCESS_LOGGER and isinstance(record.args, Mapping):
        return str(record.args["{x-request-id}o"])
    return request_id.get()


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00,000 INFO [pid] [request id] message`, then the traceback if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] [%(request_id)s] %(message)s")
        self._second = (0, "")

    def format(self, record: logging.LogRecord) -> str:
        """Format `record`, with the id of the request it belongs to."""
        record.request_id = _request_id_of(record)
        return super().format(record)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the local time of `record`."""
        return self._time(record.created)

    def access_line(self, moment: float, identity: str, message: str) -> str:
        """Return the line that `format` would make of an access record, which takes longer to make than this."""
        return f"{self._time(moment)} INFO [{os.getpid()}] [{identity}] {message}"

    def _time(self, moment: float) -> str:
        second = int(moment)
        if self._second[0] != second:  # what is the same for all lines of a second is formatted once
            self._second = (second, time.strftime(self.default_time_format, time.localtime(second)))
        return f"{self._second[1]},{int(moment % 1 * 1000):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, pid, request_id, message; more for an access."""

    def format(self, record: logging.LogRecord) -> str:
        """Format `record` as one line of JSON."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "request_id": _request_id_of(record),
            "message": record.getMessage(),
        }
        if record.name == ACCESS_LOGGER and isinstance(record.args, Mapping):
            atoms = record.args
            line |= {"client": atoms["h"], "method": atoms["m"], "path": atoms["U"], "status": int(str(atoms["s"]))}
            line |= {"bytes": atoms["B"], "duration_us": atoms["D"]}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def is_worth_a_line(path: str, status: str) -> bool:
    """Return False for the access line of a health check or a scrape that went well: nobody reads those."""
    return path not in PROBE_PATHS or status >= "400"


def configure_handler(handler: logging.Handler, log_format: str) -> None:
    """Give `handler` the formatter for `log_format` ("text" or "json")."""
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
