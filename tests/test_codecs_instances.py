"""Rows and columns of JSON: one parser for TensorFlow Serving, KServe V1, Vertex and MLflow."""

import base64
import json
from typing import Any

import numpy as np
import pytest

from servekit.codecs.arrays import dump_json
from servekit.codecs.instances import columns_of, outputs_of, predictions_of, rows_of
from servekit.errors import InvalidInput
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

IMAGE = Signature((TensorSpec("image", "float32", (-1, 1, 2, 3)),), (), frozenset(("image",)))
NUMBER = Signature((TensorSpec("value", "float32", (-1, 1)),), ())
PAIR = Signature((TensorSpec("a", "int32", (-1, 2)), TensorSpec("b", "float32", (-1,))), ())
WORDS = Signature((TensorSpec("words", "bytes", (-1, -1)),), ())
FILES = Signature((TensorSpec("file", "bytes", (-1, 1)),), (), frozenset(("file",)))
PIXELS = [[1, 2, 3], [4, 5, 6]]


def b64(content: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(content).decode()}


def refusal(function: Any, *arguments: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        function(*arguments)
    return str(caught.value)


def test_rows_of_one_input_are_values_or_objects() -> None:
    for instances in ([[PIXELS], [PIXELS]], [{"image": [PIXELS]}, {"image": [PIXELS]}]):
        tensors = rows_of(instances, IMAGE)
        assert list(tensors) == ["image"] and tensors["image"].dtype == np.float32
        assert tensors["image"].tolist() == [[PIXELS], [PIXELS]]


def test_rows_of_several_inputs_are_objects() -> None:
    tensors = rows_of([{"b": 0.5, "a": [1, 2]}, {"a": [3, 4], "b": 1}], PAIR)
    assert list(tensors) == ["a", "b"]
    assert tensors["a"].tolist() == [[1, 2], [3, 4]] and tensors["b"].tolist() == [0.5, 1.0]


def test_columns_hold_all_rows() -> None:
    assert columns_of([[1.5], [2]], NUMBER)["value"].tolist() == [[1.5], [2]]
    assert columns_of({"value": [[1.5], [2]]}, NUMBER)["value"].tolist() == [[1.5], [2]]
    tensors = columns_of({"a": [[1, 2], [3, 4]], "b": [0.5, 1]}, PAIR)
    assert tensors["a"].shape == (2, 2) and tensors["b"].tolist() == [0.5, 1.0]


def test_axes_of_size_one_may_be_missing_or_there_in_addition() -> None:
    assert rows_of([PIXELS], IMAGE)["image"].shape == (1, 1, 2, 3)
    assert rows_of([[[PIXELS]]], IMAGE)["image"].shape == (1, 1, 2, 3)
    assert rows_of([5, 6.5], NUMBER)["value"].tolist() == [[5], [6.5]]
    assert columns_of({"a": [[1, 2]], "b": [[1.0]]}, PAIR)["b"].tolist() == [1.0]


def test_bytes_travel_as_base64_objects_and_text_as_text() -> None:
    assert rows_of([["a", b64(b"\xff")], ["ä", ""]], WORDS)["words"].tolist() == [[b"a", b"\xff"], ["ä".encode(), b""]]
    assert columns_of({"words": [["a"], [b64(b"b")]]}, WORDS)["words"].tolist() == [[b"a"], [b"b"]]
    assert rows_of([{"words": [b64(b"x")]}], WORDS)["words"].tolist() == [[b"x"]]


def test_encoded_inputs_come_as_bytes_a_row() -> None:
    one, two = b64(b"PNG1"), b64(b"PNG2")
    for instances in ([one, two], [{"image": one}, {"image": two}], [[one], [two]]):
        tensor = rows_of(instances, IMAGE)["image"]
        assert tensor.dtype == object and tensor.tolist() == [b"PNG1", b"PNG2"]
    assert columns_of({"image": [b64(b"PNG")]}, IMAGE)["image"].tolist() == [b"PNG"]
    assert rows_of([b64(b"raw")], FILES)["file"].tolist() == [[b"raw"]]


@pytest.mark.parametrize("signature", [IMAGE, FILES])
@pytest.mark.parametrize("value", ["iVBORw0KGgo=", {"b64": 5}, {"b64": "no base64!"}, [b64(b"x"), "text"]])
def test_encoded_inputs_are_no_text(signature: Signature, value: Any) -> None:
    sentence = refusal(rows_of, [value], signature)
    assert '{"b64": "<base64>"}' in sentence and signature.inputs[0].name in sentence and "iVBOR" not in sentence


def test_pictures_and_pixels_do_not_mix() -> None:
    refusal(rows_of, [b64(b"PNG"), [PIXELS]], IMAGE)
    refusal(rows_of, [[PIXELS], b64(b"PNG")], IMAGE)


def test_what_is_wrong_with_names_is_said() -> None:
    assert refusal(rows_of, [{"a": [1, 2], "b": 1, "c": 3}], PAIR) == "The model has no input called c; it takes: a, b."
    assert refusal(columns_of, {"a": [[1, 2]]}, PAIR) == "There is no value for b; the model takes: a, b."
    assert refusal(rows_of, [{"a": [1, 2], "b": 1}, {"a": [1, 2]}], PAIR).startswith("There is no value for b")
    assert "each instance must be an object with: a, b" in refusal(rows_of, [1], PAIR)
    assert "the value must be an object with: a, b" in refusal(columns_of, [[1]], PAIR)
    assert "all in one form" in refusal(rows_of, [{"value": 5}, 5], NUMBER)
    assert "no input called \\x1b[31m" in refusal(columns_of, {"\x1b[31m" + "x" * 5000: 1}, NUMBER)
    assert len(refusal(columns_of, {str(number) * 100: 1 for number in range(5000)}, NUMBER)) < 500


def test_what_is_wrong_with_shapes_is_said() -> None:
    assert "Its shape must be [-1, 1, 2, 3], where -1 is any size, and it is [1, 3, 2]" in refusal(
        rows_of, [[[1, 2], [3, 4], [5, 6]]], IMAGE
    )
    assert "uneven" in refusal(rows_of, [[1], [1, 2]], NUMBER)
    assert "uneven" in refusal(rows_of, [1, [1]], NUMBER)
    assert refusal(columns_of, {"a": [[1, 2], [3, 4]], "b": [1]}, PAIR) == (
        "The inputs must have the same number of rows, and a has 2, b has 1."
    )
    assert "must be numbers" in refusal(rows_of, ["5"], NUMBER)
    for value in (5, {}, "x", None, True):
        assert "must be a list" in refusal(rows_of, value, NUMBER)
        refusal(columns_of, value, NUMBER)
    assert "no instances" in refusal(rows_of, [], NUMBER)
    assert "no rows" in refusal(columns_of, [], Signature((TensorSpec("x", "float32", (-1,)),), ()))


def test_a_model_may_bound_the_rows_of_a_request() -> None:
    bounded = Signature(NUMBER.inputs, (), max_rows=2)
    assert len(rows_of([1, 2], bounded)["value"]) == 2
    assert "takes 2 rows at most" in refusal(rows_of, [1, 2, 3], bounded)


def test_whole_floats_are_integers_where_the_contract_says_so() -> None:
    refusal(rows_of, [{"a": [1.0, 2.0], "b": 1}], PAIR)
    assert rows_of([{"a": [1.0, 2.0], "b": 1}], PAIR, takes_whole_floats=True)["a"].tolist() == [[1, 2]]
    assert columns_of({"a": [[1.0, 2]], "b": [1]}, PAIR, takes_whole_floats=True)["a"].dtype == np.int32


def test_models_that_are_not_batched_take_one_row_with_or_without_its_axis() -> None:
    grid = Signature((TensorSpec("x", "float32", (-1, 2, 3)),), (TensorSpec("y", "float32", (-1, 2)),), is_batched=False)
    for parse, value in ((columns_of, PIXELS), (columns_of, [PIXELS]), (rows_of, [PIXELS]), (rows_of, [{"x": PIXELS}])):
        assert parse(value, grid)["x"].shape == (1, 2, 3)
    assert "Its shape must be [2, 3]" in refusal(rows_of, [PIXELS, PIXELS], grid)
    answer = {"y": np.array([[1.5, 2.5]], np.float32)}
    assert dump_json(outputs_of(answer, grid)) == b"[1.5,2.5]"
    assert dump_json(predictions_of(answer, grid)) == b"[[1.5,2.5]]"
    scalar = Signature((TensorSpec("x", "int64", (-1,)),), (), is_batched=False)
    assert columns_of(5, scalar)["x"].tolist() == rows_of([5], scalar)["x"].tolist() == [5]


def test_variable_axes_keep_the_size_that_is_given() -> None:
    signature = Signature((TensorSpec("x", "float32", (-1, -1, 2)),), ())
    assert rows_of([[[1, 2]], [[3, 4]]], signature)["x"].shape == (2, 1, 2)
    assert rows_of([[[1, 2], [3, 4], [5, 6]]], signature)["x"].shape == (1, 3, 2)
    refusal(rows_of, [[1, 2]], signature)


def test_one_output_is_bare_and_several_are_objects() -> None:
    signature = Signature((), (TensorSpec("p", "float32", (-1, 2)), TensorSpec("c", "int64", (-1,))))
    p, c = np.array([[0.1, 0.9], [1, 0]], np.float32), np.array([1, 0])
    assert dump_json(predictions_of({"p": p}, signature)) == b"[[0.1,0.9],[1.0,0.0]]"
    assert json.loads(dump_json(predictions_of({"c": c, "more": c, "p": p}, signature))) == [
        {"p": [0.1, 0.9], "c": 1, "more": 1},
        {"p": [1.0, 0.0], "c": 0, "more": 0},
    ]
    assert list(outputs_of({"c": c, "more": c, "p": p}, signature)) == ["p", "c", "more"]
    assert dump_json(outputs_of({"c": c}, signature)) == b"[1,0]"
    assert dump_json(outputs_of({"p": p[:, ::-1]}, signature)) == b"[[0.9,0.1],[0.0,1.0]]"


def test_outputs_of_bytes_are_text_unless_their_name_or_their_content_says_otherwise() -> None:
    signature = Signature((), ())
    words = np.array([[b"a", "ä".encode()], [b"\xff", b""]], object)
    assert predictions_of({"word": words}, signature) == [["a", "ä"], [b64(b"\xff"), ""]]
    assert outputs_of({"image_bytes": bytes_tensor([b"a", b"b"])}, signature) == [b64(b"a"), b64(b"b")]
    assert predictions_of({"x": bytes_tensor(["text"])}, signature) == ["text"]  # type: ignore[list-item]


def test_outputs_without_common_rows_are_columns_only() -> None:
    tensors = {"a": np.zeros(2), "b": np.zeros(3)}
    assert "different numbers of rows" in refusal(predictions_of, tensors, Signature((), ()))
    assert dump_json(outputs_of(tensors, Signature((), ()))) == b'{"a":[0.0,0.0],"b":[0.0,0.0,0.0]}'


def test_encoded_rows_are_bounded() -> None:
    signature = Signature((TensorSpec("image", "float32", (-1, 2)),), (), encoded=frozenset({"image"}))
    item = {"b64": "AA=="}
    assert len(rows_of([item] * 1000, signature)["image"]) == 1000
    assert "At most 1000 encoded rows" in refusal(rows_of, [item] * 1001, signature)
    assert "At most 1000 encoded rows" in refusal(columns_of, [item] * 1001, signature)
