"""JSON values into arrays and back, whatever contract wrapped them: orjson where it is installed, else Python's json.

TensorFlow Serving and Triton read and write NaN, Infinity and -Infinity as bare words, which RFC 8259 does not know; so
do these functions. A number that only overflows is refused.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.pieces import PIECE_BYTES, load_in_pieces
from servekit.codecs.values import NOT_JSON, require_shallow
from servekit.errors import InvalidInput
from servekit.tensors import bytes_tensor

if find_spec("orjson"):
    import orjson

    _loads: Callable[[bytes], Any] = orjson.loads
    _OPTIONS = orjson.OPT_SERIALIZE_NUMPY

    def _dumps(value: Any) -> bytes:
        return orjson.dumps(_with_fragments(value), option=_OPTIONS)

    def _with_fragments(value: Any) -> Any:
        """Return `value` with large arrays written already, in pieces: written in one call they would stop all others."""
        if isinstance(value, np.ndarray) and value.size > _MOST_AT_ONCE:
            step = max(1, _MOST_AT_ONCE * len(value) // value.size)
            pieces = [orjson.dumps(value[at : at + step], option=_OPTIONS)[1:-1] for at in range(0, len(value), step)]
            return orjson.Fragment(b"[" + b",".join(pieces) + b"]")
        if isinstance(value, dict):
            return {name: _with_fragments(member) for name, member in value.items()}
        return [_with_fragments(item) for item in value] if isinstance(value, list) and len(value) <= _FEW else value

else:

    def _loads(body: bytes) -> Any:
        return _loads_with_constants(body)

    def _dumps(value: Any) -> bytes:
        return _dumps_with_constants(value)

_MAX_AXES = 64  # of numpy
_MOST_AT_ONCE = 2**16  # values, which take milliseconds
_FEW = 16  # outputs of a model, of which each may be large
_UNEVEN = "The lists are uneven: all lists at one depth must have the same length."


def load_json(body: bytes) -> Any:
    """Parse a JSON body, in which NaN and Infinity may stand; raise InvalidInput for what is no JSON or nested too deep.

    Of a name that is given twice the last one counts.
    """
    if len(body) > 2 * PIECE_BYTES:
        return load_in_pieces(body, _load)
    require_shallow(body)
    return _load(body)


def dump_json(value: Any) -> bytes:
    """Return `value`, in which arrays of numbers may stand, as JSON; what is not finite as NaN, Infinity, -Infinity."""
    try:
        text = _dumps(value)
    except TypeError:  # orjson writes no text that is not UTF-8, such as half a surrogate pair that a client has named
        return _dumps_with_constants(value)
    # orjson writes null for what is not finite: where there is none, nothing needs to be looked at.
    return text if b"null" not in text or _is_finite(value) else _dumps_with_constants(value)


def to_array(value: Any, dtype: np.dtype[Any], takes_whole_floats: bool = False) -> NDArray[Any]:
    """Return nested lists of JSON as an array of `dtype`; object means bytes, which JSON writes as text (UTF-8).

    Raises InvalidInput for a list that is uneven, for a value of another kind (true is no number, 1.5 no integer), and
    for a number that `dtype` cannot hold. `takes_whole_floats`: 5.0 counts as 5, as where integers travel as floats.
    """
    values, kinds, shape = _flattened(value)
    if list in kinds or len(shape) > _MAX_AXES:
        raise InvalidInput(_UNEVEN)
    if dtype.kind == "O":
        return _to_bytes_array(values, kinds).reshape(shape)
    allowed: tuple[type, ...] = (bool,) if dtype.kind == "b" else (int,) if dtype.kind in "iu" else (int, float)
    if takes_whole_floats and dtype.kind in "iu":
        allowed = (int, float)
    if not kinds <= set(allowed):
        raise InvalidInput(f"The values must be {_WORDS[dtype.kind]}.")
    array = np.empty(len(values), dtype)
    has_floats = dtype.kind == "f" or float in kinds
    try:
        for start in range(0, len(values), _MOST_AT_ONCE):
            part = values[start : start + _MOST_AT_ONCE]
            # struct takes a third of the time that numpy takes for a list.
            source = np.frombuffer(struct.pack(f"{len(part)}d", *part)) if has_floats else np.array(part, dtype)
            array[start : start + len(part)] = _narrowed(source, dtype) if has_floats else source
    except (OverflowError, struct.error):  # the second of an integer that no float can hold
        raise InvalidInput(f"A value is too large for {dtype.name}.") from None
    return array.reshape(shape)


def _pieces(values: list[Any], most: int = _MOST_AT_ONCE) -> Iterator[list[Any]]:
    """Give `values` in pieces, between which other threads may run: what is done in C for millions would stop them all."""
    if len(values) <= most:
        yield values
        return
    step = max(1, most)
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _kinds(level: list[Any]) -> set[type]:
    kinds: set[type] = set()
    for part in _pieces(level):
        kinds.update(map(type, part))
    return kinds


def _sizes(level: list[list[Any]]) -> set[int]:
    sizes: set[int] = set()
    for part in _pieces(level):
        sizes.update(map(len, part))
    return sizes


def _elements(level: list[list[Any]]) -> list[Any]:
    """Return the elements of lists of one length in one list; the only list is not copied."""
    if len(level) == 1:
        return level[0]
    found: list[Any] = []
    for part in _pieces(level, _MOST_AT_ONCE // max(1, len(level[0]))):
        found += chain.from_iterable(part)
    return found


def _flattened(value: Any) -> tuple[list[Any], set[type], tuple[int, ...]]:
    """Return the values of nested lists, their types and shape; lists beside values stay. Raises InvalidInput.

    Level by level, each in C: a loop of Python over the pixels of a picture costs more than all else.
    """
    level: list[Any] = [value]
    shape: list[int] = []
    while (kinds := _kinds(level)) == {list}:
        sizes = _sizes(level)
        if len(sizes) > 1:
            raise InvalidInput(_UNEVEN)
        shape += sizes
        level = _elements(level)
    return level, kinds, tuple(shape)


def _to_bytes_array(values: list[Any], kinds: set[type]) -> NDArray[Any]:
    if not kinds <= {str, bytes}:
        raise InvalidInput("The values must be text.")
    return bytes_tensor([item if isinstance(item, bytes) else item.encode("utf-8", "surrogatepass") for item in values])


def _narrowed(source: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        array = source.astype(dtype)
    if dtype.kind in "iu":
        if not np.array_equal(array.astype(np.float64), source):
            raise InvalidInput(f"The values must be {_WORDS[dtype.kind]} that {dtype.name} can hold.")
    elif dtype.itemsize < source.itemsize and not np.isfinite(array).all():
        if (np.isinf(array) & np.isfinite(source)).any():
            raise InvalidInput(f"A value is too large for {dtype.name}.")
    return array


def _load(text: bytes) -> Any:
    try:
        return _loads(text)
    except ValueError:
        return _loads_with_constants(text)


_WORDS = {"b": "true or false", "i": "integers", "u": "integers", "f": "numbers"}


def _loads_with_constants(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_float=_finite_float, parse_int=_integer, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise InvalidInput(NOT_JSON) from None


def _finite_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_huge()


# Python's own int and float would let no other thread run until the whole body is read.


def _integer(text: str) -> int:
    return int(text)


def _constant(text: str) -> float:
    return float(text)


def _refuse_huge() -> NoReturn:
    raise InvalidInput("The JSON holds a number that is too large.")


def _dumps_with_constants(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        # The shortest text that names the same number of its own width, as orjson writes it.
        return value.astype(str).astype(np.float64).tolist() if value.dtype in (np.float16, np.float32) else value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _is_finite(value: Any) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
