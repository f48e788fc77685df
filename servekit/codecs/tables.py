"""Tables into Tensors and back: CSV and JSON lines, a line a row.

A line of CSV holds the values of all inputs side by side, in the order of the signature, each of them flat: a model with
the inputs a (-1, 2) and b (-1,) reads `1,2,3`. What is written holds the outputs in the same way. Nothing is guessed: a
field that is empty, or no number where one is due, is refused, and as many rows go out as came in.
"""

import csv
import io
import math
import re
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.instances import predictions_of, rows_of
from servekit.errors import InvalidInput, NotAcceptable
from servekit.signature import Signature, array_dtype
from servekit.spec import TensorSpec
from servekit.tensors import Tensors, bytes_tensor, row_count

MAX_FIELDS = 1_000_000  # of one line: as text a field takes thirty times its place in the body

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_WORDS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf, "-infinity": -math.inf}
_SWITCHES = {"true": 1, "1": 1, "false": 0, "0": 0}
_NUMERALS = b"0123456789+-.eE,\r\n"
_ROWS_AT_ONCE = 4096  # of what is written: numpy gives each number as text 128 bytes


def read_csv(body: bytes, signature: Signature, has_header: bool = False) -> dict[str, NDArray[Any]]:
    """Return the inputs that the lines of `body` hold; a header, if there is one, names them or is passed over.

    `nan`, `inf` and `-inf` are numbers. Raises InvalidInput, naming the line, for a line of another length, an empty one,
    a field that is no value of its input, and for bad quoting.
    """
    pieces = pieces_of(signature)
    width = pieces[-1][2]
    records = _records(body, None if has_header else width)
    if has_header:
        pieces = _in_order(next(records, []), pieces)
    columns = [_column(spec, signature, _is_plain(body)) for spec, _, _ in pieces]
    rows = 0
    for rows, record in enumerate(records, start=1):
        width = width or len(record)  # where the model leaves it open the first row says it
        if len(record) != width:
            raise InvalidInput(f"Row {rows} of the CSV has {len(record)} values, and must have {width}.")
        for (_, start, stop), column in zip(pieces, columns, strict=True):
            try:
                column.add(record[start:stop])
            except InvalidInput as error:
                hint = " Send rows only, without a header." if rows == 1 and not has_header else ""
                raise InvalidInput(f"Row {rows} of the CSV: {error}{hint}") from None
    _require_rows(rows, signature)
    return {spec.name: fit(column.array(rows), spec) for (spec, _, _), column in zip(pieces, columns, strict=True)}


def read_numbers(body: bytes) -> NDArray[np.float64]:
    """Return the numbers of a CSV, (rows, columns); raise InvalidInput as `read_csv` does."""
    column, width, rows = _Floats(_is_plain(body)), None, 0
    for rows, record in enumerate(_records(body, None), start=1):
        width = width or len(record)
        if len(record) != width:
            raise InvalidInput(f"Row {rows} of the CSV has {len(record)} values, and the first has {width}.")
        column.add(record)
    if not rows:
        raise InvalidInput("There are no rows; send one at least.")
    return column.array(rows)


