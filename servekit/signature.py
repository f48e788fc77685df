"""What clients of a model send and get, in whatever contract: names, dtypes and shapes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from servekit.spec import TensorSpec

_HELD_AS = {"bytes": "object", "bfloat16": "float32"}  # numpy has neither


def array_dtype(tensor: TensorSpec) -> np.dtype[Any]:
    """Return the dtype of the arrays that hold `tensor`: object for bytes, float32 for bfloat16, which only engines know."""
    return np.dtype(_HELD_AS.get(tensor.dtype, tensor.dtype))


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model as its clients see them; axis 0 of every shape is -1, the rows of a request.

    An input named in `encoded` may also come as bytes, one encoded item a row (a PNG), whatever its dtype says.
    A model that is not batched (`is_batched` False) knows no rows: its clients leave axis 0 out, and inside the server
    each request is one row. `labels` are the names of the classes by output, in the order of its last axis.
    `max_rows` bounds one request, if the model's contract does.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    encoded: frozenset[str] = frozenset()
    labels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    is_batched: bool = True
    max_rows: int | None = None
