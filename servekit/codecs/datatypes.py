"""The datatypes of the Open Inference Protocol, and tensors of them as bytes: little-endian, row by row, and back."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.errors import InvalidInput
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

BYTES, BF16, BOOL = "BYTES", "BF16", "BOOL"

# Of the arrays that hold them. numpy knows no bfloat16: float32 holds each of its values.
DTYPES: dict[str, np.dtype[Any]] = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{BF16: np.dtype(np.float32), BOOL: np.dtype(bool), BYTES: np.dtype(object)},
}
_SIZES = {**{name: dtype.itemsize for name, dtype in DTYPES.items()}, BF16: 2}  # in bytes; that of BYTES is its least
_SIZES[BYTES] = 4
_BY_NAME = {
    **{dtype.name: name for name, dtype in DTYPES.items() if name not in (BF16, BYTES)},
    "bfloat16": BF16,
    "bytes": BYTES,
}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items() if name != BF16}  # their names take numpy long to make
_LENGTH = struct.Struct("<I")  # before each element of BYTES


def datatype_of(tensor: TensorSpec) -> str:
    """Return the protocol's name for the dtype of `tensor`."""
    return _BY_NAME[tensor.dtype]


def config_type_of(tensor: TensorSpec) -> str:
    """Return the name for the dtype of `tensor` in a model's configuration."""
    name = datatype_of(tensor)
    return "TYPE_STRING" if name == BYTES else f"TYPE_{name}"


def datatype_of_array(array: NDArray[Any]) -> str:
    """Return the protocol's name for the dtype of `array`; what it does not know is text or bytes."""
    return _BY_DTYPE.get(array.dtype) or _BY_NAME.get(array.dtype.name, BYTES)


def least_bytes(datatype: str, count: int) -> int:
    """Return how many bytes `count` elements take: exactly, or for BYTES at least."""
    return _SIZES[datatype] * count


def unpack(content: bytes | memoryview, datatype: str, count: int) -> NDArray[Any]:
    """Return `count` elements as an array of one axis; raise ValueError if `content` holds more or less than that.

    It lies in the memory of `content` and is read-only, unless its address is none that its dtype may have: some
    processors, and loops that compilers make for the others, fail there, so then it is copied.
    """
    if datatype == BYTES:
        return _unpack_bytes(content, count)
    if len(content) != least_bytes(datatype, count):
        raise ValueError
    if datatype == BF16:
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    array = np.frombuffer(content, DTYPES[datatype])
    if datatype == BOOL and array.view(np.uint8).max(initial=0) > 1:
        raise InvalidInput("A byte of a BOOL tensor must be 0 or 1.")
    return array if array.flags.aligned else array.copy()


def pack(array: NDArray[Any], datatype: str) -> memoryview | bytes:
    """Return the bytes of `array`; without a copy where it lies in memory as it is sent."""
    if datatype == BYTES:
        return b"".join(piece for item in elements(array) for piece in (_LENGTH.pack(len(item)), item))
    if datatype == BF16:
        return _bfloat16(np.asarray(array, "<f4").ravel()).view(np.uint8).data
    return np.ascontiguousarray(array, DTYPES[datatype]).reshape(-1).view(np.uint8).data


def elements(array: NDArray[Any]) -> list[bytes]:
    """Return the elements of an array of bytes or text; text as UTF-8."""
    return [item if isinstance(item, bytes) else str(item).encode("utf-8", "surrogatepass") for item in array.ravel().tolist()]


def element_count(shape: Sequence[int]) -> int:
    """Return the product of the sizes."""
    count = 1
    for size in shape:
        count *= size
    return count


def _unpack_bytes(content: bytes | memoryview, count: int) -> NDArray[np.object_]:
    if 4 * count > len(content):  # each element has at least its length
        raise ValueError
    view, items, start = memoryview(content), [], 0
    for _ in range(count):
        if start + 4 > len(view):
            raise ValueError
        (length,) = _LENGTH.unpack_from(view, start)
        start += 4
        if length > len(view) - start:
            raise ValueError
        items.append(bytes(view[start : start + length]))
        start += length
    if start != len(view):
        raise ValueError
    return bytes_tensor(items)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the bits of `values` rounded to the nearest bfloat16, halves to the even one."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(values), bits >> 16 | 0x40, rounded).astype("<u2")  # rounding could make a NaN infinite
