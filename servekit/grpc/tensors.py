"""Tensors of gRPC messages and of V2's JSON as bytes: little-endian, row-major, no numpy."""

import struct
from collections.abc import Sequence
from typing import Any

from grpc import StatusCode

from servekit.grpc.status import Refused

# datatype -> the field of InferTensorContents that holds it, its character in `struct`, its bytes an element.
# FP16 and BF16 have no field: they come as raw contents only.
_KINDS = {
    "BOOL": ("bool_contents", "?", 1),
    "INT8": ("int_contents", "b", 1),
    "INT16": ("int_contents", "h", 2),
    "INT32": ("int_contents", "i", 4),
    "INT64": ("int64_contents", "q", 8),
    "UINT8": ("uint_contents", "B", 1),
    "UINT16": ("uint_contents", "H", 2),
    "UINT32": ("uint_contents", "I", 4),
    "UINT64": ("uint64_contents", "Q", 8),
    "FP32": ("fp32_contents", "f", 4),
    "FP64": ("fp64_contents", "d", 8),
    "BYTES": ("bytes_contents", "", 4),
}
_PIECE = 2**16  # values, which take milliseconds; for more at once other threads would have to wait
_LENGTH = struct.Struct("<I")


def pack_contents(name: str, datatype: str, contents: Any, limit: int) -> bytes:
    """Return the bytes of the input `name` from `contents`, an InferTensorContents.

    Raises Refused if its values are in another field than that of `datatype`, or do not fit it, and, before memory is
    taken, if there would be more than `limit` bytes.
    """
    if datatype not in _KINDS:
        raise Refused(
            StatusCode.INVALID_ARGUMENT,
            f"the values of input '{name}' must be sent in raw_input_contents: contents hold no {datatype}",
        )
    field, kind, size = _KINDS[datatype]
    others = [other.name for other, _ in contents.ListFields() if other.name != field]
    if others:
        raise Refused(
            StatusCode.INVALID_ARGUMENT,
            f"the values of input '{name}' of type {datatype} belong in {field}, not in {others[0]}",
        )
    values = getattr(contents, field)
    if len(values) * size > limit or (not kind and len(values) * size + sum(map(len, values)) > limit):
        raise Refused(StatusCode.RESOURCE_EXHAUSTED, f"the values of input '{name}' are larger than a request may be")
    return _pack(name, datatype, values)


def pack_values(name: str, datatype: str, data: Any) -> bytes:
    """Return the bytes of the tensor `name` from V2's JSON `data`, flat or nested; raises Refused."""
    values = _flat(data)
    if datatype == "BYTES":
        values = [value.encode() if isinstance(value, str) else value for value in values]
    return _pack(name, datatype, values)


def _pack(name: str, datatype: str, values: Sequence[Any]) -> bytes:
    if datatype not in _KINDS:
        raise Refused(StatusCode.INVALID_ARGUMENT, f"the values of '{name}' cannot be written as {datatype}")
    kind = _KINDS[datatype][1]
    try:
        if kind:
            return b"".join(_packed(values[start : start + _PIECE], kind) for start in range(0, len(values), _PIECE))
        return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    except (struct.error, TypeError, OverflowError):
        raise Refused(StatusCode.INVALID_ARGUMENT, f"a value of '{name}' does not fit {datatype}") from None


def _packed(values: Sequence[Any], kind: str) -> bytes:
    return struct.pack(f"<{len(values)}{kind}", *values)


def _flat(data: Any) -> list[Any]:
    values = data if isinstance(data, list) else [data]
    while values and all(isinstance(value, list) for value in values):
        values = [element for value in values for element in value]
    return values
