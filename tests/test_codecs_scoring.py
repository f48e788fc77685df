"""What SageMaker and MLflow send to /invocations, and which content type an answer gets."""

import json
from typing import Any

import numpy as np
import pytest

from servekit.codecs.scoring import CSV, JSON, JSON_LINES, NPY, choose, read, write
from servekit.errors import InvalidInput, NotAcceptable, UnsupportedMediaType
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

Y = TensorSpec("y", "float32", (-1,))
ONE = Signature((TensorSpec("x", "float32", (-1, 2)),), (Y,))
TWO = Signature((TensorSpec("a", "float32", (-1,)), TensorSpec("b", "int64", (-1,))), (Y,))
TEXT = Signature((TensorSpec("t", "bytes", (-1,)),), (Y,))
PICTURE = Signature((TensorSpec("image", "float32", (-1, 1, 2, 2)),), (Y,), frozenset(("image",)))


def sent(value: Any, signature: Signature) -> dict[str, list[Any]]:
    scored = read(json.dumps(value).encode(), JSON, signature)
    assert scored.is_wrapped == isinstance(value, dict)
    return {name: array.tolist() for name, array in scored.tensors.items()}


@pytest.mark.parametrize(
    "value",
    [
        [[1, 2], [3, 4]],
        [{"x": [1, 2]}, {"x": [3, 4]}],
        {"instances": [[1, 2], [3, 4]]},
        {"instances": [{"x": [1, 2]}, {"x": [3, 4]}], "params": {"any": 1}},
        {"inputs": [[1, 2], [3, 4]]},
        {"inputs": {"x": [[1, 2], [3, 4]]}},
        {"dataframe_split": {"columns": ["p", "q"], "index": [0, 1], "data": [[1, 2], [3, 4]]}},
        {"dataframe_split": {"data": [[1, 2], [3, 4]]}},
        {"dataframe_split": {"columns": ["x"], "data": [[[1, 2]], [[3, 4]]]}},
        {"dataframe_records": [{"p": 1, "q": 2}, {"q": 4, "p": 3}]},
        {"dataframe_records": [{"x": [1, 2]}, {"x": [3, 4]}], "params": None},
    ],
)
def test_every_form_of_json_holds_the_same_rows(value: Any) -> None:
    assert sent(value, ONE) == {"x": [[1, 2], [3, 4]]}


def test_columns_find_the_inputs_by_name() -> None:
    assert sent({"dataframe_split": {"columns": ["b", "a"], "data": [[1, 2.5]]}}, TWO) == {"a": [2.5], "b": [1]}
    assert sent({"dataframe_records": [{"b": 1.0, "a": 2}]}, TWO) == {"a": [2], "b": [1]}
    assert sent({"dataframe_split": {"columns": ["p", "q"], "data": [[2.5, 1]]}}, TWO) == {"a": [2.5], "b": [1]}
    assert sent({"dataframe_records": [{"t": "é"}]}, TEXT) == {"t": ["é".encode()]}


@pytest.mark.parametrize(
    "value",
    [
        5,
        None,
        {},
        [],
        {"instances": [[1, 2]], "inputs": [[1, 2]]},
        {"instances": 5},
        {"instances": []},
        {"dataframe_split": []},
        {"dataframe_split": {"columns": ["p", "q"]}},
        {"dataframe_split": {"columns": ["p", "q"], "data": []}},
        {"dataframe_split": {"columns": ["p", "p"], "data": [[1, 2]]}},
        {"dataframe_split": {"columns": "pq", "data": [[1, 2]]}},
        {"dataframe_split": {"columns": ["p", "q"], "data": [[1, 2], [3]]}},
        {"dataframe_split": {"columns": ["p", "q"], "data": [1, 2]}},
        {"dataframe_split": {"columns": ["p", "q", "r"], "data": [[1, 2, 3]]}},
        {"dataframe_split": {"columns": ["p", "q"], "data": [["1", "2"]]}},
        {"dataframe_split": {"columns": ["p", "q"], "data": [[[1], [2]]]}},
        {"dataframe_records": {}},
        {"dataframe_records": []},
        {"dataframe_records": [1]},
        {"dataframe_records": [{"p": 1, "q": 2}, {"p": 3}]},
    ],
)
def test_json_that_holds_no_rows_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        read(json.dumps(value).encode(), JSON, ONE)


def test_a_frame_of_text_must_name_the_inputs() -> None:
    with pytest.raises(InvalidInput, match="must be called as the inputs of the model are: t"):
        read(b'{"dataframe_records": [{"p": "a"}]}', JSON, TEXT)


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b"[" * 101 + b"]" * 101, b'{"instances":' * 101 + b"1" + b"}" * 101, b"\xff", b"{"]
)
def test_json_that_is_none_or_too_deep_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(body, JSON, ONE)


def test_an_image_is_a_row() -> None:
    for kind in ("image/png", "image/jpeg", "application/x-image"):
        scored = read(b"\x89PNG", kind, PICTURE)
        assert (scored.tensors["image"].tolist(), scored.is_wrapped) == ([b"\x89PNG"], True)
    with pytest.raises(UnsupportedMediaType, match="takes no image"):
        read(b"\x89PNG", "image/png", ONE)
    assert read(b"1,2,3,4\n", CSV, PICTURE).tensors["image"].shape == (1, 1, 2, 2)


@pytest.mark.parametrize("kind", ["text/csv", "text/csv; charset=utf-8", 'TEXT/CSV;charset="UTF-8"', "text/csv; label_size=0"])
def test_a_content_type_may_have_parameters(kind: str) -> None:
    assert read(b"1,2\n", kind, ONE).tensors["x"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "text/csv; charset=latin-1", "application/x-npz", "application/octet-stream", "application/x-pickle"],
)
def test_other_content_types_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        read(b"1,2\n", kind, ONE)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", CSV),
        ("*/*", CSV),
        ("application/*", JSON),
        ("text/*", CSV),
        ("application/json", JSON),
        ("application/json; verbose=true", JSON),
        ("text/html, application/x-npy", NPY),
        ("application/json;q=0.2, application/jsonlines;q=0.9", JSON_LINES),
        ("text/html, */*;q=0.1", CSV),
        ("text/csv;q=0, */*", JSON),
        ("application/json, text/csv", JSON),
        ("image/png;q=x, application/json", JSON),
    ],
)
def test_the_answer_is_what_the_client_wants_most(accept: str, chosen: str) -> None:
    assert choose(accept, CSV) == chosen


@pytest.mark.parametrize(
    "accept",
    ["text/html", "application/x-npz", "application/json;q=0", "text/html," * 60 + "text/csv", "*/*;q=0"],
)
def test_what_the_client_does_not_take_is_not_sent(accept: str) -> None:
    with pytest.raises(NotAcceptable, match="accept one of: application/json, text/csv"):
        choose(accept, JSON)


def test_predictions_are_written_in_every_form() -> None:
    tensors = {"y": np.array([1.5, 2], np.float32)}
    assert write(tensors, ONE, JSON, is_wrapped=False) == b"[1.5,2.0]"
    assert write(tensors, ONE, JSON, is_wrapped=True) == b'{"predictions":[1.5,2.0]}'
    assert write(tensors, ONE, CSV, is_wrapped=True) == b"1.5\n2.0\n"
    assert write(tensors, ONE, JSON_LINES, is_wrapped=True) == b"1.5\n2.0\n"
    assert write(tensors, ONE, NPY, is_wrapped=True)[:6] == b"\x93NUMPY"
    assert write({"t": bytes_tensor([b"a"])}, TEXT, JSON, is_wrapped=False) == b'["a"]'
