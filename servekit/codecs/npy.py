"""Arrays in numpy's .npy format, into Tensors and back; nothing is ever unpickled.

Source: numpy's `numpy.lib.format`. Its header is Python's notation of a dictionary, which numpy reads without running it.
"""

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from servekit.codecs.tables import fit, flat_outputs, from_table
from servekit.errors import InvalidInput, NotAcceptable
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import Tensors

MAX_HEADER_BYTES = 10_000  # what numpy itself allows: its parser is slow, and a deep header exhausts it
MAX_AXES = 32

_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


def load_npy(body: bytes) -> NDArray[Any]:
    """Return the array that `body` holds, over the bytes of `body`: numbers, or true and false, in C's or Fortran's order.

    It is copied if its address is none that its dtype may have, which not every loop of compiled code can read.
    Raises InvalidInput for other dtypes (objects would have to be unpickled), a header that is none, and a shape that does
    not say exactly the bytes that follow; no memory is taken before that is known.
    """
    stream = io.BytesIO(body)
    try:
        read_header = _READERS[npy_format.read_magic(stream)]
        shape, is_fortran, dtype = read_header(stream, max_header_size=MAX_HEADER_BYTES)
    except Exception:  # what a hostile header makes its parser raise is not documented: MemoryError, for one
        raise InvalidInput("The body is no .npy file of numbers; write it with numpy.save.") from None
    if dtype.kind not in "biuf" or dtype.itemsize > 8 or dtype.hasobject or dtype.shape:
        raise InvalidInput("The .npy holds values of a kind that is not read; send numbers, or true and false.")
    if len(shape) > MAX_AXES or not all(type(size) is int and size >= 0 for size in shape):
        raise InvalidInput("The shape of the .npy is none.")
    if math.prod(shape) * dtype.itemsize != len(body) - stream.tell():
        raise InvalidInput("The shape of the .npy does not say as many bytes as follow it.")
    if 0 in shape:
        raise InvalidInput("The .npy holds no values; send one row at least.")
    values = np.frombuffer(body, dtype, offset=stream.tell())
    values = values if values.flags.aligned else values.copy()
    return values.reshape(shape[::-1]).T if is_fortran else values.reshape(shape)


def read_npy(body: bytes, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs that an .npy holds: the only one, or all of them side by side in rows.

    Axes of size 1 may be missing, and a row may be flat. Raises as `load_npy` does, and InvalidInput for another shape.
    """
    values = load_npy(body)
    if len(signature.inputs) > 1:
        if values.ndim != 2:
            raise InvalidInput("This model takes several inputs; send rows of all their values, side by side.")
        return from_table(values, signature)
    spec = signature.inputs[0]
    if spec.dtype == "bytes":
        raise InvalidInput(f"{spec.name} holds bytes, which an .npy cannot; send JSON.")
    if not signature.is_batched:
        values = values[np.newaxis]
    if values.ndim == 0:
        values = values[np.newaxis]
    if not _has_shape(values, spec):
        expected = list(spec.shape if signature.is_batched else spec.shape[1:])
        raise InvalidInput(f"The .npy must have the shape {expected}, where -1 is any size, or hold flat rows.")
    if signature.max_rows is not None and len(values) > signature.max_rows:
        raise InvalidInput(f"The model takes {signature.max_rows} rows at most, and there are {len(values)}.")
    return {spec.name: fit(values, spec)}


def write_npy(tensors: Tensors, signature: Signature) -> bytes:
    """Return the only output as it is, or all of them side by side in rows, (rows, values); NotAcceptable for bytes."""
    columns = flat_outputs(tensors, signature)
    if any(column.dtype == object for column in columns):
        raise NotAcceptable("An output holds bytes, which an .npy cannot; ask for application/json.")
    values = np.hstack(columns) if len(columns) > 1 else next(iter(tensors.values()))
    return dump_npy(values if signature.is_batched else values[0])


def dump_npy(values: NDArray[Any]) -> bytes:
    """Return `values`, an array of numbers, as an .npy file."""
    stream = io.BytesIO()
    npy_format.write_array(stream, np.asarray(values), allow_pickle=False)
    return stream.getvalue()


def _has_shape(values: NDArray[Any], spec: TensorSpec) -> bool:
    """Return True if the rows of `values` are those of `spec`, flat or but for axes of size 1."""
    if -1 not in spec.shape[1:] and values.shape[1:] == (math.prod(spec.shape[1:]),):
        return True
    given, wanted = ([size for size in shape[1:] if size != 1] for shape in (values.shape, spec.shape))
    return len(given) == len(wanted) and all(size in (-1, its) for size, its in zip(wanted, given, strict=True))
