"""Answers of the Open Inference Protocol (V2): Tensors into JSON, or JSON and binary tensors after it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.codecs.arrays import dump_json
from servekit.codecs.datatypes import BF16, BOOL, BYTES, datatype_of_array, elements, pack
from servekit.codecs.open_inference import InferRequest, RequestedOutput
from servekit.errors import InvalidInput
from servekit.signature import Signature
from servekit.tensors import Tensors

MAX_CLASSES = 1_000_000  # of one output, as Triton bounds them


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """An output as it is answered: `array` has its shape."""

    name: str
    datatype: str
    array: NDArray[Any]
    is_binary: bool


def write_response(
    tensors: Tensors, request: InferRequest, model: str, version: str, signature: Signature
) -> tuple[bytes, int | None]:
    """Return the body that answers `request`, and how long its JSON is if binary tensors follow it, else None.

    Raises InvalidInput for an output that cannot be written as it is asked for.
    """
    binary: list[memoryview | bytes] = []
    written = []
    for output in select_outputs(tensors, request, signature):
        described: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.array.shape}
        if output.is_binary:
            content = pack(output.array, output.datatype)
            described["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        else:
            described["data"] = _json_data(output)
        written.append(described)
    answer = {"id": request.id} if request.id else {}
    head = dump_json({**answer, "model_name": model, "model_version": version, "outputs": written})
    return (b"".join([head, *binary]), len(head)) if any(map(len, binary)) else (head, None)


def select_outputs(tensors: Tensors, request: InferRequest, signature: Signature) -> list[Output]:
    """Return the outputs that are asked for, in that order; without any all, those of the signature first."""
    specs = {tensor.name: tensor for tensor in signature.outputs}
    asked = request.outputs
    if not asked:
        names = [*(name for name in specs if name in tensors), *(name for name in tensors if name not in specs)]
        asked = [RequestedOutput(name) for name in names]
    outputs = []
    for each in asked:
        if each.name not in tensors:
            raise InvalidInput(f"The model gave no output '{each.name}' this time; ask for others.")
        array = tensors[each.name]
        datatype = datatype_of_array(array)
        if each.name in specs and specs[each.name].dtype == "bfloat16":
            datatype = BF16
        if each.classes:
            array, datatype = classify(array, datatype, each.classes, signature.labels.get(each.name, ())), BYTES
        is_binary = request.parameters.is_binary if each.is_binary is None else each.is_binary
        outputs.append(Output(each.name, datatype, array if signature.is_batched else array[0], is_binary))
    return outputs


def classify(array: NDArray[Any], datatype: str, classes: int, labels: Sequence[str]) -> NDArray[np.object_]:
    """Return, for each row, its `classes` largest values as `<value>:<index>[:<label>]`, the largest first."""
    if datatype in (BYTES, BOOL):
        raise InvalidInput(f"class result not available for output due to unsupported type '{datatype}'")
    if array.size > MAX_CLASSES:
        raise InvalidInput(f"classification output tensor too large; at most {MAX_CLASSES} values are compared")
    values = array.reshape(len(array), -1)
    order = np.argsort(-values.astype(np.float64), axis=1, kind="stable")[:, :classes]
    result = np.empty(order.shape, object)
    for place, number in np.ndenumerate(order):
        index = int(number)
        value = values[place[0], index].item()
        text = f"{value:f}:{index}" if values.dtype.kind == "f" else f"{value}:{index}"
        result[place] = (f"{text}:{labels[index]}" if index < len(labels) else text).encode()
    return result


def _json_data(output: Output) -> Any:
    array = output.array
    if output.datatype == BYTES:
        try:
            return [item.decode() for item in elements(array)]
        except UnicodeDecodeError:
            raise InvalidInput(f"The output '{output.name}' is no text; ask for it with binary_data true.") from None
    return np.ascontiguousarray(array).reshape(-1)
