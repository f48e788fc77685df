"""JSON Schema (2020-12) of what a model takes and gives, from its signature."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from servekit.signature import Signature
from servekit.spec import TensorSpec

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
YES_NO: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
LIST: Schema = {"type": "array", "items": {}}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
FILE: Schema = {"type": "string", "format": "binary"}  # as Swagger UI and generators of clients know it

_FORMATS = {"float32": "float", "float64": "double", "int32": "int32", "int64": "int64"}


def array(items: Schema) -> Schema:
    """Return the schema of a list."""
    return {"type": "array", "items": items}


def members(*required: str, **schemas: Schema) -> Schema:
    """Return the schema of an object with these members, of which `required` must be there; all, if none is named."""
    return {"type": "object", "required": list(required or schemas), "properties": schemas}


def word(*words: str) -> Schema:
    """Return the schema of a text that is one of `words`."""
    return {"type": "string", "enum": list(words)}


def any_of(schemas: Iterable[Schema]) -> Schema:
    """Return the schema of what fits one of `schemas`."""
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


BYTES: Schema = any_of([TEXT, members(b64=BASE64)])  # in the dialects of TensorFlow Serving


def value(dtype: str) -> Schema:
    """Return the schema of one value of a tensor, as JSON writes it."""
    if dtype == "bool":
        return YES_NO
    if dtype == "bytes":
        return BYTES
    kind: dict[str, Any] = {"type": "integer" if "int" in dtype else "number"}
    if dtype.startswith("uint"):
        kind["minimum"] = 0
    return kind | ({"format": _FORMATS[dtype]} if dtype in _FORMATS else {})


def nested(dtype: str, shape: Sequence[int]) -> Schema:
    """Return the schema of nested lists of `shape`, in which -1 stands for any size."""
    schema = value(dtype)
    for size in reversed(shape):
        schema = {"type": "array", "items": schema} | ({} if size == -1 else {"minItems": size, "maxItems": size})
    return schema


def instance(signature: Signature) -> Schema:
    """Return the schema of a row that a client sends: an object of all inputs, or the value of the only one."""
    values = {tensor.name: _row_sent(tensor, signature) for tensor in signature.inputs}
    alone = [*values.values()] if len(values) == 1 else []
    return any_of([*alone, members(**values)])


def columns(signature: Signature) -> Schema:
    """Return the schema of all rows that a client sends, by input, or of the only input."""
    values = {tensor.name: _column_sent(tensor, signature) for tensor in signature.inputs}
    alone = [*values.values()] if len(values) == 1 else []
    return any_of([*alone, members(**values)])


def prediction(signature: Signature) -> Schema:
    """Return the schema of a row of the answer: the value of the only output, or an object of all."""
    return _alone_or_named({tensor.name: nested(tensor.dtype, tensor.shape[1:]) for tensor in signature.outputs})


def outputs(signature: Signature) -> Schema:
    """Return the schema of all rows of the answer: of the only output, or an object of all."""
    first = 0 if signature.is_batched else 1
    return _alone_or_named({tensor.name: nested(tensor.dtype, tensor.shape[first:]) for tensor in signature.outputs})


def _alone_or_named(values: Mapping[str, Schema]) -> Schema:
    return next(iter(values.values())) if len(values) == 1 else members(**values)


def _row_sent(tensor: TensorSpec, signature: Signature) -> Schema:
    without_ones = [size for size in tensor.shape[1:] if size != 1]  # axes of size 1 may be left out
    encoded = [members(b64=BASE64)] if tensor.name in signature.encoded else []
    return any_of([nested(tensor.dtype, tensor.shape[1:]), nested(tensor.dtype, without_ones), *encoded])


def _column_sent(tensor: TensorSpec, signature: Signature) -> Schema:
    row = _row_sent(tensor, signature)
    return array(row) if signature.is_batched else row
