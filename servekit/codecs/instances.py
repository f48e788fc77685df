"""Rows and columns of JSON into Tensors and back: the `instances` of TensorFlow Serving, KServe V1, Vertex and MLflow.

Rows: `[value, ...]`, or `[{"name": value, ...}, ...]`, an element a row. Columns: `value`, or `{"name": value, ...}`, whose
values hold all rows. `{"b64": "<base64>"}` stands for bytes: of an input of bytes, and of one that may come encoded.
A model that is not batched takes the one row that it knows, and shows it as one.
"""

import base64
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.arrays import to_array
from servekit.codecs.values import decode_base64
from servekit.errors import InvalidInput
from servekit.signature import Signature, array_dtype
from servekit.spec import TensorSpec
from servekit.tensors import Tensors

B64 = "b64"  # the one member of an object that stands for bytes
BYTES_ENDING = "_bytes"  # of the name of an output that is always written so
MAX_ENCODED = 1000  # rows, that cost a client next to nothing, and the server much

_MOST_NAMES = 5  # of a client's, in a sentence
_MOST_LETTERS = 60  # of each


def rows_of(instances: Any, signature: Signature, takes_whole_floats: bool = False) -> dict[str, NDArray[Any]]:
    """Return the inputs of `signature` that the list `instances` holds, an element a row.

    Axes of size 1 may be missing, or be there in addition. `takes_whole_floats`: 5.0 is an integer, too. Raises
    InvalidInput for another shape, kind or number of rows, and for names that are missing or unknown.
    """
    if not isinstance(instances, list):
        raise InvalidInput("The instances must be a list, with an element for each row.")
    if not instances:
        raise InvalidInput("There are no instances; send one at least.")
    if _is_named(instances[0]):
        columns = _columns_of_rows(instances, signature)
    else:
        columns = {_only_input(signature, "each instance").name: instances}
    return _tensors(columns, signature, takes_whole_floats)


def columns_of(inputs: Any, signature: Signature, takes_whole_floats: bool = False) -> dict[str, NDArray[Any]]:
    """Return the inputs of `signature` that `inputs` holds: an object with all rows of each, or all rows of the only one.

    Raises as `rows_of` does.
    """
    if not _is_named(inputs):
        return _tensors({_only_input(signature, "the value").name: inputs}, signature, takes_whole_floats)
    _require_names(inputs, signature)
    return _tensors(inputs, signature, takes_whole_floats)


def predictions_of(tensors: Tensors, signature: Signature) -> Sequence[Any] | NDArray[Any]:
    """Return an element for each row, ready for `dump_json`: the value of the only output, or an object of all.

    Raises InvalidInput where outputs have different numbers of rows, so that there are none to tell apart.
    """
    columns = _ready(tensors, signature)
    if len({len(column) for column in columns.values()}) > 1:
        raise InvalidInput("The outputs have different numbers of rows; ask for columns instead of rows.")
    if len(columns) == 1:
        only: Sequence[Any] | NDArray[Any] = next(iter(columns.values()))
        return only  # an array is written at once, and a million of them take seconds
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def outputs_of(tensors: Tensors, signature: Signature) -> Any:
    """Return all rows, ready for `dump_json`: those of the only output, or an object of all outputs."""
    columns = _ready(tensors, signature)
    if not signature.is_batched:
        columns = {name: column[0] for name, column in columns.items()}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def zeros_of(signature: Signature) -> dict[str, Any]:
    """Return a row of zeros as JSON, or of empty texts, by input; what may be of any size is of size 1."""
    return {spec.name: _zeros(spec) for spec in signature.inputs}


def zero_row(signature: Signature) -> Any:
    """Return the same as an element of `instances`: the value of the only input, or an object of all."""
    row = zeros_of(signature)
    return row if len(row) > 1 else next(iter(row.values()))


def bytes_as_json(item: bytes | str, is_text: bool = True) -> str | dict[str, str]:
    """Return bytes as text if they are meant as such and are UTF-8, else as `{"b64": ...}`."""
    if isinstance(item, str):
        return item
    try:
        if is_text:
            return item.decode()
    except UnicodeDecodeError:
        pass  # an object tells the client that it is no text, and loses nothing
    return {B64: base64.b64encode(item).decode("ascii")}


def _zeros(spec: TensorSpec) -> Any:
    shape = [1 if size == -1 else size for size in spec.shape[1:]]
    return np.full(shape, {"bytes": "", "bool": False}.get(spec.dtype, 0), object).tolist()


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_bytes(value)


def _is_bytes(value: Any) -> bool:
    return type(value) is dict and len(value) == 1 and B64 in value


def _only_input(signature: Signature, what: str) -> TensorSpec:
    if len(signature.inputs) > 1:
        raise InvalidInput(f"This model takes several inputs; {what} must be an object with: {_names_of(signature)}.")
    return signature.inputs[0]


def _names_of(signature: Signature) -> str:
    return ", ".join(spec.name for spec in signature.inputs)


def _columns_of_rows(instances: list[Any], signature: Signature) -> dict[str, list[Any]]:
    for row in instances:
        if not isinstance(row, dict):
            raise InvalidInput("Some instances are objects and some are not; send all in one form.")
        _require_names(row, signature)
    return {spec.name: [row[spec.name] for row in instances] for spec in signature.inputs}


