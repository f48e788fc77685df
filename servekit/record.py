"""What is noted of one request on its way, for its log line and its trace: which model, how many rows, how long in which part.

Whoever wants to know sets `record` before the request begins; the model's parts fill it in.
"""

from contextvars import ContextVar
from typing import Any

from servekit.trace import Trace

NO_REQUEST = "-"


class Record:
    """Of one request; times are seconds, 0 for what has not happened. Several predictions of one request add up."""

    # What has not happened is the class's: a request sets what it has of all this, and no more.
    model = ""  # the last one that was asked
    version = ""
    rows = 0
    batch_rows = 0  # of the largest pass that served the request, those of others among them
    queue_seconds = 0.0  # between the parts: waiting for passes, and for others' between its own
    preprocess_seconds = 0.0
    inference_seconds = 0.0  # of its passes, whoever shared them
    postprocess_seconds = 0.0
    error = ""  # the name of the class of what ended it early
    began = 0.0  # when a model was first asked, a time of the monotonic clock
    route = ""  # the pattern that took the request, known once it is answered; "" if none did
    identity = NO_REQUEST  # the request's id
    trace: Trace | None = None  # that it belongs to

    def add_pass(self, rows: int, waited: float, seconds: float) -> None:
        """Note a pass of `rows` rows of whomever, which took `seconds` and for which this request had `waited`."""
        if rows > self.batch_rows:
            self.batch_rows = rows
        self.queue_seconds += waited
        self.inference_seconds += seconds

    def __str__(self) -> str:
        """Say in words what it was and where the time went."""
        if not self.model:
            return "no model was asked"
        parts = [
            f"preprocess {self.preprocess_seconds:.3f} s",
            f"queue {self.queue_seconds:.3f} s",
            f"pass of {_counted(self.batch_rows)} {self.inference_seconds:.3f} s",
            f"postprocess {self.postprocess_seconds:.3f} s",
        ]
        failure = f", failed with {self.error}" if self.error else ""
        return f"{self.model}/{self.version}, {_counted(self.rows)}: {', '.join(parts)}{failure}"

    def fields(self) -> dict[str, Any]:
        """Return it as members of a log line in JSON; times in milliseconds. Without a model there are none."""
        if not self.model:
            return {"error.type": self.error} if self.error else {}
        times = {
            "queue_ms": self.queue_seconds,
            "preprocess_ms": self.preprocess_seconds,
            "infer_ms": self.inference_seconds,
            "postprocess_ms": self.postprocess_seconds,
        }
        found: dict[str, Any] = {"model": self.model, "version": self.version, "rows": self.rows}
        found |= {"batch_size": self.batch_rows} | {name: round(seconds * 1000, 3) for name, seconds in times.items()}
        return found | ({"error.type": self.error} if self.error else {})


def _counted(rows: int) -> str:
    return f"{rows} row" if rows == 1 else f"{rows} rows"


record: ContextVar[Record | None] = ContextVar("record", default=None)
