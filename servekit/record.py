"""What is noted of one request on its way, for its log line and its trace: which model, how many rows, how long in which part.

Whoever wants to know sets `record` before the request begins; the model's parts fill it in.
"""

from contextvars import ContextVar


class Record:
    """Of one request; times are seconds, 0 for what has not happened. Several predictions of one request add up."""

    __slots__ = (
        *("model", "version", "rows", "batch_rows", "queue_seconds", "preprocess_seconds", "inference_seconds"),
        *("postprocess_seconds", "error"),
    )

    def __init__(self) -> None:
        self.model = ""  # the last one that was asked
        self.version = ""
        self.rows = 0
        self.batch_rows = 0  # of the largest pass that served the request, those of others among them
        self.queue_seconds = 0.0  # between the parts: waiting for passes, and for others' between its own
        self.preprocess_seconds = 0.0
        self.inference_seconds = 0.0  # of its passes, whoever shared them
        self.postprocess_seconds = 0.0
        self.error = ""  # the name of the class of what ended it early

    def add_pass(self, rows: int, waited: float, seconds: float) -> None:
        """Note a pass of `rows` rows of whomever, which took `seconds` and for which this request had `waited`."""
        self.batch_rows = max(self.batch_rows, rows)
        self.queue_seconds += waited
        self.inference_seconds += seconds


record: ContextVar[Record | None] = ContextVar("record", default=None)
