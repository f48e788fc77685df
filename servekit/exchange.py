"""A request as it came and its answer as it goes, for models whose own code reads and writes them."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class RawRequest:
    """What a client sent to a model whose code reads it itself."""

    body: bytes
    content_type: str = ""
    accept: str = ""
    method: str = "POST"
    query: str = ""
    path: str = "/"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RawResponse:
    """What such code answers."""

    body: bytes
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
