"""Requests of the Open Inference Protocol (V2): what arrives, as JSON or as JSON and binary tensors, into Tensors.

The protocol: https://github.com/kserve/open-inference-protocol and, for binary tensors, classification and parameters,
the extensions in the documentation of Triton Inference Server. What is wrong is said in Triton's words, which its users'
tests look for. Sizes are compared before memory is taken.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.arrays import load_json, to_array
from servekit.codecs.datatypes import BYTES, DTYPES, datatype_of, element_count, least_bytes, unpack
from servekit.codecs.values import decode_base64
from servekit.errors import InvalidInput
from servekit.signature import Signature
from servekit.spec import TensorSpec

MAX_ROWS = 1000  # that cost a client next to nothing, and the server much: encoded ones, and empty ones
_MAX_SIZE = 2**31  # of an axis, and of all elements
_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_PLAIN = re.compile(r"[\w .:/+-]{1,128}")
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON's escapes can make one, which no answer can say
_UNSIGNED = range(2**64)
_BATCH_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each"
    " input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting"
    " max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """One input as its carrier brings it: `content` is bytes, lists of JSON, or an array of one axis."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: Any
    is_base64: bool = False  # BYTES of JSON that are no text


@dataclasses.dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that is asked for; `classes` above 0 asks for so many of the largest values instead of all."""

    name: str
    is_binary: bool | None = None  # None: as the request says of all
    classes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Parameters:
    """What the parameters of a request say; `timeout` is in seconds."""

    timeout: float | None = None
    is_binary: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class InferRequest:
    """What a request brings, and what it asks for; no `outputs`: all."""

    tensors: Mapping[str, NDArray[Any]]
    outputs: Sequence[RequestedOutput] = ()
    parameters: Parameters = Parameters()
    id: str = ""


def read_request(body: bytes, header_length: str | None, model: str, signature: Signature) -> InferRequest:
    """Read the body of an infer request for `model`; `header_length` is its Inference-Header-Content-Length, if sent.

    Without it the body is JSON, with 0 it is the only input itself, else JSON of that length and binary tensors after it.
    Raises InvalidInput.
    """
    length = len(body) if header_length is None else _header_length(header_length, len(body))
    if header_length is not None and length == 0:
        return InferRequest(_raw_input(body, model, signature), parameters=Parameters(is_binary=True))
    value = load_json(body if length == len(body) else body[:length])
    if not isinstance(value, dict):
        raise InvalidInput("The body must be a JSON object with the member inputs.")
    sent = _inputs(value.get("inputs"), memoryview(body)[length:], model)
    identity = value.get("id", "")
    if not isinstance(identity, str) or _HALF_CHARACTER.search(identity):
        raise InvalidInput("Unable to parse 'id': it must be a string.")
    parameters = read_parameters(_object(value.get("parameters"), "parameters"))
    outputs = read_outputs(_outputs(value.get("outputs")), model, signature)
    return InferRequest(to_tensors(sent, model, signature), outputs, parameters, identity)


def quoted(name: str) -> str:
    """Return a name that a client wrote for a message, between quotes: nothing in it can disturb a log or a page."""
    return f"'{name}'" if _PLAIN.fullmatch(name) else "'?'"


def read_parameters(values: Mapping[str, Any]) -> Parameters:
    """Check the parameters of a request, which are scalars; raise InvalidInput."""
    if not values:
        return _NO_PARAMETERS
    for name, value in values.items():
        if name.startswith("triton_"):
            raise InvalidInput("Parameter names beginning with 'triton_' are reserved for the server.")
        if not isinstance(value, str | int | float | bool):
            raise InvalidInput(f"The parameter {quoted(name)} must be a string, a number, true or false.")
    for name in ("sequence_start", "sequence_end", "binary_data_output"):
        if type(values.get(name, False)) is not bool:
            raise InvalidInput(f"The parameter {name} must be true or false.")
    for name in ("timeout", "priority"):
        _unsigned(values.get(name, 0), f"The parameter {name}")
    sequence = values.get("sequence_id", 0)
    if not isinstance(sequence, str):
        _unsigned(sequence, "The parameter sequence_id, if it is no string,")
    if sequence or values.get("sequence_start") or values.get("sequence_end"):
        raise InvalidInput("No model here keeps state from request to request; send no sequence_id, start or end.")
    timeout = values.get("timeout", 0)
    return Parameters(timeout / 1e6 if timeout else None, values.get("binary_data_output", False))


def read_outputs(outputs: Sequence[tuple[str, Mapping[str, Any]]], model: str, signature: Signature) -> list[RequestedOutput]:
    """Check the names and parameters of requested outputs; raise InvalidInput."""
    known = {tensor.name for tensor in signature.outputs}
    found: dict[str, RequestedOutput] = {}
    for name, parameters in outputs:
        if name in found:
            raise InvalidInput(f"output {quoted(name)} already exists in request")
        if name not in known:
            raise InvalidInput(f"unexpected inference output {quoted(name)} for model '{model}'")
        _refuse_shared_memory(parameters)
        is_binary = parameters.get("binary_data")
        if is_binary is not None and type(is_binary) is not bool:
            raise InvalidInput("The parameter binary_data must be true or false.")
        classes = _unsigned(parameters.get("classification", 0), "The parameter classification")
        found[name] = RequestedOutput(name, is_binary, classes)
    return list(found.values())


def to_tensors(sent: Sequence[Sent], model: str, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs as the model takes them; raise InvalidInput where one is missing or does not fit."""
    _check_names([tensor.name for tensor in sent], model, signature)
    specs = {tensor.name: tensor for tensor in signature.inputs}
    tensors: dict[str, NDArray[Any]] = {}
    rows = None
    for tensor in sent:
        shape = _shape(tensor, specs[tensor.name], model, signature)
        if rows not in (None, shape[0]):
            raise InvalidInput(f"input {quoted(tensor.name)} batch size does not match other inputs for '{model}'")
        rows = shape[0]
        tensors[tensor.name] = _read(tensor, shape, model)
    return tensors


