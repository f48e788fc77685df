"""The OpenAPI document of the running server, made from its routes and the signatures of its models."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Example:
    """A request that works when it is pasted; a blueprint module's `examples(model)` gives some for a loaded model."""

    endpoint: str  # of the route: "open_inference.infer"
    values: Mapping[str, str]  # of the variables in its path
    body: Any = None  # bytes, or what is to be sent as JSON
    content_type: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summary: str = ""
