"""KServe's first protocol: {"instances": [...]} -> {"predictions": [...]} or {"explanations": [...]}."""

from typing import Any

from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope, Counts, json_of, list_in


class KServeEnvelope(BaseEnvelope):
    """The handler gets the instances of all requests in one list."""

    _counts = Counts([[]])

    def parse_input(self, data: Any) -> Any:
        """Return the instances of all requests."""
        parts = [list_in(json_of(each), "instances") for each in data]
        self._counts = Counts(parts)
        return [row for part in parts for row in part]

    def format_output(self, data: Any) -> Any:
        """Return for each request an object with its predictions or explanations."""
        name = "explanations" if self._is_explain() else "predictions"
        return [{name: rows} for rows in self._counts.divide(data)]

    def _is_explain(self) -> bool:
        return self._header_says("explain")
