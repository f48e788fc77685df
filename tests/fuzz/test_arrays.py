"""JSON values and arrays: what is written is read again, both backends agree, and no bytes do harm."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from servekit.codecs import arrays as codec
from servekit.codecs.values import MAX_JSON_DEPTH, decode_base64, finite, parse_json, parse_number, require_shallow
from servekit.errors import InvalidInput, RequestError
from tests.fuzz.made import JSON, NUMBERS, bounded, damaged, same

ANY = st.sampled_from(NUMBERS).flatmap(
    lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(max_dims=3, max_side=3))
)
SEEDS = (
    b'{"instances": [[1.5, -2e3], [3, 4]], "id": "x\\u00e9"}',
    b"[NaN, -Infinity, true, null]",
    b'"\\ud83d\\ude00"',
    b"[" * 120,
)


@given(ANY)
def test_arrays_that_are_written_are_read_again(array: NDArray[Any]) -> None:
    found = codec.to_array(codec.load_json(codec.dump_json(array)), array.dtype)
    assert same(found, array)


@given(ANY, st.sampled_from(NUMBERS))
def test_a_number_is_never_read_as_another_one(array: NDArray[Any], name: str) -> None:
    try:
        found = codec.to_array(array.tolist(), np.dtype(name))
    except InvalidInput:
        return
    assert (found.dtype, found.shape) == (np.dtype(name), array.shape)
    if found.dtype.kind in "iub":
        assert found.tolist() == array.tolist()
    else:  # rounded to the nearest, and nothing finite becomes infinite
        assert np.array_equal(np.isfinite(found), np.isfinite(np.asarray(array, np.float64)))


@given(JSON)
def test_values_that_are_written_are_read_again(value: Any) -> None:
    assert codec.load_json(codec.dump_json(value)) == value
    assert json.loads(codec.dump_json(value)) == value


@given(damaged(SEEDS))
def test_no_bytes_hurt_the_readers_of_json(body: bytes) -> None:
    for read in (codec.load_json, parse_json):
        try:
            value = bounded(read, body)
        except RequestError:
            continue
        codec.dump_json(value)
        for name in ("float32", "int8", "bool", "O"):
            try:
                codec.to_array(value, np.dtype(name))
            except RequestError:
                pass


@given(damaged(SEEDS))
def test_with_orjson_and_without_the_same_is_read(body: bytes) -> None:
    def read(function: Any) -> Any:
        try:
            return repr(function(body))
        except InvalidInput:
            return "refused"

    assert read(codec.load_json) == read(codec._loads_with_constants)


@given(JSON)
def test_what_the_strict_reader_takes_is_what_json_says(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(
    st.integers(1, 130),
    st.sampled_from([("[", "]"), ('{"a[":', "}"), ('[{"\\"]":', "}]")]),
    st.sampled_from(['"[[["', "1", '"\\\\"']),
)
def test_depth_is_counted_outside_of_strings(depth: int, brackets: tuple[str, str], inner: str) -> None:
    opening, closing = brackets
    body = (opening * depth + inner + closing * depth).encode()
    levels = depth * len(closing)
    if levels <= MAX_JSON_DEPTH:
        require_shallow(body)
        assert json.loads(body) == parse_json(body)
    else:
        with pytest.raises(InvalidInput, match="nested too deep"):
            bounded(require_shallow, body)


@given(st.text(max_size=20) | st.from_regex(r"[+-]?[0-9_.]{0,5}([eE][+-]?\d{0,4})?", fullmatch=True))
def test_numbers_of_text_are_those_of_python_or_none(text: str) -> None:
    try:
        number = parse_number(text)
    except InvalidInput:
        return
    assert number == float(text) and finite(number) == number


@given(st.binary(max_size=50), st.lists(st.integers(0, 60), max_size=4))
def test_base64_may_have_line_breaks(data: bytes, breaks: list[int]) -> None:
    import base64

    text = base64.b64encode(data).decode()
    for place in breaks:
        text = text[:place] + "\r\n" + text[place:]
    assert decode_base64(text) == data


@given(st.text(max_size=30))
def test_no_text_hurts_the_reader_of_base64(text: str) -> None:
    try:
        assert isinstance(decode_base64(text), bytes)
    except InvalidInput:
        pass
