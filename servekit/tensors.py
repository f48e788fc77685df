"""The one inner noun: named arrays that share axis 0, whose entries are the rows of a request.

Every protocol is decoded into Tensors and encoded from them; handlers, batcher and engines are all
`Tensors -> Tensors`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]

_MANY = 2**12  # arrays, which numpy joins in a millisecond; no other thread runs meanwhile


def row_count(tensors: Tensors) -> int:
    """Return the length of axis 0 that all arrays share."""
    return len(next(iter(tensors.values())))


def byte_count(tensors: Tensors) -> int:
    """Return how many bytes the arrays take; of bytes and text only what points at them."""
    return sum(array.nbytes for array in tensors.values())


def slice_rows(tensors: Tensors, rows: slice) -> Tensors:
    """Return the given rows of every array, without copying."""
    return {name: array[rows] for name, array in tensors.items()}


def concatenate(parts: Sequence[Tensors]) -> Tensors:
    """Join the rows of `parts`, which have the same names, dtypes and shapes after axis 0."""
    if len(parts) == 1:
        return parts[0]
    if len(parts) > _MANY:
        return concatenate([concatenate(parts[start : start + _MANY]) for start in range(0, len(parts), _MANY)])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bytes_tensor(items: Sequence[bytes]) -> NDArray[np.object_]:
    """Return a one-dimensional array of byte strings, a row each: an encoded image, a document."""
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array
