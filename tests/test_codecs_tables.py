"""CSV and JSON lines into Tensors and back, and what of them is refused."""

import math
import time

import numpy as np
import pytest

from servekit.codecs.tables import (
    MAX_FIELDS,
    from_table,
    read_csv,
    read_json_lines,
    read_numbers,
    write_csv,
    write_json_lines,
)
from servekit.errors import InvalidInput, NotAcceptable
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

OUT = TensorSpec("y", "float32", (-1,))


def taking(*inputs: tuple[str, str, tuple[int, ...]], **more: object) -> Signature:
    return Signature(tuple(TensorSpec(*each) for each in inputs), (OUT,), **more)  # type: ignore[arg-type]


ONE = taking(("x", "float32", (-1,)))
PAIR = taking(("x", "float32", (-1, 2)))
MIXED = taking(("name", "bytes", (-1,)), ("size", "int64", (-1, 2)), ("is_new", "bool", (-1,)))


@pytest.mark.parametrize("body", [b"1,2\n3,4\n", b"1,2\r\n3,4", b"\xef\xbb\xbf1,2\n3,4", b'"1",2\n3,"4"\n', b" 1 , 2\n+3,4e0\n"])
def test_lines_are_rows(body: bytes) -> None:
    array = read_csv(body, PAIR)["x"]
    assert (array.dtype, array.tolist()) == (np.float32, [[1, 2], [3, 4]])


def test_the_inputs_stand_side_by_side() -> None:
    tensors = read_csv('"a, ""b""",1,2.0,true\né,9007199254740993,-4,0\n'.encode(), MIXED)
    assert tensors["name"].tolist() == [b'a, "b"', "é".encode()]
    assert tensors["size"].tolist() == [[1, 2], [9007199254740993, -4]]  # more than a float can tell apart
    assert (tensors["is_new"].dtype, tensors["is_new"].tolist()) == (np.bool_, [True, False])


def test_a_row_fills_the_shape_of_the_input() -> None:
    picture = taking(("image", "float32", (-1, 1, 2, 2)))
    assert read_csv(b"1,2,3,4\n", picture)["image"].tolist() == [[[[1, 2], [3, 4]]]]
    free = taking(("a", "float32", (-1,)), ("b", "float32", (-1, -1)))
    assert read_csv(b"1,2,3\n4,5,6\n", free)["b"].tolist() == [[2, 3], [5, 6]]
    for uneven in (b"1,2,3\n4,5\n", b"1,2,3,4\n5,6\n"):  # the values of the second would fill up rows of the same size
        with pytest.raises(InvalidInput, match="Row 2 of the CSV"):
            read_csv(uneven, free)


