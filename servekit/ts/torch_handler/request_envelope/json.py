"""TensorFlow Serving's JSON: {"instances": [...]} -> {"predictions": [...]}."""

import base64
import json
from typing import Any

from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope, Counts, json_of, list_in
from servekit.ts.utils.util import PredictionException


class JSONEnvelope(BaseEnvelope):
    """The handler gets the instances of all requests in one list; {"b64": "..."} stands for bytes."""

    _counts = Counts([[]])

    def parse_input(self, data: Any) -> Any:
        """Return the instances of all requests."""
        parts = [[_decoded(row) for row in list_in(json_of(each), "instances")] for each in data]
        self._counts = Counts(parts)
        return [row for part in parts for row in part]

    def format_output(self, data: Any) -> Any:
        """Return for each request the JSON text with its predictions."""
        return [json.dumps({"predictions": rows}) for rows in self._counts.divide(data)]


def _decoded(row: Any) -> Any:
    if not isinstance(row, dict):
        return row
    if list(row) == ["b64"]:
        try:
            return base64.b64decode(row["b64"])
        except (TypeError, ValueError):
            raise PredictionException("What follows b64 must be text, in base64.", 400) from None
    return {name: _decoded(value) for name, value in row.items()}
