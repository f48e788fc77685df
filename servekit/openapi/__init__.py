"""The OpenAPI document of the running server, made from its routes and the signatures of its models.

What blueprints need of it stands here; the rest is imported when the document is first asked for.
"""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

# A one, light on black, 28x28: small enough for a document, and a picture that every decoder reads.
DIGIT_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAABwAAAAcCAAAAABXZoBIAAAAM0lEQVR42mNgoAf4j8JjQpP7"
    "j1PyP5o5THjkkCUx5JAlGRkY8RjLiEcnA8Oo5CCRHAgAAKreBibBlwUIAAAAAElFTkSuQmCC"
)


@dataclasses.dataclass(frozen=True)
class Example:
    """A request that works when it is pasted; a blueprint module's `examples(model)` gives some for a loaded model.

    The body of a form (content type FORM or MULTIPART) is its fields by name, with bytes, or a list of them, for files.
    """

    endpoint: str  # of the route: "open_inference.infer"
    values: Mapping[str, str]  # of the variables in its path
    body: Any = None  # bytes, or what is to be sent as JSON
    content_type: str = "application/json"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    summary: str = ""
