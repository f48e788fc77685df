"""Requests that work, for whoever reads the documentation of the running server."""

from typing import Any

from servekit.codecs.datatypes import BYTES, datatype_of, element_count
from servekit.model import Model
from servekit.openapi import Example
from servekit.spec import TensorSpec

MAX_ELEMENTS = 5000  # of an example that people shall read


def infer_examples(model: Model, endpoint: str) -> list[Example]:
    """Return a request of zeros for `model`; none where its code reads requests itself, or where it would be long."""
    signature = model.signature
    if signature is None:
        return []
    tensors = [_tensor(spec, signature.is_batched) for spec in signature.inputs]
    if sum(element_count(tensor["shape"]) for tensor in tensors) > MAX_ELEMENTS:
        return []
    return [Example(endpoint, {"name": model.name}, {"inputs": tensors}, summary=f"One row of zeros for {model.name}")]


def _tensor(spec: TensorSpec, is_batched: bool) -> dict[str, Any]:
    shape, datatype = [1 if size == -1 else size for size in spec.shape], datatype_of(spec)
    zero: Any = "" if datatype == BYTES else False if datatype == "BOOL" else 0
    data = [zero] * element_count(shape)
    return {"name": spec.name, "shape": shape if is_batched else shape[1:], "datatype": datatype, "data": data}
