"""JSON values into arrays and back: strict about kinds, and NaN where the contracts write it."""

import numpy as np
import pytest

from servekit.codecs.arrays import dump_json, load_json, to_array
from servekit.errors import InvalidInput


def array(value: object, dtype: str, **options: bool) -> np.ndarray:
    return to_array(value, np.dtype(dtype), **options)


def test_nested_lists_become_arrays() -> None:
    assert array([[1, 2.5], [3, 4]], "float32").tolist() == [[1, 2.5], [3, 4]]
    assert array([[1], [2]], "uint8").dtype == np.uint8
    assert array([True, False], "bool").tolist() == [True, False]
    assert array([["ä", "b"]], "object").tolist() == [["ä".encode(), b"b"]]
    assert array(3, "int64").shape == () and array([], "float32").shape == (0,)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([True], "float32"),
        ([1, True], "int32"),
        (["1"], "float32"),
        ([None], "float32"),
        ([{}], "float32"),
        ([1.5], "int32"),
        ([1.0], "int32"),
        ([300], "uint8"),
        ([-1], "uint64"),
        ([1e300], "float32"),
        ([2**70], "int64"),
        ([[1, 2], [3]], "float32"),
        ([[1, 2], 3], "float32"),
        ([1, [2]], "float32"),
        ([[1, 2], [3]], "int64"),
        ([["a"], ["b", "c"]], "object"),
        ([1], "bool"),
        ([1], "object"),
    ],
)
def test_what_is_no_such_array_is_refused(value: object, dtype: str) -> None:
    with pytest.raises(InvalidInput):
        array(value, dtype)


def test_whole_floats_count_as_integers_where_they_travel_as_floats() -> None:
    assert array([5.0, 7], "int32", takes_whole_floats=True).tolist() == [5, 7]
    for bad in ([5.5], [float("nan")], [1e30]):
        with pytest.raises(InvalidInput):
            array(bad, "int32", takes_whole_floats=True)


def test_constants_travel_both_ways() -> None:
    value = load_json(b'{"a": [NaN, Infinity, -Infinity, 1.5]}')
    floats = array(value["a"], "float32")
    assert np.isnan(floats[0]) and floats[1:].tolist() == [np.inf, -np.inf, 1.5]
    assert dump_json({"a": floats}) == b'{"a":[NaN,Infinity,-Infinity,1.5]}'


def test_text_that_is_no_utf_8_is_written_as_it_came() -> None:
    assert dump_json(load_json(b'{"id":"\\ud800","x":[1.5]}')) == b'{"id":"\\ud800","x":[1.5]}'


@pytest.mark.parametrize("body", [b"", b"{", b"[1e999]", b'"\xff"', b"[" * 101 + b"]" * 101, b"[" * 250_000, b"[NaN,1e999]"])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        load_json(body)


def test_brackets_in_text_are_not_depth() -> None:
    text = "[" * 500
    assert load_json(b'["' + text.encode() + b'"]') == [text]


def test_arrays_are_written_in_their_own_precision() -> None:
    assert dump_json({"x": np.array([0.1], np.float32)}) == b'{"x":[0.1]}'
    assert dump_json({"x": np.array([0.1, np.nan], np.float32)}) == b'{"x":[0.1,NaN]}'
    assert dump_json([np.array([2**63], np.uint64), np.array([True])]) == b"[[9223372036854775808],[true]]"


def test_millions_of_values_are_read_in_pieces() -> None:
    count = 3 * 2**16 + 1
    for dtype in ("float32", "int32"):
        assert array(list(range(count)), dtype).tolist() == list(range(count))
    assert array([[1]] * count, "float32").shape == (count, 1)
    assert array(["a"] * count, "object").shape == (count,)
    with pytest.raises(InvalidInput, match="uneven"):
        array([[1]] * count + [[1, 2]], "float32")
    with pytest.raises(InvalidInput, match="numbers"):
        array([1] * count + [None], "float32")
