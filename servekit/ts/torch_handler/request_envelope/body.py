"""The handler gets the bodies alone."""

from typing import Any

from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope, body_of


class BodyEnvelope(BaseEnvelope):
    """Takes `data` or `body` out of each request; the answers go as they are."""

    def parse_input(self, data: Any) -> Any:
        """Return the bodies."""
        return [body_of(row) for row in data]

    def format_output(self, data: Any) -> Any:
        """Return the answers."""
        return data
