"""The codec of the Open Inference Protocol: requests into Tensors and Tensors into answers, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest

from servekit.codecs.datatypes import pack
from servekit.codecs.open_inference import InferRequest, Parameters, RequestedOutput, read_request
from servekit.codecs.open_inference_answers import write_response
from servekit.errors import InvalidInput
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

A = TensorSpec("a", "float32", (-1, 2))
B = TensorSpec("b", "int64", (-1,))
OUT = TensorSpec("out", "float32", (-1, 3))
ONE = Signature((A,), (OUT,))
TWO = Signature((A, B), (OUT, B))
IMAGE = Signature((TensorSpec("image", "float32", (-1, 1, 2, 2)),), (OUT,), frozenset(("image",)))
PLAIN = Signature((A,), (OUT,), is_batched=False)
TENSOR = {"name": "a", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}


def read(value: Any, signature: Signature = ONE, binary: bytes = b"", header: str | None = None) -> InferRequest:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    if binary:
        header = str(len(body))
    return read_request(body + binary, header, "m", signature)


def one(**members: Any) -> dict[str, Any]:
    """Return a request with one input that differs from TENSOR in some members; None leaves one out."""
    tensor = {name: value for name, value in (TENSOR | members).items() if value is not None}
    return {"inputs": [tensor]}


def binary(size: Any = 16, **members: Any) -> dict[str, Any]:
    return one(data=None, parameters={"binary_data_size": size}, **members)


def refusal(value: Any, signature: Signature = ONE, content: bytes = b"", header: str | None = None) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(value, signature, content, header)
    return str(caught.value)


@pytest.mark.parametrize("data", [[1, 2, 3, 4], [[1, 2], [3, 4]], [1.0, 2, 3.0, 4]])
def test_json_is_flat_or_nested(data: Any) -> None:
    request = read(one(data=data))
    assert request.tensors["a"].tolist() == [[1, 2], [3, 4]] and request.tensors["a"].dtype == np.float32
    assert request.outputs == [] and request.parameters == Parameters() and request.id == ""


@pytest.mark.parametrize(
    ("dtype", "datatype", "data", "held"),
    [
        ("bool", "BOOL", [True, False], "bool"),
        ("uint8", "UINT8", [0, 255], "uint8"),
        ("uint16", "UINT16", [0, 65535], "uint16"),
        ("uint32", "UINT32", [0, 2**32 - 1], "uint32"),
        ("uint64", "UINT64", [0, 2**64 - 1], "uint64"),
        ("int8", "INT8", [-128, 127], "int8"),
        ("int16", "INT16", [-(2**15), 2**15 - 1], "int16"),
        ("int32", "INT32", [-(2**31), 2**31 - 1], "int32"),
        ("int64", "INT64", [-(2**63), 2**63 - 1], "int64"),
        ("float16", "FP16", [0.5, -2.0], "float16"),
        ("float32", "FP32", [0.5, -2.0], "float32"),
        ("float64", "FP64", [0.1, -2e300], "float64"),
        ("bfloat16", "BF16", [0.5, -2.0], "float32"),
        ("bytes", "BYTES", ["text", "é"], "object"),
    ],
)
def test_every_datatype_comes_and_goes_as_json_and_binary(dtype: str, datatype: str, data: Any, held: str) -> None:
    signature = Signature((TensorSpec("x", dtype, (-1, 2)),), (TensorSpec("x", dtype, (-1, 2)),))
    given = {"name": "x", "shape": [1, 2], "datatype": datatype}
    array = read({"inputs": [given | {"data": data}]}, signature).tensors["x"]
    assert array.dtype == held and array.shape == (1, 2)
    content = bytes(pack(array, datatype))
    sent = {"inputs": [given | {"parameters": {"binary_data_size": len(content)}}]}
    again = read(sent, signature, content)
    assert np.array_equal(again.tensors["x"], array)
    body, length = write_response({"x": array}, again, "m", "1", signature)
    answer = json.loads(body)
    assert length is None and answer["outputs"] == [given | {"data": data}]
    wanted = InferRequest({}, [RequestedOutput("x", is_binary=True)])
    body, length = write_response({"x": array}, wanted, "m", "1", signature)
    assert body[length:] == content
    assert json.loads(body[:length])["outputs"] == [given | {"parameters": {"binary_data_size": len(content)}}]


def test_binary_and_json_inputs_mix_in_their_order() -> None:
    a = np.array([[1, 2]], "<f4")
    b = {"name": "b", "shape": [1], "datatype": "INT64"}
    first = TENSOR | {"shape": [1, 2], "parameters": {"binary_data_size": 8}}
    del first["data"]
    request = read({"inputs": [b | {"data": [7]}, first]}, TWO, a.tobytes())
    assert request.tensors["a"].tolist() == [[1, 2]] and request.tensors["b"].tolist() == [7]
    second = b | {"parameters": {"binary_data_size": 8}}
    both = read({"inputs": [second, first]}, TWO, np.array([9], "<i8").tobytes() + a.tobytes())
    assert both.tensors["a"].tolist() == [[1, 2]] and both.tensors["b"].tolist() == [9]


def test_the_header_may_say_that_all_is_json() -> None:
    body = json.dumps(one()).encode()
    assert read(body, header=str(len(body))).tensors["a"].shape == (2, 2)


def test_constants_that_are_no_numbers_come_and_go() -> None:
    request = read(b'{"inputs": [{"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [NaN, -Infinity]}]}')
    array = request.tensors["a"]
    assert np.isnan(array[0, 0]) and array[0, 1] == -np.inf
    assert b'"data":[NaN,-Infinity]' in write_response({"out": array}, request, "m", "1", ONE)[0]


def test_encoded_rows_come_as_bytes() -> None:
    given = {"name": "image", "datatype": "BYTES"}
    for shape in ([2], [2, 1]):
        content = bytes(pack(bytes_tensor([b"\x89PNG", b""]), "BYTES"))
        sent = {"inputs": [given | {"shape": shape, "parameters": {"binary_data_size": len(content)}}]}
        assert read(sent, IMAGE, content).tensors["image"].tolist() == [b"\x89PNG", b""]
    texts = {"shape": [1], "data": ["iVBORw=="], "parameters": {"content_type": "base64"}}
    assert read({"inputs": [given | texts]}, IMAGE).tensors["image"].tolist() == [b"\x89PNG"]
    single = Signature(IMAGE.inputs, IMAGE.outputs, IMAGE.encoded, is_batched=False)
    assert read({"inputs": [given | texts]}, single).tensors["image"].shape == (1,)
    assert "Expected [1], got [2]" in refusal({"inputs": [given | texts | {"shape": [2]}]}, single)
    assert "base64" in refusal({"inputs": [given | texts | {"data": ["%"]}]}, IMAGE)
    assert "Expected [-1,1]" in refusal({"inputs": [given | texts | {"shape": [1, 2]}]}, IMAGE)
    assert "must be <= 1000" in refusal({"inputs": [given | texts | {"shape": [1001]}]}, IMAGE)


def test_a_model_without_rows_takes_and_gives_none() -> None:
    request = read(one(shape=[2], data=[1, 2]), PLAIN)
    assert request.tensors["a"].tolist() == [[1, 2]]
    body, _ = write_response({"out": np.ones((1, 3), np.float32)}, request, "m", "1", PLAIN)
    assert json.loads(body)["outputs"][0]["shape"] == [3]
    assert refusal(one(shape=[1, 2], data=[1, 2]), PLAIN).endswith("Expected [2], got [1,2].")
    chosen = InferRequest({}, [RequestedOutput("out", classes=2)])
    body, _ = write_response({"out": np.array([[1, 3, 2]], np.float32)}, chosen, "m", "1", PLAIN)
    assert json.loads(body)["outputs"][0]["data"] == ["3.000000:1", "2.000000:2"]


def test_a_raw_request_is_its_only_input() -> None:
    request = read(np.array([1, 2], "<f4").tobytes(), header="0")
    assert request.tensors["a"].tolist() == [[1, 2]] and request.parameters.is_binary
    open_one = Signature((TensorSpec("a", "float32", (-1, -1, 2)),), (OUT,))
    assert read(np.zeros(6, "<f4").tobytes(), open_one, header="0").tensors["a"].shape == (1, 3, 2)
    text = Signature((TensorSpec("t", "bytes", (-1, 1)),), (OUT,))
    assert read(b"any \xff bytes", text, header="0").tensors["t"].tolist() == [[b"any \xff bytes"]]
    assert "Expected 8, got 7" in refusal(b"1234567", header="0")
    assert "must only have 1 input" in refusal(b"", TWO, header="0")
    twice_open = Signature((TensorSpec("a", "float32", (-1, -1, -1)),), (OUT,))
    assert "more than one variable-sized dimension" in refusal(b"1234", twice_open, header="0")
    many = Signature((TensorSpec("t", "bytes", (-1, 2)),), (OUT,))
    assert "must have input shape [1]" in refusal(b"", many, header="0")


def test_parameters() -> None:
    given = {"timeout": 1500, "priority": 3, "binary_data_output": True, "who": "me", "weight": 0.5, "sequence_id": 0}
    assert read({**one(), "parameters": given}).parameters == Parameters(0.0015, True)
    wrong: dict[str, Any] = {
        "timeout": -1, "priority": 1.5, "binary_data_output": 1, "sequence_start": "yes", "sequence_id": [], "who": {},
        "triton_x": 1, "sequence_end": True,
    }  # fmt: skip
    for name, value in wrong.items():
        assert refusal({**one(), "parameters": {name: value}})
    for sequence in (7, "seven", -1, 2**64, 1.5, True):
        assert "sequence" in refusal({**one(), "parameters": {"sequence_id": sequence}})
    assert "must be an object" in refusal({**one(), "parameters": []})


def test_outputs_are_answered_in_the_order_in_which_they_are_asked_for() -> None:
    asked = [{"name": "b", "parameters": {"binary_data": True}}, {"name": "out"}]
    request = read({**two(), "outputs": asked, "id": "x"}, TWO)
    tensors = {"out": np.zeros((1, 3), np.float32), "b": np.array([5]), "more": np.array([1])}
    body, length = write_response(tensors, request, "m", "2", TWO)
    answer = json.loads(body[:length])
    assert list(answer) == ["id", "model_name", "model_version", "outputs"] and answer["model_version"] == "2"
    assert [output["name"] for output in answer["outputs"]] == ["b", "out"]
    assert body[length:] == np.array([5], "<i8").tobytes()
    body, _ = write_response(tensors, read(two(), TWO), "m", "2", TWO)
    assert [output["name"] for output in json.loads(body)["outputs"]] == ["out", "b", "more"]


def test_what_is_asked_for_must_be_there() -> None:
    assert refusal({**one(), "outputs": [{"name": "out"}] * 2}) == "output 'out' already exists in request"
    assert "unexpected inference output 'x'" in refusal({**one(), "outputs": [{"name": "x"}]})
    for wrong in ({}, [1], [{}], [{"name": 1}], [{"name": "out", "parameters": 1}]):
        assert refusal({**one(), "outputs": wrong})
    for name, value in (("binary_data", 1), ("classification", -1), ("classification", "2"), ("shared_memory_region", "r")):
        assert refusal({**one(), "outputs": [{"name": "out", "parameters": {name: value}}]})
    with pytest.raises(InvalidInput, match="no output 'out'"):
        write_response({}, InferRequest({}, [RequestedOutput("out")]), "m", "1", ONE)


def test_classes_are_the_largest_values_with_index_and_label() -> None:
    labelled = Signature((A,), (OUT,), labels={"out": ("cat", "dog")})
    array = np.array([[0.5, 3.3, 2.0], [1.0, 1.0, 9.0]], np.float32)
    body, length = write_response({"out": array}, InferRequest({}, [RequestedOutput("out", classes=2)]), "m", "1", labelled)
    [output] = json.loads(body)["outputs"]
    assert (output["datatype"], output["shape"], length) == ("BYTES", [2, 2], None)
    assert output["data"] == ["3.300000:1:dog", "2.000000:2", "9.000000:2", "1.000000:0:cat"]
    whole = write_response({"b": np.array([4, 5])}, InferRequest({}, [RequestedOutput("b", classes=3)]), "m", "1", TWO)[0]
    assert json.loads(whole)["outputs"][0]["data"] == ["4:0", "5:0"]
    for odd in (np.array([[True]]), bytes_tensor([b"a"]), np.zeros((1, 1_000_001), np.int8)):
        with pytest.raises(InvalidInput, match="class"):
            write_response({"out": odd}, InferRequest({}, [RequestedOutput("out", classes=1)]), "m", "1", ONE)


def test_bytes_that_are_no_text_are_not_written_as_json() -> None:
    tensors = {"out": bytes_tensor([b"\xff"])}
    with pytest.raises(InvalidInput, match="binary_data"):
        write_response(tensors, InferRequest({}), "m", "1", ONE)
    body, length = write_response(tensors, InferRequest({}, parameters=Parameters(is_binary=True)), "m", "1", ONE)
    assert body[length:] == b"\x01\x00\x00\x00\xff"


def two() -> dict[str, Any]:
    b = {"name": "b", "shape": [1], "datatype": "INT64", "data": [1]}
    return {"inputs": [TENSOR | {"shape": [1, 2], "data": [1, 2]}, b]}


def test_inputs_must_be_those_of_the_model() -> None:
    assert refusal(one(), TWO) == (
        "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['a'], but missing required input(s) ['b']."
        " Please provide all required input(s)."
    )
    extra = {"inputs": [TENSOR, TENSOR | {"name": "c"}]}
    assert refusal(extra) == "unexpected inference input 'c' for model 'm'"
    assert refusal({"inputs": [TENSOR, TENSOR]}) == "input 'a' already exists in request"
    assert refusal(one(datatype="INT32")) == "inference input 'a' data-type is 'INT32', but model 'm' expects 'FP32'"
    assert "unknown datatype" in refusal(one(datatype="FLOAT"))
    assert "Expected [-1,2], got [2,3]. NOTE: Setting a non-zero max_batch_size" in refusal(one(shape=[2, 3]))
    rows = two()
    rows["inputs"][1] |= {"shape": [2], "data": [1, 2]}
    assert refusal(rows, TWO) == "input 'b' batch size does not match other inputs for 'm'"
    few = Signature((A,), (OUT,), max_rows=1)
    assert refusal(one(), few) == "inference request batch-size must be <= 1 for 'm'"
    assert "must be >= 1" in refusal(one(shape=[0, 2], data=[]))


LIES: dict[str, Any] = {
    "no object": [],
    "no inputs": {},
    "inputs that are no list": {"inputs": {}},
    "no input at all": {"inputs": []},
    "an input that is no object": {"inputs": [1]},
    "no name": one(name=None),
    "a number for a name": one(name=1),
    "no datatype": one(datatype=None),
    "no data": one(data=None),
    "data and a size": one(parameters={"binary_data_size": 16}),
    "shared memory": one(data=None, parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
    "parameters that are no object": one(parameters=[1]),
    "no shape": one(shape=None),
    "a shape that is no list": one(shape=4),
    "true for a size": one(shape=[True, 2], data=[1, 2]),
    "text for a size": one(shape=["2", 2]),
    "a fraction for a size": one(shape=[2.0, 2]),
    "a negative size": one(shape=[-1, 2]),
    "a size of 2^62": one(shape=[2**62, 2]),
    "a size of 2^63": one(shape=[2**63, 2]),
    "a size of 1e30": one(shape=[1e30, 2]),
    "sizes whose product is beyond all numbers": one(shape=[2**30, 2]),
    "a hundred thousand axes": one(shape=[1] * 100_000),
    "fewer values than the shape says": one(data=[1, 2, 3]),
    "more values than the shape says": one(data=[1, 2, 3, 4, 5]),
    "uneven lists": one(data=[[1, 2], [3]]),
    "text for numbers": one(data=["1", "2", "3", "4"]),
    "true for numbers": one(data=[True, 2, 3, 4]),
    "null for numbers": one(data=[None, 2, 3, 4]),
    "objects for numbers": one(data=[{}, 2, 3, 4]),
    "a number that is too large": one(data=[1e39, 2, 3, 4]),
    "data that are no list": one(data=1),
    "data that are an object": one(data={"a": 1}),
    "a number for an id": {**one(), "id": 7},
    "half a character for an id": {**one(), "id": "\ud800"},
    "a number that no float can hold": one(data=[10**400, 2, 3, 4]),
    "a hundred thousand outputs": {**one(), "outputs": [{"name": "out"}] * 100_000},
    "lists nested 120 deep": ("[" * 120 + "]" * 120).encode(),
    "lists nested 250000 deep": ("[" * 250_000 + "]" * 250_000).encode(),
    "data nested 120 deep": json.dumps(one(data=0)).replace('"data": 0', '"data": ' + "[" * 120 + "]" * 120).encode(),
    "objects nested 120 deep": b'{"a":' * 120 + b"1" + b"}" * 120,
    "no JSON": b"\x00\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_in_json_are_refused(lie: str) -> None:
    sentence = refusal(LIES[lie])
    assert 0 < len(sentence) < 700 and "Traceback" not in sentence


@pytest.mark.parametrize(
    ("request_", "content"),
    [
        (binary(8), bytes(16)),
        (binary(16), bytes(15)),
        (binary(16), bytes(17)),
        (binary(0), bytes(16)),
        (binary(-1), bytes(16)),
        (binary("16"), bytes(16)),
        (binary(16.0), bytes(16)),
        (binary(True), bytes(1)),
        (binary(2**64), bytes(16)),
        (binary(2**63), bytes(16)),
        (binary(15), bytes(15)),
        (binary(16, shape=[2**30, 2]), bytes(16)),
        (binary(16, shape=[3, 2]), bytes(16)),
        (binary(16, datatype="INT32"), bytes(16)),
        (binary(16, shape=[2**20, 0]), bytes(16)),
    ],
)
def test_lies_about_binary_sizes_are_refused(request_: Any, content: bytes) -> None:
    assert refusal(request_, content=content)


def test_rows_without_elements_are_few() -> None:
    hollow = Signature((TensorSpec("a", "float32", (-1, -1)),), (OUT,))
    assert read(one(shape=[3, 0], data=[]), hollow).tensors["a"].shape == (3, 0)
    assert "byte size overflow" in refusal(one(shape=[2**30, 0], data=[]), hollow)


@pytest.mark.parametrize("content", [b"\xff\xff\xff\xff", b"\x05\x00\x00\x00abc", b"\x00\x00\x00\x00\x00", b"ab"])
def test_lies_about_the_length_of_bytes_are_refused(content: bytes) -> None:
    text = Signature((TensorSpec("a", "bytes", (-1,)),), (OUT,))
    sent = binary(len(content), shape=[1], datatype="BYTES")
    assert "unexpected number of string elements" in refusal(sent, text, content)


@pytest.mark.parametrize("header", ["-1", "99999999999999999999", "1.5", "abc", "", " 5", "+5", "5,5", "٣", "100000", "0x10"])
def test_lies_about_the_length_of_the_json_are_refused(header: str) -> None:
    assert "Inference-Header-Content-Length" in refusal(one(), header=header)


def test_names_cannot_disturb_who_reads_the_message() -> None:
    for name in ("\x1b[31m", "a\nb", "<script>", "x" * 1000):
        assert "'?'" in refusal({"inputs": [TENSOR, TENSOR | {"name": name}]})
