"""Tensors in the dress of a contract: what fits a signature is read as it was meant, and no bytes do harm."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from servekit.codecs import swagger
from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.datatypes import BF16, BYTES, DTYPES, datatype_of, pack, unpack
from servekit.codecs.instances import columns_of, outputs_of, predictions_of, rows_of, zero_row, zeros_of
from servekit.codecs.open_inference import InferRequest, RequestedOutput, read_request
from servekit.codecs.open_inference_answers import write_response
from servekit.errors import RequestError
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor
from tests.fuzz.made import bounded, damaged, requests, same, signatures, tensors_of

IMAGE = Signature(
    (TensorSpec("image", "float32", (-1, 1, 2, 2)),), (TensorSpec("y", "float32", (-1,)),), frozenset(("image",))
)
PAIR = Signature((TensorSpec("a", "int64", (-1, 2)), TensorSpec("b", "bytes", (-1,))), (TensorSpec("y", "float32", (-1,)),))
SINGLE = Signature((TensorSpec("x", "float32", (-1, -1)),), (TensorSpec("y", "float32", (-1,)),), is_batched=False)
SIGNATURES = (IMAGE, PAIR, SINGLE)

INFER = (
    b'{"id":"7","inputs":[{"name":"a","shape":[1,2],"datatype":"INT64","data":[1,2]},'
    b'{"name":"b","shape":[1],"datatype":"BYTES","data":["x"]}],"outputs":[{"name":"y","parameters":{"classification":2}}]}',
    b'{"inputs":[{"name":"image","shape":[1,1,2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],'
    b'"parameters":{"timeout":5,"binary_data_output":true}}' + bytes(16),
    b'{"inputs":[{"name":"image","shape":[2],"datatype":"BYTES","data":["YQ==","Yg=="],"parameters":{"content_type":"base64"}}]}',
    b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}]}',
)
ROWS = (
    b'[{"a":[1,2],"b":"x"},{"a":[3,4],"b":{"b64":"eA=="}}]',
    b'{"b64":"eA=="}',
    b"[[[[1,2],[3,4]]]]",
    b'{"a":[[1,2]],"b":["x"]}',
)


@given(requests())
def test_rows_and_columns_are_read_as_they_were_written(request: tuple[Signature, dict[str, Any]]) -> None:
    signature, tensors = request
    for read, written in ((rows_of, predictions_of(tensors, signature)), (columns_of, outputs_of(tensors, signature))):
        found = read(load_json(dump_json(written)), signature)
        assert all(same(found[name], array) for name, array in tensors.items())
    assert len(rows_of([zero_row(signature)], signature)) == len(zeros_of(signature)) == len(signature.inputs)


@given(damaged(ROWS), st.sampled_from(SIGNATURES), st.booleans())
def test_no_json_hurts_the_readers_of_rows(body: bytes, signature: Signature, takes_whole_floats: bool) -> None:
    for read in (rows_of, columns_of):
        try:
            tensors = bounded(read, load_json(body), signature, takes_whole_floats)
        except RequestError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            continue
        require_fit(tensors, signature)


def require_fit(tensors: dict[str, NDArray[Any]], signature: Signature) -> None:
    """Fail unless `tensors` are what a model with `signature` takes."""
    assert {spec.name for spec in signature.inputs} == set(tensors)
    assert len({len(array) for array in tensors.values()}) == 1
    for spec in signature.inputs:
        array = tensors[spec.name]
        if not (spec.name in signature.encoded and array.dtype == object):
            assert array.ndim == len(spec.shape)
            assert all(size in (-1, found) for size, found in zip(spec.shape[1:], array.shape[1:], strict=True))


@given(
    requests(),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
)
def test_what_is_inferred_and_answered_is_read_as_it_was_meant(
    request: tuple[Signature, dict[str, Any]], is_binary: list[bool], identity: str
) -> None:
    signature, tensors = request
    inputs, tail = [], b""
    for spec, binary in zip(signature.inputs, is_binary, strict=False):
        array, datatype = tensors[spec.name], datatype_of(spec)
        one: dict[str, Any] = {"name": spec.name, "shape": array.shape, "datatype": datatype}
        if binary:
            content = bytes(pack(array, datatype))
            one["parameters"] = {"binary_data_size": len(content)}
            tail += content
        else:
            one["data"] = [item.decode() for item in array.ravel()] if datatype == BYTES else array.ravel()
        inputs.append(one)
    head = dump_json({"id": identity, "inputs": inputs})
    read = read_request(head + tail, str(len(head)) if tail else None, "m", signature)
    assert read.id == identity
    assert all(same(read.tensors[name], array) for name, array in tensors.items())
    outputs = [RequestedOutput(spec.name, binary) for spec, binary in zip(signature.outputs, is_binary[3:], strict=False)]
    body, length = write_response(tensors, InferRequest({}, outputs), "m", "1", signature)
    require_written(tensors, body, length)


def require_written(tensors: dict[str, NDArray[Any]], body: bytes, length: int | None) -> None:
    """Fail unless an answer of the protocol, taken apart by hand, holds `tensors`."""
    answer, start = json.loads(body if length is None else body[:length]), length or len(body)
    for output in answer["outputs"]:
        array = tensors[output["name"]]
        if "data" in output:
            items = output["data"]
            values = (
                bytes_tensor([item.encode() for item in items]) if array.dtype == object else np.array(items, array.dtype)
            )
        else:
            stop = start + output["parameters"]["binary_data_size"]
            values, start = unpack(body[start:stop], output["datatype"], array.size), stop
        assert same(values.reshape(output["shape"]), array)
    assert start == len(body)


@given(damaged(INFER, most=3), st.none() | st.integers(0, 300).map(str) | st.text(max_size=3), st.sampled_from(SIGNATURES))
def test_no_bytes_hurt_the_reader_of_requests_to_infer(body: bytes, length: str | None, signature: Signature) -> None:
    try:
        request = bounded(read_request, body, length, "m", signature)
    except RequestError as error:
        assert str(error).isprintable() and len(str(error)) < 3000
        return
    require_fit(dict(request.tensors), signature)
    answers = {"y": np.zeros((len(next(iter(request.tensors.values()))), 3), np.float32)}
    write_response(answers, request, "m", "1", signature)


@pytest.mark.parametrize("head", INFER)
@given(st.integers(0, 300), st.binary(max_size=24))
def test_a_header_of_any_length_is_no_error_of_the_server(head: bytes, length: int, tail: bytes) -> None:
    for signature in SIGNATURES:
        try:
            read_request(head + tail, str(length), "m", signature)
        except RequestError:
            pass


@given(st.sampled_from(sorted(DTYPES)).filter(lambda name: name != BF16), st.data())
def test_elements_are_packed_and_unpacked(datatype: str, data: st.DataObject) -> None:
    name = {BYTES: "bytes"}.get(datatype, DTYPES[datatype].name)
    array = data.draw(tensors_of(TensorSpec("x", name, (-1,)), data.draw(st.integers(0, 4))))
    assert same(unpack(bytes(pack(array, datatype)), datatype, array.size), array)


@given(st.integers(0, 2**16 - 1))
def test_every_bfloat16_is_itself(bits: int) -> None:
    content = np.array([bits], "<u2").tobytes()
    value = unpack(content, BF16, 1)
    assert bytes(pack(value, BF16)) == content or np.isnan(value[0])


@given(st.binary(max_size=64), st.sampled_from(sorted(DTYPES)), st.integers(0, 2**31 - 1) | st.integers(0, 20))
def test_no_bytes_hurt_the_reader_of_elements(content: bytes, datatype: str, count: int) -> None:
    try:
        assert bounded(unpack, content, datatype, count).shape == (count,)
    except (ValueError, RequestError):
        pass


@given(signatures(), st.sampled_from(swagger.VERSIONS), st.text(max_size=5), st.text(max_size=5))
def test_a_service_of_any_signature_can_be_described(signature: Signature, version: str, name: str, prefix: str) -> None:
    rows = swagger.rows_schema(signature.inputs)
    made = swagger.document(version, swagger.Service(name, "1", prefix), rows, rows)
    assert json.loads(json.dumps(made)) == json.loads(dump_json(made))


@given(requests(dtypes=("float32", "int8", "bool", "bytes")))
def test_what_a_service_answers_is_as_it_is_described(request: tuple[Signature, dict[str, Any]]) -> None:
    from jsonschema import Draft202012Validator

    signature, tensors = request
    answer = json.loads(dump_json(predictions_of(tensors, signature)).replace(b"NaN", b"0").replace(b"Infinity", b"0"))
    Draft202012Validator(swagger.rows_schema(signature.outputs)).validate(answer)


@given(st.binary(max_size=40))
def test_bytes_travel_in_base64(content: bytes) -> None:
    body = dump_json({"instances": [{"b64": base64.b64encode(content).decode()}]})
    assert rows_of(load_json(body)["instances"], IMAGE)["image"].tolist() == [content]
