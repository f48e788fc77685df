"""ModelInfer as a request of V2's HTTP interface with binary tensors, and its answer as a ModelInferResponse."""

import json
from collections.abc import Mapping
from typing import Any

from grpc import StatusCode

from servekit.grpc.connections import Answer
from servekit.grpc.messages import message
from servekit.grpc.status import UNREADABLE, Refused
from servekit.grpc.tensors import pack_contents, pack_values

NO_SHARED_MEMORY = "shared memory is not supported; send the values in the request"
HEADER_LENGTH = "Inference-Header-Content-Length"
# Set by clients of streams; what they ask for is always answered, see `Service.ModelStreamInfer`.
_STREAM_ONLY = "triton_enable_empty_final_response"
MAX_MEMBERS = 10_000  # each costs a hundred times its bytes, and the others wait while it is read
_MAX_INT64 = 2**63 - 1

_ModelInferResponse = message("inference.ModelInferResponse")


def request_of(call: Any, seconds_left: float | None, limit: int) -> tuple[dict[str, str], list[bytes]]:
    """Return the header and the pieces of the body for `call`, a ModelInferRequest.

    `seconds_left` of the client's deadline become the `timeout` parameter, unless that is shorter already. Raises Refused
    for what can be seen here; names, shapes and sizes are for the server to judge. Typed contents may become at most
    `limit` bytes.
    """
    _require_few(call)
    parameters = plain_values(call.parameters)
    parameters.pop(_STREAM_ONLY, None)
    if seconds_left is not None:
        parameters["timeout"] = _shorter(parameters.get("timeout"), max(1, int(seconds_left * 1e6)))
    tensors = _tensors(call, limit)
    head: dict[str, Any] = {
        "parameters": parameters | {"binary_data_output": True},
        "inputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": plain_values(tensor.parameters) | {"binary_data_size": len(data)},
            }
            for tensor, data in zip(call.inputs, tensors, strict=True)
        ],
    }
    if call.id:
        head["id"] = call.id
    if call.outputs:
        head["outputs"] = [
            {"name": output.name, "parameters": plain_values(output.parameters) | {"binary_data": True}} for output in call.outputs
        ]
    document = json.dumps(head).encode()
    return {HEADER_LENGTH: str(len(document)), "Content-Type": "application/octet-stream"}, [document, *tensors]


def response_of(answer: Answer) -> Any:
    """Return the ModelInferResponse for `answer`, every output in raw_output_contents; raises Refused."""
    try:
        end = int(answer.headers.get(HEADER_LENGTH.lower().encode(), len(answer.body)))
        head = json.loads(answer.body[:end])
        response = _ModelInferResponse(
            model_name=head["model_name"], model_version=head.get("model_version", ""), id=head.get("id", "")
        )
        _set(response.parameters, head.get("parameters", {}))
        for output in head["outputs"]:
            parameters = output.get("parameters", {})
            size = parameters.pop("binary_data_size", None)
            tensor = response.outputs.add(name=output["name"], datatype=output["datatype"], shape=output["shape"])
            _set(tensor.parameters, parameters)
            if size is None:
                data = pack_values(output["name"], output["datatype"], output["data"])
            else:
                data = answer.body[end : end + size]
                end += size
                if len(data) != size:
                    raise ValueError(f"{size} bytes of an output are announced and {len(data)} came")
            response.raw_output_contents.append(data)
    except (Refused, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Refused(StatusCode.INTERNAL, UNREADABLE) from error
    return response


def _require_few(call: Any) -> None:
    """Raise Refused for a call of more members than any honest one has, before they are looked at one by one."""
    count = len(call.inputs) + len(call.outputs) + len(call.parameters)
    if count <= MAX_MEMBERS:
        count += sum(len(tensor.shape) for tensor in call.inputs)
        count += sum(len(tensor.parameters) for tensors in (call.inputs, call.outputs) for tensor in tensors)
    if count > MAX_MEMBERS:
        raise Refused(
            StatusCode.INVALID_ARGUMENT,
            f"a call may have {MAX_MEMBERS} inputs, outputs, parameters and sizes of shapes, and this one has more",
        )


def _tensors(call: Any, limit: int) -> list[bytes]:
    """Return the bytes of each input of `call`; raises Refused."""
    for tensor in call.inputs:
        if "shared_memory_region" in tensor.parameters:
            raise Refused(StatusCode.UNIMPLEMENTED, NO_SHARED_MEMORY)
    raw = call.raw_input_contents
    if not raw:
        return [pack_contents(tensor.name, tensor.datatype, tensor.contents, limit) for tensor in call.inputs]
    for tensor in call.inputs:
        if tensor.HasField("contents"):
            raise Refused(
                StatusCode.INVALID_ARGUMENT,
                "contents field must not be specified when using raw_input_contents for "
                f"'{tensor.name}' for model '{call.model_name}'",
            )
    if len(raw) != len(call.inputs):
        raise Refused(
            StatusCode.INVALID_ARGUMENT,
            f"expected {len(call.inputs)} raw_input_contents, one for each input, but got {len(raw)} "
            f"for model '{call.model_name}'",
        )
    return list(raw)


def plain_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a map of messages that hold one of several kinds of value as plain values; those that hold none are left out."""
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()}
    return {name: getattr(value, kind) for name, (value, kind) in chosen.items() if kind}


def _set(parameters: Any, values: Mapping[str, Any]) -> None:
    """Put plain `values` into `parameters`, a map of InferParameter; lists and objects, which it cannot hold, not."""
    for name, value in values.items():
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            if value > _MAX_INT64:
                parameters[name].uint64_param = value
            else:
                parameters[name].int64_param = value
        elif isinstance(value, float):
            parameters[name].double_param = value
        elif isinstance(value, str):
            parameters[name].string_param = value


def _shorter(given: Any, timeout: int) -> Any:
    """Return the shorter of two timeouts in microseconds; what a client gave that is no number is the server's to refuse."""
    if given is None or given == 0:
        return timeout
    return min(given, timeout) if isinstance(given, int) and not isinstance(given, bool) and given > 0 else given


def final(response: Any) -> Any:
    """Mark `response`, a ModelInferResponse of a stream, as the last one to its request; return it."""
    response.parameters["triton_final_response"].bool_param = True
    return response