def test_nan_and_infinities_are_words() -> None:
    values = read_csv(b"nan,inf\n-Infinity,NaN\n", PAIR)["x"]
    assert math.isnan(values[0, 0]) and values[0, 1] == math.inf and values[1, 0] == -math.inf


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "There are no rows"),
        (b"\n\n", "There are no rows"),
        (b"1,2\n\n3,4\n", "Line 2 of the CSV is empty"),
        (b"1,2\n3\n", "Row 2 of the CSV has 1 values, and must have 2"),
        (b"1,2,3\n", "Line 1 of the CSV has 3 values"),
        (b'"1",2,3\n', "Row 1 of the CSV has 3 values, and must have 2"),
        (b"1,\n", "a field is empty; write nan"),
        (b"a,b\n1,2\n", "a field is no number. Send rows only, without a header"),
        (b"1,2\n1,0x10\n", "Row 2 of the CSV: a field is no number"),
        (b"1,1_000\n", "a field is no number"),
        ("1,٣\n".encode(), "a field is no number"),
        (b"1,1e999\n", "too large"),
        (b"1,1e999 \n", "too large"),
        (b"1,1e39\n", "too large for float32"),
        (b'"1,2\n', "cannot be read"),
        (b'"1"x,2\n', "cannot be read"),
        (b"1\r2,3\r", "cannot be read"),
        (b"\xff,2\n", "Line 1 of the CSV is not UTF-8"),
        (b"1,\x002\n", "cannot be read|no number"),
    ],
)
def test_what_is_no_such_row_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_csv(body, PAIR)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"a,1.5,2,0\n", "a field is no integer"),
        (b"a,nan,2,0\n", "a field is no integer"),
        (b"a,99999999999999999999,2,0\n", "an integer is too large"),
        (b"a,1,2,maybe\n", "neither true nor false"),
    ],
)
def test_a_field_must_be_a_value_of_its_input(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_csv(body, MIXED)


def test_integers_must_fit_their_dtype() -> None:
    assert read_csv(b"200\n", taking(("x", "uint8", (-1,))))["x"].tolist() == [200]
    for dtype, text in [("uint8", b"300"), ("int8", b"-129"), ("uint64", b"-1")]:
        with pytest.raises(InvalidInput, match="hold|below zero"):
            read_csv(text, taking(("x", dtype, (-1,))))


def test_models_that_a_table_cannot_feed_say_so() -> None:
    with pytest.raises(InvalidInput, match="no fixed sizes"):
        read_csv(b"1\n", taking(("x", "float32", (-1, -1, -1))))
    with pytest.raises(InvalidInput, match="encoded"):
        read_csv(b"1\n", taking(("image", "bytes", (-1,)), encoded=frozenset(("image",))))
    with pytest.raises(InvalidInput, match="one row at a time"):
        read_csv(b"1\n2\n", taking(("x", "float32", (-1,)), is_batched=False))
    with pytest.raises(InvalidInput, match="takes 2 rows at most"):
        read_csv(b"1\n2\n3\n", taking(("x", "float32", (-1,)), max_rows=2))


def test_a_header_names_the_inputs_or_is_passed_over() -> None:
    two = taking(("a", "float32", (-1,)), ("b", "float32", (-1,)))
    swapped = read_csv(b"b,a\n1,2\n3,4\n", two, has_header=True)
    assert (swapped["a"].tolist(), swapped["b"].tolist()) == ([2, 4], [1, 3])
    assert read_csv(b"p,q\n1,2\n", PAIR, has_header=True)["x"].tolist() == [[1, 2]]
    for body, reason in [(b"a,a\n1,2\n", "same name twice"), (b"a,b\n", "no rows"), (b"a,b\n1,2,3\n", "has 3 values")]:
        with pytest.raises(InvalidInput, match=reason):
            read_csv(body, two, has_header=True)


@pytest.mark.parametrize(
    "body",
    [
        b"1," * 5_000_000 + b"1",  # one line of ten megabytes
        b'"' + b"x" * 5_000_000 + b'",1',
        b'"1",' * 2_000_000 + b"1",
        b"1\n" * 1 + b"," * 5_000_000,
    ],
    ids=["fields", "a field", "quotes", "commas"],
)
def test_a_bomb_is_refused_before_it_takes_memory(body: bytes) -> None:
    for signature in (PAIR, taking(("x", "float32", (-1, -1)))):
        started = time.process_time()
        with pytest.raises(InvalidInput):
            read_csv(body, signature)
        assert time.process_time() - started < 5
    assert MAX_FIELDS < 5_000_000


def test_plain_numbers_make_a_table() -> None:
    assert read_numbers(b"1,2\n3,nan\n").shape == (2, 2)
    assert read_numbers(b"5").tolist() == [[5]]
    for body, reason in [(b"", "no rows"), (b"1,2\n3\n", "has 1 values, and the first has 2"), (b"a\n", "no number")]:
        with pytest.raises(InvalidInput, match=reason):
            read_numbers(body)


def test_a_table_of_numbers_is_split_among_the_inputs() -> None:
    two = taking(("a", "int32", (-1,)), ("b", "float32", (-1, 2)))
    tensors = from_table(np.array([[1.0, 2, 3]]), two)
    assert (tensors["a"].tolist(), tensors["b"].tolist()) == ([1], [[2, 3]])
    for table, reason in [([[1.5, 2, 3]], "must be integers"), ([[1.0, 2]], "has 2 values"), (np.zeros((0, 3)), "no rows")]:
        with pytest.raises(InvalidInput, match=reason):
            from_table(np.array(table), two)


def test_json_lines_are_rows() -> None:
    assert read_json_lines(b"1\n2.5\r\n\n", ONE)["x"].tolist() == [1, 2.5]
    assert read_json_lines(b'{"x": [1, 2]}\n{"x": [3, 4]}', PAIR)["x"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "no instances"),
        (b"1\n\n2\n", "Line 2 is empty"),
        (b"1\n{\n", "Line 2: The body is not valid JSON"),
        (b"1 2\n", "Line 1: The body is not valid JSON"),
        (b"[" * 200 + b"]" * 200, "Line 1: The JSON is nested too deep"),
        (b'{"z": 1}\n', "no input called z"),
    ],
)
def test_json_lines_that_are_none_are_refused(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_json_lines(body, ONE)


def test_as_many_lines_go_out_as_rows_came_in() -> None:
    both = Signature(PAIR.inputs, (TensorSpec("b", "int64", (-1,)), TensorSpec("a", "float32", (-1, 2))))
    tensors = {"a": np.array([[0.1, np.nan], [np.inf, 1e-7]], np.float32), "b": np.array([1, 2])}
    assert write_csv(tensors, both) == b"1,0.1,nan\n2,inf,1e-07\n"
    assert write_json_lines(tensors, both) == b'{"b":1,"a":[0.1,NaN]}\n{"b":2,"a":[Infinity,1e-7]}\n'.replace(b"1e-7", b"1e-07")
    many = {"y": np.arange(10_000)}
    assert write_csv(many, ONE).count(b"\n") == write_json_lines(many, ONE).count(b"\n") == 10_000


def test_text_is_quoted_and_truth_is_lower_case() -> None:
    tensors = {"text": bytes_tensor([b'a,"b"', b"c\nd"]), "is": np.array([True, False])}
    assert write_csv(tensors, ONE) == b'"a,""b""",true\n"c\nd",false\n'
    with pytest.raises(NotAcceptable, match="no text"):
        write_csv({"text": bytes_tensor([b"\xff"])}, ONE)
    with pytest.raises(NotAcceptable, match="different numbers of rows"):
        write_csv({"a": np.zeros(2), "b": np.zeros(3)}, ONE)
