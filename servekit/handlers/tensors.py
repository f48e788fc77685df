"""Tensors in, tensors out: for models whose description says all that there is to know."""

from collections.abc import Sequence

from servekit.errors import InvalidInput
from servekit.handlers.base import Handler
from servekit.signature import Signature, array_dtype
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import Tensors


class TensorsHandler(Handler):
    """Lets through what fits the signature that it is made with."""

    def __init__(self, spec: ModelSpec, signature: Signature) -> None:
        super().__init__(spec)
        self._signature = signature

    @property
    def signature(self) -> Signature:
        """The one that it was made with."""
        return self._signature

    def preprocess(self, tensors: Tensors) -> Tensors:
        """Return the inputs; raise InvalidInput for one that is missing, unknown, or of another dtype or shape."""
        require_fit(tensors, self._signature.inputs)
        return tensors


def require_fit(tensors: Tensors, inputs: Sequence[TensorSpec]) -> None:
    """Raise InvalidInput unless `tensors` are the arrays that `inputs` describe; their rows are not counted."""
    if tensors.keys() != {tensor.name for tensor in inputs}:
        raise InvalidInput(f"This model takes the inputs {', '.join(tensor.name for tensor in inputs)}, and no others.")
    for tensor in inputs:
        array = tensors[tensor.name]
        if array.dtype != array_dtype(tensor):
            raise InvalidInput(f"The input {tensor.name} must be {tensor.dtype}.")
        sizes = zip(tensor.shape, array.shape, strict=False)
        if array.ndim != len(tensor.shape) or any(size not in (-1, given) for size, given in sizes):
            raise InvalidInput(f"The input {tensor.name} must have the shape {list(tensor.shape)}, rows first.")
