"""KServe's second protocol: {"id", "inputs": [...]} -> {"id", "model_name", "model_version", "outputs": [...]}."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope, Counts, json_of, list_in
from servekit.ts.utils.util import PredictionException

_DATATYPES = {"bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
_DATATYPES |= {f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


class KServev2Envelope(BaseEnvelope):
    """The handler gets the inputs of all requests in one list, their data in their shape, and returns one for each."""

    _counts = Counts([[]])
    _requests: list[Any] = []

    def parse_input(self, data: Any) -> Any:
        """Return the inputs of all requests: {"name", "shape", "datatype", "data"}."""
        self._requests = [json_of(each) for each in data]
        parts = [[_shaped(tensor) for tensor in list_in(each, "inputs")] for each in self._requests]
        self._counts = Counts(parts)
        self.context.input_names = [tensor["name"] for part in parts for tensor in part]
        return [tensor for part in parts for tensor in part]

    def format_output(self, data: Any) -> Any:
        """Return for each request an object with an output for each of its inputs, which keeps the input's name."""
        parts = self._counts.divide(data)
        return [self._answer(index, request, parts[index]) for index, request in enumerate(self._requests)]

    def _answer(self, index: int, request: Any, outputs: Any) -> dict[str, Any]:
        model = (self.context.manifest or {}).get("model", {})
        names = [tensor["name"] for tensor in request["inputs"]]
        given = request.get("id")
        return {
            "id": given if isinstance(given, str) and given.strip() else self.context.get_request_id(index),
            "model_name": model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": [_output(name, values) for name, values in zip(names, outputs, strict=True)],
        }


def _shaped(tensor: Any) -> dict[str, Any]:
    if not isinstance(tensor, Mapping) or not {"name", "shape", "datatype", "data"} <= tensor.keys():
        raise PredictionException("Each of 'inputs' needs name, shape, datatype and data.", 400)
    try:
        if tensor["datatype"] == "BYTES":
            return {**tensor, "data": tensor["data"][0]}
        return {**tensor, "data": np.array(tensor["data"]).reshape(tensor["shape"]).tolist()}
    except (TypeError, LookupError, OverflowError, ValueError):
        raise PredictionException("The data of an input do not have its shape.", 400) from None


def _output(name: str, values: Any) -> dict[str, Any]:
    array = np.array(values).flatten()
    datatype = _DATATYPES.get(str(array.dtype), "BYTES")
    return {"name": name, "datatype": datatype, "data": array.tolist(), "shape": list(array.shape)}
