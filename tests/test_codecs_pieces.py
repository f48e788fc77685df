"""Large JSON in pieces must be what the parser makes of the whole, or be refused where that refuses it."""

import json
import random
import re
from typing import Any

import numpy as np
import orjson
import pytest

from servekit.codecs.arrays import dump_json, load_json, to_array
from servekit.codecs.pieces import PIECE_BYTES, freed_in_pieces, load_in_pieces
from servekit.codecs.values import MAX_JSON_DEPTH
from servekit.errors import InvalidInput

TEXTS = ["", "a,b", "]", "\\", '\\"', '{"', 'x"y,[', "é,", "\\,", "a1"]
DAMAGES = [b"", b",", b"]", b"}", b"[", b'"', b"\\", b"{", b":", b"1", b" ", b'"a":']
SIZES = [1, 2, 5, 17, 64]


def parse(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        raise InvalidInput("no JSON") from None


def outcome(body: bytes, size: int | None = None) -> Any:
    try:
        return parse(body) if size is None else load_in_pieces(body, parse, size)
    except InvalidInput:
        return InvalidInput


def some_value(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(7 if depth < 6 else 4)
    if kind < 2:
        return chance.choice([chance.random(), chance.randrange(-(10**6), 10**6), True, None, [], {}])
    if kind < 4:
        return chance.choice(TEXTS)
    if kind < 6:
        return [some_value(chance, depth + 1) for _ in range(chance.randrange(6))]
    return {chance.choice(TEXTS) + str(chance.randrange(9)): some_value(chance, depth + 1) for _ in range(chance.randrange(6))}


def some_json(chance: random.Random) -> bytes:
    text = json.dumps(some_value(chance), ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, None, 1])).encode()
    return re.sub(rb'"a1\d', b'"a1', text) if chance.random() < 0.5 else text  # names that are given twice


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_size_give_what_the_whole_gives(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(200):
        body = some_json(chance)
        for size in SIZES:
            assert outcome(body, size) == parse(body), (body, size)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_refused_as_a_whole_is_refused_in_pieces(seed: int) -> None:
    chance, refused = random.Random(seed), 0
    for _ in range(300):
        damaged = bytearray(some_json(chance))
        for _ in range(chance.randint(1, 2)):
            at = chance.randrange(len(damaged) + 1)
            damaged[at : at + chance.randrange(3)] = chance.choice(DAMAGES)
        expected = outcome(bytes(damaged))
        refused += expected is InvalidInput
        for size in SIZES:
            assert outcome(bytes(damaged), size) == expected, (damaged, size)
    assert refused > 80


@pytest.mark.parametrize(
    "body", [b"[1,", b"[1,]", b'{"a":1,}', b"1,2", b"[1],[2]", b"[1]],[2", b"[[1,2},3]", b'{"a":[1,2}],"b":1}', b'["a,b', b""]
)
@pytest.mark.parametrize("size", SIZES)
def test_commas_and_brackets_that_do_not_fit_are_refused(body: bytes, size: int) -> None:
    assert outcome(body, size) is InvalidInput


def test_the_parser_never_gets_much_at_once() -> None:
    seen: list[int] = []

    def watched(text: bytes) -> Any:
        seen.append(len(text))
        return parse(text)

    rows = [[0.5] * 784, {"name": "a,]\\" * 50}] * 400
    body = json.dumps({"instances": rows, "more": {"deep": [rows]}}).encode()
    assert load_in_pieces(body, watched) == {"instances": rows, "more": {"deep": [rows]}}
    assert len(seen) > len(body) // PIECE_BYTES
    assert max(seen) < PIECE_BYTES + 500


def test_a_string_longer_than_a_piece_stays_whole() -> None:
    value = {"a": 1, "image": ',"\\' * PIECE_BYTES, "b": [2, 3]}
    assert load_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("opened", [b"[", b'{"a":'])
def test_depth_and_number_of_lists_are_limited_as_for_small_bodies(opened: bytes) -> None:
    closed = b"]" if opened == b"[" else b"}"
    numbers = b"[" + b"1," * PIECE_BYTES * 2 + b"1]"
    assert load_json(opened * (MAX_JSON_DEPTH - 1) + numbers + closed * (MAX_JSON_DEPTH - 1))
    for depth in (MAX_JSON_DEPTH, 100_000):
        with pytest.raises(InvalidInput, match="too deep"):
            load_json(opened * depth + numbers + closed * depth)
    with pytest.raises(InvalidInput, match="too many lists"):
        load_json(b"[" + b"[]," * 1_000_001 + b"1]")


def test_large_bodies_may_hold_what_is_no_number() -> None:
    values = load_json(b"[" + b"1,NaN,-Infinity," * PIECE_BYTES + b"2]")
    assert values[:3] == pytest.approx([1, float("nan"), float("-inf")], nan_ok=True)
    assert (len(values), values[-1]) == (3 * PIECE_BYTES + 1, 2)


def test_what_was_loaded_is_emptied_at_the_end() -> None:
    body = json.dumps({"a": [[0.5] * 1000] * 500, "b": {str(number): 1 for number in range(50_000)}}).encode()
    with freed_in_pieces():
        value = load_json(body)
        rows, named = value["a"], value["b"]
        assert to_array(rows, np.dtype(np.float32)).sum() == 250_000
        assert len(named) == 50_000
    assert len(rows) + len(named) < 20_000  # what its first pieces held may stay
    with freed_in_pieces():
        assert load_json(b"[[1],2]") == [[1], 2]


def test_deep_lists_are_emptied_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    body = b"[" * 99 + b"1," * PIECE_BYTES * 2 + b"1" + b"]" * 99
    with freed_in_pieces():
        load_json(body)
        monkeypatch.setattr("servekit.codecs.pieces.time.sleep", pauses.append)
    assert 2 <= len(pauses) < 10


def test_large_arrays_are_written_as_numpys_lists_are() -> None:
    for array in (
        np.linspace(0, 1, 200_000, dtype=np.float32),
        np.arange(300_000).reshape(3, 100, 1000),
        np.zeros((200_000, 0)),
        np.zeros((0, 200_000)),
        np.array([[1.0, np.nan]] * 50_000),
    ):
        text = dump_json({"outputs": [{"data": array}, {"data": array[:2]}]})
        first, second = (np.array(each["data"], array.dtype) for each in json.loads(text)["outputs"])
        assert first.reshape(array.shape).tobytes() == array.tobytes()
        assert second.reshape(array[:2].shape).tobytes() == array[:2].tobytes()