def read_json_lines(body: bytes, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs that `body` holds, JSON of one row a line; raise InvalidInput for lines that are empty, too."""
    rows = []
    for number, line in enumerate(io.BytesIO(body.rstrip(b"\r\n")), start=1):
        if not line.strip():
            raise InvalidInput(f"Line {number} is empty; send a row on each line.")
        try:
            rows.append(load_json(line))
        except InvalidInput as error:
            raise InvalidInput(f"Line {number}: {error}") from None
    return rows_of(rows, signature, takes_whole_floats=True)


def write_csv(tensors: Tensors, signature: Signature) -> bytes:
    """Return a line for each row: all outputs side by side; raise NotAcceptable for bytes that are no text."""
    columns, text = flat_outputs(tensors, signature), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for start in range(0, row_count(tensors), _ROWS_AT_ONCE):
        parts = [_texts(column[start : start + _ROWS_AT_ONCE]) for column in columns]
        writer.writerows([value for part in row for value in part] for row in zip(*parts, strict=True))
    return text.getvalue().encode()


def write_json_lines(tensors: Tensors, signature: Signature) -> bytes:
    """Return a line of JSON for each row: the value of the only output, or an object of all."""
    return b"".join(dump_json(row) + b"\n" for row in predictions_of(tensors, signature))


def flat_outputs(tensors: Tensors, signature: Signature) -> list[NDArray[Any]]:
    """Return the outputs as (rows, values) each, those of the signature first; all of them have the same rows."""
    named = [spec.name for spec in signature.outputs if spec.name in tensors]
    names = named + [name for name in tensors if name not in named]
    if len({len(array) for array in tensors.values()}) > 1:
        raise NotAcceptable("The outputs of this model have different numbers of rows; ask for application/json.")
    return [tensors[name].reshape(len(tensors[name]), -1) for name in names]


def from_table(table: NDArray[Any], signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs that `table` (rows, values) of numbers holds side by side; raise InvalidInput if it cannot."""
    pieces = pieces_of(signature)
    width = pieces[-1][2]
    if width not in (None, table.shape[1]):
        raise InvalidInput(f"A row has {table.shape[1]} values; the model takes {width}.")
    _require_rows(len(table), signature)
    return {spec.name: fit(table[:, start:stop], spec) for spec, start, stop in pieces}


def fit(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Return `values` (rows, ...) with the shape and dtype of `spec`; raise InvalidInput if it cannot hold them."""
    try:
        shaped = values.reshape(len(values), *spec.shape[1:])
    except ValueError:
        raise InvalidInput(f"The values of {spec.name} do not fill the shape {list(spec.shape)}.") from None
    dtype = array_dtype(spec)
    if dtype == object or shaped.dtype == dtype:
        return shaped
    with np.errstate(over="ignore", invalid="ignore"):
        cast = np.ascontiguousarray(shaped.astype(dtype))
    if dtype.kind != "f" and not np.array_equal(cast.astype(np.float64), shaped.astype(np.float64)):
        kind = "true or false" if dtype.kind == "b" else "integers"
        raise InvalidInput(f"The values of {spec.name} must be {kind} that {dtype.name} can hold.")
    if dtype.kind == "f" and shaped.dtype.kind == "f" and (np.isinf(cast) & np.isfinite(shaped)).any():
        raise InvalidInput(f"A value of {spec.name} is too large for {dtype.name}.")
    return cast


def pieces_of(signature: Signature) -> list[tuple[TensorSpec, int, int | None]]:
    """Return which values of a row are whose: input, first, end (None: all that are left, of an input of free size).

    Raises InvalidInput for a model whose rows cannot be told apart so.
    """
    pieces: list[tuple[TensorSpec, int, int | None]] = []
    start = 0
    for number, spec in enumerate(signature.inputs):
        is_free, is_last = -1 in spec.shape[1:], number == len(signature.inputs) - 1
        if spec.shape[1:].count(-1) > 1 or is_free and not is_last:
            raise InvalidInput("The inputs of this model have no fixed sizes, which a table cannot hold; send JSON.")
        stop = None if is_free else start + math.prod(spec.shape[1:])
        pieces.append((spec, start, stop))
        start = stop or 0
    return pieces


class _Floats:
    """The values of one input, eight bytes each, as they are read."""

    def __init__(self, is_plain: bool) -> None:
        self.values = array("d")
        self.is_plain = is_plain

    def add(self, fields: Sequence[str]) -> None:
        """Add the fields of one row; raise InvalidInput for one that is no such value."""
        if self.is_plain:
            try:
                self.values.extend(map(float, fields))
                return
            except ValueError:
                pass  # the line below says what is wrong
        self.values.extend(map(_parse_float, fields))

    def array(self, rows: int) -> NDArray[Any]:
        """Return (rows, values of a row)."""
        numbers = np.frombuffer(self.values, np.float64)
        if self.is_plain and np.isinf(numbers).any():  # without a word for it, only a number too large can be infinite
            raise InvalidInput("A number of the CSV is too large.")
        return numbers.reshape(rows, -1)


class _Integers:
    """The same of integers and of true and false."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.values = array("Q" if dtype.kind == "u" else "q")
        self.parse = _parse_switch if dtype.kind == "b" else _parse_integer

    def add(self, fields: Sequence[str]) -> None:
        """Add the fields of one row; raise InvalidInput for one that is no such value."""
        try:
            self.values.extend(map(self.parse, fields))
        except OverflowError:
            raise InvalidInput("an integer is too large, or below zero where none may be.") from None

    def array(self, rows: int) -> NDArray[Any]:
        """Return (rows, values of a row)."""
        return np.array(self.values).reshape(rows, -1)


class _Texts:
    """The same of bytes, which are the UTF-8 of text here."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def add(self, fields: Sequence[str]) -> None:
        """Add the fields of one row."""
        self.values.extend(field.encode() for field in fields)

    def array(self, rows: int) -> NDArray[Any]:
        """Return (rows, values of a row)."""
        return bytes_tensor(self.values).reshape(rows, -1)


def _column(spec: TensorSpec, signature: Signature, is_plain: bool) -> "_Floats | _Integers | _Texts":
    dtype = array_dtype(spec)
    if dtype == object:
        if spec.name in signature.encoded:
            raise InvalidInput(f"{spec.name} is encoded, which CSV cannot hold; send the file itself, or JSON with b64.")
        return _Texts()
    return _Floats(is_plain) if dtype.kind == "f" else _Integers(dtype)


def _records(body: bytes, width: int | None) -> Iterator[list[str]]:
    """Give the fields of each line; `width` is how many there should be, if that is known."""
    reader = csv.reader(_lines(body, width), strict=True)
    try:
        for record in reader:
            if not record:
                raise InvalidInput(f"Line {reader.line_num} of the CSV is empty; send a row on each line.")
            yield record
    except csv.Error:
        raise InvalidInput(
            f"Line {reader.line_num} of the CSV cannot be read: a quote or a line break stands where none may, or a "
            f"field has more than {csv.field_size_limit()} characters."
        ) from None


def _lines(body: bytes, width: int | None) -> Iterator[str]:
    """Give the lines of `body`, none with more fields than are read; a line break in quotes does not end a row."""
    body = body.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")  # a byte order mark, which spreadsheets write
    is_quoted = b'"' in body
    if is_quoted and body.count(b",") > MAX_FIELDS:
        raise InvalidInput(f"A CSV with quotes may have {MAX_FIELDS} fields.")
    for number, line in enumerate(io.BytesIO(body), start=1):
        fields = line.count(b",") + 1
        if not is_quoted and fields > (width or MAX_FIELDS):
            raise InvalidInput(f"Line {number} of the CSV has {fields} values; at most {width or MAX_FIELDS} are read.")
        try:
            yield line.decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"Line {number} of the CSV is not UTF-8.") from None


def _in_order(
    header: Sequence[str], pieces: Sequence[tuple[TensorSpec, int, int | None]]
) -> list[tuple[TensorSpec, int, int | None]]:
    """Return `pieces` where `header` says that they are, if it names the inputs."""
    names = [name.strip() for name in header]
    if len(set(names)) != len(names):
        raise InvalidInput("The header of the CSV gives the same name twice.")
    is_named = set(names) == {spec.name for spec, _, _ in pieces} and all(stop == start + 1 for _, start, stop in pieces)
    if not is_named:
        return list(pieces)
    return [(spec, names.index(spec.name), names.index(spec.name) + 1) for spec, _, _ in pieces]


def _require_rows(rows: int, signature: Signature) -> None:
    if not rows:
        raise InvalidInput("There are no rows; send one at least.")
    if not signature.is_batched and rows > 1:
        raise InvalidInput("This model takes one row at a time.")
    if signature.max_rows is not None and rows > signature.max_rows:
        raise InvalidInput(f"The model takes {signature.max_rows} rows at most, and there are {rows}.")


def _is_plain(body: bytes) -> bool:
    """Return True if `body` holds nothing but numbers: then Python's own `float`, which is quick, reads nothing else."""
    return not body.translate(None, _NUMERALS)


def _parse_float(text: str) -> float:
    text = text.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if math.isinf(number):
            raise InvalidInput("a number is too large.")
        return number
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    raise InvalidInput("a field is empty; write nan for a number that is missing." if not text else "a field is no number.")


def _parse_integer(text: str) -> int:
    if _INTEGER.fullmatch(text.strip()):
        return int(text)
    number = _parse_float(text)
    if not number.is_integer():
        raise InvalidInput("a field is no integer.")
    return int(number)


def _parse_switch(text: str) -> int:
    if text.strip().lower() not in _SWITCHES:
        raise InvalidInput("a field is neither true nor false.")
    return _SWITCHES[text.strip().lower()]


def _texts(column: NDArray[Any]) -> list[list[str]]:
    """Return the values of (rows, values) as text; a number as the shortest that means the same in its own width."""
    if column.dtype == object:
        try:
            return [[item if isinstance(item, str) else item.decode() for item in row] for row in column.tolist()]
        except UnicodeDecodeError:
            raise NotAcceptable("An output holds bytes that are no text; ask for application/json.") from None
    texts: list[list[str]] = column.astype(str).tolist()
    return [[text.lower() for text in row] for row in texts] if column.dtype.kind == "b" else texts
