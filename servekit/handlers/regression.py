"""Numbers in, numbers out."""

import dataclasses

import numpy as np

from servekit.errors import InvalidInput
from servekit.handlers.base import Handler
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import Tensors


class RegressionHandler(Handler):
    """Feeds one tensor of numbers to the network and refuses to answer with what is no number."""

    @property
    def signature(self) -> Signature:
        """The first input of `model.json`; where a row has one number, clients see rows and not lists of one."""
        return Signature(self.spec.inputs[:1], tuple(map(_flat, self.spec.outputs)))

    def preprocess(self, tensors: Tensors) -> Tensors:
        """Return the first input, `(rows, ...)` of the dtype and shape of `model.json`; raise InvalidInput if it is missing."""
        wanted = self.spec.inputs[0]
        if wanted.name not in tensors:
            raise InvalidInput(f"This model takes numbers called {wanted.name}.")
        return {wanted.name: tensors[wanted.name].astype(wanted.dtype).reshape(wanted.shape)}

    def postprocess(self, tensors: Tensors) -> Tensors:
        """Return the outputs with one number a row as `(rows,)`; raise InvalidInput where one is not finite."""
        if not all(np.isfinite(array).all() for array in tensors.values()):
            raise InvalidInput("The model has no finite answer for this value; send one nearer to zero.")
        return {name: array[:, 0] if array.shape[1:] == (1,) else array for name, array in tensors.items()}


def _flat(tensor: TensorSpec) -> TensorSpec:
    return dataclasses.replace(tensor, shape=(-1,)) if tensor.shape == (-1, 1) else tensor