def _require_names(given: Mapping[str, Any], signature: Signature) -> None:
    wanted = {spec.name for spec in signature.inputs}
    if given.keys() == wanted:
        return
    if unknown := nsmallest(_MOST_NAMES, (name for name in given if name not in wanted)):  # there may be a million
        names = ", ".join(ascii(name)[1:-1][:_MOST_LETTERS] for name in unknown)
        raise InvalidInput(f"The model has no input called {names}; it takes: {_names_of(signature)}.")
    missing = ", ".join(sorted(wanted - given.keys()))
    raise InvalidInput(f"There is no value for {missing}; the model takes: {_names_of(signature)}.")


def _tensors(columns: Mapping[str, Any], signature: Signature, takes_whole_floats: bool) -> dict[str, NDArray[Any]]:
    tensors = {spec.name: _column(columns[spec.name], spec, signature, takes_whole_floats) for spec in signature.inputs}
    counts = {name: len(array) for name, array in tensors.items()}
    rows = next(iter(counts.values()))
    if any(count != rows for count in counts.values()):
        words = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InvalidInput(f"The inputs must have the same number of rows, and {words}.")
    if not rows:
        raise InvalidInput("There are no rows; send one at least.")
    if signature.max_rows is not None and rows > signature.max_rows:
        raise InvalidInput(f"The model takes {signature.max_rows} rows at most, and there are {rows}.")
    return tensors


def _column(value: Any, spec: TensorSpec, signature: Signature, takes_whole_floats: bool) -> NDArray[Any]:
    is_encoded = spec.name in signature.encoded
    try:
        if spec.dtype == "bytes":
            return _shaped(_bytes_array(value, takes_text=not is_encoded), spec, signature)
        if is_encoded and _holds_bytes(value):
            if isinstance(value, list) and len(value) > MAX_ENCODED:
                raise InvalidInput(f"At most {MAX_ENCODED} encoded rows are read at once, and there are {len(value)}.")
            items = _bytes_array(value, takes_text=False)
            return _shaped(items, TensorSpec(spec.name, "bytes", (-1,)), signature)
        return _shaped(to_array(value, array_dtype(spec), takes_whole_floats), spec, signature)
    except InvalidInput as error:
        hint = ' Send bytes as {"b64": "<base64>"}.' if is_encoded else ""
        raise InvalidInput(f"The input {spec.name} cannot be read: {error}{hint}") from None


def _holds_bytes(value: Any) -> bool:
    while isinstance(value, list) and value:
        value = value[0]
    return _is_bytes(value)


def _bytes_array(value: Any, takes_text: bool) -> NDArray[Any]:
    if not takes_text and not _holds_bytes(value):
        raise InvalidInput("The values must be bytes, and text is none.")
    return to_array(_with_bytes(value, takes_text), np.dtype(object))


def _with_bytes(value: Any, takes_text: bool) -> Any:
    """Return `value` with the bytes that its objects stand for in their places; its depth has been checked."""
    if isinstance(value, list):
        return [_with_bytes(item, takes_text) for item in value]
    if _is_bytes(value):
        if not isinstance(value[B64], str):
            raise InvalidInput("What follows b64 must be text, in base64.")
        return decode_base64(value[B64])
    if isinstance(value, str) and not takes_text:
        raise InvalidInput("The values must be bytes, and text is none.")
    return value


def _shaped(array: NDArray[Any], spec: TensorSpec, signature: Signature) -> NDArray[Any]:
    """Return `array` with the axes of `spec`; those of size 1 may be missing or added. Raises InvalidInput."""
    wanted = spec.shape[1:]
    candidates = (array,) if signature.is_batched else (array, array[np.newaxis])
    for candidate in candidates:
        if candidate.ndim and (signature.is_batched or len(candidate) == 1):
            sizes = _matched(candidate.shape[1:], wanted)
            if sizes is not None:
                return candidate.reshape(len(candidate), *sizes)
    shape = list(spec.shape) if signature.is_batched else list(wanted)
    raise InvalidInput(f"Its shape must be {shape}, where -1 is any size, and it is {list(array.shape)}.")


def _matched(given: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the sizes that `given` has as `wanted`, or None if it cannot be that."""
    if len(given) == len(wanted) and all(a in (b, -1) for a, b in zip(wanted, given, strict=True)):
        return given
    given, needed = _without_ones(given), _without_ones(wanted)
    if len(given) != len(needed) or not all(a in (b, -1) for a, b in zip(needed, given, strict=True)):
        return None
    left = iter(given)
    return tuple(1 if size == 1 else next(left) for size in wanted)


def _without_ones(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in sizes if size != 1)


def _ready(tensors: Tensors, signature: Signature) -> dict[str, Any]:
    """Return the outputs, those of the signature first, as what can be written: arrays, or lists where they hold bytes."""
    named = [spec.name for spec in signature.outputs if spec.name in tensors]
    names = named + [name for name in tensors if name not in named]
    return {name: _writable(tensors[name], not name.endswith(BYTES_ENDING)) for name in names}


def _writable(array: NDArray[Any], is_text: bool) -> Any:
    if array.dtype != object:
        return np.ascontiguousarray(array)
    return _texts(array.tolist(), is_text)


def _texts(value: Any, is_text: bool) -> Any:
    return [_texts(item, is_text) for item in value] if isinstance(value, list) else bytes_as_json(value, is_text)
