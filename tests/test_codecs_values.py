import base64
import math
import resource
import tracemalloc

import pytest

from servekit.codecs.values import (
    MAX_JSON_COMMAS,
    MAX_JSON_DEPTH,
    decode_base64,
    finite,
    parse_json,
    parse_number,
    require_shallow,
)
from servekit.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "number"), [("5", 5.0), (" -1.5 ", -1.5), ("+.5e3", 500.0), ("1e-400", 0.0), ("007", 7.0), ("5.", 5.0)]
)
def test_decimal_numbers_are_read(text: str, number: float) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize("text", ["", "abc", "nan", "inf", "-Infinity", "1_000", "٥", "５", "0x10", "1e999", "5 5", "1,5"])
def test_what_is_no_finite_decimal_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_number(text)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 1e39, 10**400])
def test_a_number_must_fit_a_float32(number: float) -> None:
    with pytest.raises(InvalidInput, match="too large or not finite"):
        finite(number)


def test_json_is_parsed() -> None:
    assert parse_json(b'{"value": [1, 2.5, "x\\u00e9"]}') == {"value": [1, 2.5, "xé"]}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"{'a': 1}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1, "a": 2}', b"\xff\xfe\x00", b"9" * 5000],
)
def test_what_is_no_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_json(body)


def test_deep_json_is_refused_before_it_is_parsed() -> None:
    for depth in (MAX_JSON_DEPTH + 1, 200, 100_000):
        with pytest.raises(InvalidInput, match="too deep"):
            parse_json(b"[" * depth + b"]" * depth)
    assert parse_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH)


def test_a_long_string_costs_no_memory_of_its_own() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    body = b'{"a": ' + b"[" * 60 + b"]" * 60 + b', "b": ' + b"[" * 60 + b"]" * 60 + b', "c": "' + b"x" * 20_000_000 + b'"}'
    assert len(parse_json(body)["c"]) == 20_000_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # kilobytes: the body and a few copies of it, not a hundred


def test_a_body_of_empty_lists_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(InvalidInput, match="too many lists and objects"):
        parse_json(b"[" + b"[]," * 1_000_001 + b"[]]")


def test_where_a_few_values_are_meant_a_table_is_refused_before_it_is_parsed() -> None:
    assert parse_json(b'{"value": [' + b"1," * MAX_JSON_COMMAS + b"1]}")
    with pytest.raises(InvalidInput, match="too many values"):
        parse_json(b'{"value": [' + b"1," * (MAX_JSON_COMMAS + 1) + b"1]}")


def test_many_brackets_that_are_not_deep_are_read() -> None:
    assert len(parse_json(b"[" + b",".join([b"[1]"] * 500) + b"]")) == 500
    assert parse_json(b'["' + b"[" * 500 + rb"\"" + b'"]') == ["[" * 500 + '"']


def test_base64_is_decoded() -> None:
    content = bytes(range(256))
    assert decode_base64(base64.encodebytes(content).decode()) == content


@pytest.mark.parametrize("text", ["ä", "a", "QQ=", "QQ==QQ", "Q-_="])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="base64"):
        decode_base64(text)


def test_brackets_in_strings_are_none_wherever_they_are() -> None:
    deep = b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1)
    for before in range(2**16 - 5, 2**16 + 5):  # a string, and what is escaped in it, may begin at any byte of a piece
        text = b" " * before + rb'["\\\"' + deep + rb'\\", "\"' + deep + b'"]'
        assert len(parse_json(text)) == 2
        with pytest.raises(InvalidInput, match="nested too deep"):
            parse_json(text[:-1] + b", " + deep + b"]")


def test_millions_of_strings_take_little_memory() -> None:
    body = b"[" + b'"",' * 2**22 + b"[" * (MAX_JSON_DEPTH + 1) + b"]" * (MAX_JSON_DEPTH + 1) + b"]"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match="nested too deep"):
            require_shallow(body)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
