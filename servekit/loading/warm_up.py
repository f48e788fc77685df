"""The first pass of a model that is loaded: a row of zeros, and whether the network gives what was promised."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.signature import array_dtype
from servekit.spec import TensorSpec

PASSES = 3  # the first pays for first-time work; the fastest of the others is the model's speed


def zeros(tensor: TensorSpec) -> NDArray[Any]:
    """Return one row of zeros; what may be of any size is of size 1."""
    shape = (1, *(1 if size == -1 else size for size in tensor.shape[1:]))
    return np.full(shape, b"", object) if tensor.dtype == "bytes" else np.zeros(shape, array_dtype(tensor))


def misfit(tensor: TensorSpec, array: NDArray[Any]) -> str | None:
    """Return how `array`, which has one row, differs from what was promised; None if it does not."""
    fits = len(array.shape) == len(tensor.shape) and all(
        size in (-1, given) for size, given in zip(tensor.shape, array.shape, strict=True)
    )
    if fits and array.dtype == array_dtype(tensor):
        return None
    given = f"{array.dtype.name} {[-1, *array.shape[1:]]}"
    return f"{tensor.dtype} {list(tensor.shape)}, but the network gives {given}"