_NO_PARAMETERS = Parameters()


def _header_length(text: str, size: int) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > size:
        raise InvalidInput("Inference-Header-Content-Length must be one number: the bytes of the JSON in the body.")
    return int(text)


def _raw_input(body: bytes, model: str, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the only input, of which the body is one row: of its shape, one size at most is open."""
    if len(signature.inputs) != 1:
        raise InvalidInput(
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(signature.inputs)} inputs in"
            f" '{model}' model configuration"
        )
    spec = signature.inputs[0]
    sizes, datatype = list(spec.shape[1:]), datatype_of(spec)
    if datatype == BYTES:
        if any(size not in (1, -1) for size in sizes):
            raise InvalidInput(f"For BYTE datatype raw input '{spec.name}', the model must have input shape [1]")
        return {spec.name: np.array([body], object).reshape([1] * len(spec.shape))}
    if sizes.count(-1) > 1:
        raise InvalidInput(
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one"
            " variable-sized dimension"
        )
    if -1 in sizes:
        open_axis = sizes.index(-1)
        sizes[open_axis] = 1
        sizes[open_axis] = len(body) // least_bytes(datatype, element_count(sizes))
    sent = Sent(spec.name, datatype, [1, *sizes] if signature.is_batched else sizes, body)
    return to_tensors([sent], model, signature)


def _inputs(value: Any, binary: memoryview, model: str) -> list[Sent]:
    """Return the inputs of the JSON, the binary ones with their part of `binary`, which follow one another."""
    if not isinstance(value, list) or not value:
        raise InvalidInput("Unable to parse 'inputs': it must be a list of at least one tensor.")
    sent, start = [], 0
    for member in value:
        if not isinstance(member, dict):
            raise InvalidInput("Unable to parse 'inputs': each must be an object with name, shape, datatype and data.")
        parameters = _object(member.get("parameters"), "parameters of an input")
        _refuse_shared_memory(parameters)
        size = parameters.get("binary_data_size")
        if (size is None) == ("data" not in member):
            raise InvalidInput("Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters'.")
        content = member.get("data")
        if size is not None:
            stop = start + _unsigned(size, "The parameter binary_data_size")
            if stop > len(binary):
                missing = stop - len(binary)
                name = quoted(_text(member, "name"))
                raise InvalidInput(f"unexpected size for input {name}, expecting {missing} additional bytes for model '{model}'")
            content, start = binary[start:stop], stop
        is_base64 = parameters.get("content_type") == "base64"
        sent.append(Sent(_text(member, "name"), _text(member, "datatype"), member.get("shape", ()), content, is_base64))
    if start != len(binary):
        raise InvalidInput(f"unexpected additional input data for model '{model}'")
    return sent


def _outputs(value: Any) -> list[tuple[str, Mapping[str, Any]]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(member, dict) for member in value):
        raise InvalidInput("Unable to parse 'outputs': it must be a list of objects with a name.")
    return [(_text(member, "name"), _object(member.get("parameters"), "parameters of an output")) for member in value]


def _check_names(names: list[str], model: str, signature: Signature) -> None:
    wanted = [tensor.name for tensor in signature.inputs]
    if names == wanted:
        return
    missing = [name for name in wanted if name not in names]
    if missing:
        given = ",".join(map(quoted, names[:20]))
        raise InvalidInput(
            f"expected {len(wanted)} inputs but got {len(names)} inputs for model '{model}'. Got input(s) [{given}], but"
            f" missing required input(s) [{','.join(map(quoted, missing))}]. Please provide all required input(s)."
        )
    known, seen = set(wanted), set()
    for name in names:
        if name not in known:
            raise InvalidInput(f"unexpected inference input {quoted(name)} for model '{model}'")
        if name in seen:
            raise InvalidInput(f"input {quoted(name)} already exists in request")
        seen.add(name)


def _shape(tensor: Sent, spec: TensorSpec, model: str, signature: Signature) -> tuple[int, ...]:
    """Return the shape inside the server, rows first, of an input whose datatype and shape are those of the model."""
    is_encoded = tensor.datatype == BYTES and tensor.name in signature.encoded
    if tensor.datatype not in DTYPES:
        raise InvalidInput(f"inference input '{spec.name}' has an unknown datatype; there are: {', '.join(sorted(DTYPES))}.")
    if not is_encoded and tensor.datatype != datatype_of(spec):
        raise InvalidInput(
            f"inference input '{spec.name}' data-type is '{tensor.datatype}', but model '{model}' expects '{datatype_of(spec)}'"
        )
    given = tensor.shape
    if not isinstance(given, list | tuple) or not all(type(size) is int and 0 <= size < _MAX_SIZE for size in given):
        raise InvalidInput(f"Unable to parse 'shape' of input '{spec.name}': it must be a list of integers from 0 to {_MAX_SIZE}.")
    if is_encoded:
        return _encoded_shape(given, spec, model, signature)
    shape = tuple(given) if signature.is_batched else (1, *given)
    expected = spec.shape if signature.is_batched else spec.shape[1:]
    fits = len(shape) == len(spec.shape) and all(
        size in (-1, found) for size, found in zip(spec.shape[1:], shape[1:], strict=True)
    )
    if not fits:
        raise _unexpected_shape(spec.name, model, expected, given, signature)
    _check_rows(shape[0], model, signature)
    return shape


def _encoded_shape(given: Sequence[int], spec: TensorSpec, model: str, signature: Signature) -> tuple[int, ...]:
    """Return the rows of an input of which each item is encoded: [N] or [N, 1], and [1] where there are no rows."""
    if len(given) not in (1, 2) or (len(given) == 2 and given[1] != 1) or (given[0] != 1 and not signature.is_batched):
        raise _unexpected_shape(spec.name, model, (-1, 1) if signature.is_batched else (1,), given, signature)
    _check_rows(given[0], model, signature)
    if given[0] > MAX_ROWS:
        raise InvalidInput(f"inference request batch-size must be <= {MAX_ROWS} for '{model}' where rows are encoded")
    return (given[0],)


def _unexpected_shape(
    name: str, model: str, expected: Sequence[int], given: Sequence[int], signature: Signature
) -> InvalidInput:
    note = _BATCH_NOTE if signature.is_batched else ""
    wanted, got = (",".join(map(str, sizes[:32])) for sizes in (expected, given))
    return InvalidInput(f"unexpected shape for input '{name}' for model '{model}'. Expected [{wanted}], got [{got}].{note}")


def _check_rows(rows: int, model: str, signature: Signature) -> None:
    if rows == 0:
        raise InvalidInput(f"inference request batch-size must be >= 1 for '{model}'")
    if signature.max_rows is not None and rows > signature.max_rows:
        raise InvalidInput(f"inference request batch-size must be <= {signature.max_rows} for '{model}'")


def _read(tensor: Sent, shape: tuple[int, ...], model: str) -> NDArray[Any]:
    """Return the elements of an input in their shape, if there are as many as that says."""
    count, content = element_count(shape), tensor.content
    if count >= _MAX_SIZE or (count == 0 and shape[0] > MAX_ROWS):
        raise InvalidInput(
            f"byte size overflow for input '{tensor.name}': its shape is of too many elements, or of too many empty rows."
        )
    if isinstance(content, list):
        return _read_json(tensor, shape, count)
    if isinstance(content, np.ndarray):
        if content.size != count:
            raise InvalidInput(f"Unable to parse 'data' of '{tensor.name}': Shape does not match true shape of 'data' field")
        return content.reshape(shape)
    if not isinstance(content, bytes | memoryview):
        raise InvalidInput(f"Unable to parse 'data' of '{tensor.name}': it must be a list.")
    try:
        return unpack(content, tensor.datatype, count).reshape(shape)
    except ValueError:
        raise _size_mismatch(tensor, count, model) from None


def _size_mismatch(tensor: Sent, count: int, model: str) -> InvalidInput:
    name = f"'{tensor.name}' for model '{model}'"
    if tensor.datatype == BYTES:
        return InvalidInput(f"unexpected number of string elements for inference input {name}, expecting {count}")
    expected, size = least_bytes(tensor.datatype, count), len(tensor.content)
    return InvalidInput(f"input byte size mismatch for input {name}. Expected {expected}, got {size}")


def _read_json(tensor: Sent, shape: tuple[int, ...], count: int) -> NDArray[Any]:
    """Return the elements of a list, which may be nested or flat."""
    array = to_array(tensor.content, DTYPES[tensor.datatype])
    if array.size != count:
        raise InvalidInput(f"Unable to parse 'data' of '{tensor.name}': Shape does not match true shape of 'data' field")
    if tensor.is_base64 and tensor.datatype == BYTES:
        for index, item in np.ndenumerate(array):
            array[index] = decode_base64(item.decode("utf-8", "replace"))
    return array.reshape(shape)


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if any(name.startswith("shared_memory_") for name in parameters):
        raise InvalidInput("Shared memory is not served; send and ask for tensors as JSON or binary data.")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f"Unable to parse the {what}: it must be an object.")
    return value


def _text(member: Mapping[str, Any], name: str) -> str:
    value = member.get(name)
    if not isinstance(value, str):
        raise InvalidInput(f"Unable to parse '{name}': it must be a string.")
    return value


def _unsigned(value: Any, what: str) -> int:
    if type(value) is not int or value not in _UNSIGNED:
        raise InvalidInput(f"{what} must be an integer from 0 to {_UNSIGNED.stop - 1}.")
    return value
