"""What all envelopes do: open the requests, hand their content to the handler, put the answers into an envelope."""

import abc
import json
from collections.abc import Callable, Sequence
from typing import Any

from servekit.codecs.values import require_shallow
from servekit.errors import InvalidInput
from servekit.ts.utils.util import PredictionException


class BaseEnvelope(abc.ABC):
    """Stands before a handler's `handle`; a subclass says what it takes out and puts back."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        """Take the handler's function of data and context."""
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Return the handler's answers in the envelope; descriptions of the model go through as they are."""
        self.context = context
        if self._header_says("describe"):
            return self._handle_fn(data, context)
        results = self._handle_fn(self.parse_input(data) if data else data, context)
        return self.format_output(results) if results else results

    def _header_says(self, name: str) -> bool:
        return bool(self.context) and self.context.get_request_header(0, name) == "True"

    @abc.abstractmethod
    def parse_input(self, data: Any) -> Any:
        """Return what the handler gets for the rows of the batch."""

    @abc.abstractmethod
    def format_output(self, data: Any) -> Any:
        """Return a list with an answer for each row of the batch."""


def body_of(row: Any) -> Any:
    """Return what a request brings as `data` or `body`."""
    return row.get("data") or row.get("body")


def json_of(row: Any) -> Any:
    """Return the JSON object that a request brings, whatever content type it has; raise PredictionException if none."""
    content = body_of(row)
    if content is None:
        content = row
    if isinstance(content, bytes | bytearray | str):
        try:
            require_shallow(content.encode() if isinstance(content, str) else bytes(content))
            content = json.loads(content)
        except (ValueError, InvalidInput):
            content = None
    if not isinstance(content, dict):
        raise PredictionException("Send a JSON object.", 400)
    return content


def list_in(content: Any, name: str) -> list[Any]:
    """Return the list `name` of a JSON object; raise PredictionException if there is none."""
    rows = content.get(name)
    if not isinstance(rows, list):
        raise PredictionException(f"Send a JSON object with a list {name!r}.", 400)
    return rows


class Counts:
    """How many rows each request of a batch brought, to give each as many back."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        """Take the rows of each request."""
        self._counts = [len(part) for part in parts]

    def divide(self, rows: Any) -> list[Any]:
        """Return the rows of `rows` that belong to each request; all of them if there is but one request."""
        if len(self._counts) == 1:
            return [rows]
        ends = [sum(self._counts[: number + 1]) for number in range(len(self._counts))]
        if len(rows) != sum(self._counts):
            raise ValueError(f"the handler returned {len(rows)} rows for {sum(self._counts)}")
        return [rows[end - count : end] for end, count in zip(ends, self._counts, strict=True)]
