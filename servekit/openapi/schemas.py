"""JSON Schema (2020-12) of what a model takes and gives, from its signature."""

from collections.abc import Iterable, Mapping
from typing import Any

from servekit.spec import TensorSpec

Schema = Mapping[str, Any]

_FORMATS = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}


def value(dtype: str) -> Schema:
    """Return the schema of one value of a tensor, as JSON writes it."""
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype == "bytes":
        return {"type": "string"}
    kind: dict[str, Any] = {"type": "integer" if "int" in dtype else "number"}
    if dtype.startswith("uint"):
        kind["minimum"] = 0
    return kind | ({"format": _FORMATS[dtype]} if dtype in _FORMATS else {})


def nested(tensor: TensorSpec, leading: int = 0) -> Schema:
    """Return the schema of nested lists; the first `leading` axes are left out (1: that of one row)."""
    schema = value(tensor.dtype)
    for size in reversed(tensor.shape[leading:]):
        schema = {"type": "array", "items": schema} | ({} if size == -1 else {"minItems": size, "maxItems": size})
    return schema


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def anything_of(schemas: Iterable[Schema]) -> Schema:
    """Return the schema of what fits one of `schemas`."""
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def members(*required: str, **schemas: Schema) -> Schema:
    """Return the schema of an object with these members, of which `required` must be there; all, if none is named."""
    return {"type": "object", "required": list(required or schemas), "properties": schemas}


def one_of(*words: str) -> Schema:
    """Return the schema of a text that is one of `words`."""
    return {"type": "string", "enum": list(words)}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
FILE: Schema = {"type": "string", "format": "binary"}  # as Swagger UI and generators of clients know it
