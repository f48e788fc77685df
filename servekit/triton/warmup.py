"""`model_warmup`: the requests that a model answers before it is ready."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.signature import array_dtype
from servekit.spec import TensorSpec
from servekit.tensors import Tensors
from servekit.triton.folders import inside
from servekit.triton.meaning import dtype_of

FOLDER = "warmup"  # of the model folder: where input_data_file is looked for
MAX_PASSES = 10_000  # of one sample: until they are done no other model can be loaded
MAX_FILE_BYTES = 2**30
MAX_ELEMENTS = 2**28  # of one tensor: a slip of the hand is not to take all memory


def samples(values: Mapping[str, Any], model: Path) -> Iterator[tuple[str, Tensors, int]]:
    """Give the name, the tensors and the number of passes of each sample of a checked config.

    Axis 0 of every array is the rows, 1 where the model knows none. Raises ValueError for what cannot be made, and
    ModelLoadError for a file that is not in the folder `model`.
    """
    names = {tensor["name"] for tensor in values["input"]}
    for sample in values["model_warmup"]:
        if set(sample["inputs"]) != names:
            raise ValueError(f"the model_warmup {sample['name']} must give each input: {', '.join(sorted(names))}")
        if sample["count"] > MAX_PASSES:
            raise ValueError(f"the count of the model_warmup {sample['name']} may be {MAX_PASSES}")
        if not 1 <= sample["batch_size"] <= max(1, values["max_batch_size"]):
            raise ValueError(f"the batch_size of the model_warmup {sample['name']} must be 1 to max_batch_size")
        tensors = {
            name: np.repeat(_row(name, tensor, model)[np.newaxis], sample["batch_size"], axis=0)
            for name, tensor in sample["inputs"].items()
        }
        yield sample["name"], tensors, max(1, sample["count"])


def _row(name: str, tensor: Mapping[str, Any], model: Path) -> NDArray[Any]:
    """Return one row of what a sample says of an input."""
    shape = tuple(tensor["dims"])
    if not all(size > 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"the model_warmup of {name} needs dims above 0, and at most {MAX_ELEMENTS} elements")
    kind = dtype_of(tensor["data_type"])
    dtype = array_dtype(TensorSpec(name, kind, (-1, *shape)))
    if "input_data_file" in tensor:
        path = inside(model / FOLDER, model, tensor["input_data_file"], "input_data_file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"the input_data_file of {name} may have {MAX_FILE_BYTES} bytes")
        return _from_file(name, path.read_bytes(), kind, dtype, shape)
    if dtype == object:
        return np.full(shape, b"", object)
    if not tensor.get("random_data"):
        return np.zeros(shape, dtype)
    generator = np.random.default_rng(0)
    if dtype.kind in "iu":
        return generator.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    return generator.random(shape).astype(dtype) if dtype.kind == "f" else generator.integers(0, 2, shape).astype(dtype)


def _from_file(name: str, content: bytes, kind: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Read raw values, little-endian; texts have their length as four bytes before them."""
    if kind == "bytes":
        items = list(_texts(content))
        array = np.empty(len(items), object)
        array[:] = items
    elif kind == "bfloat16":  # the upper half of a float32
        array = (np.frombuffer(content, "<u2").astype("<u4") << 16).view("<f4")
    else:
        array = np.frombuffer(content, dtype.newbyteorder("<")) if len(content) % dtype.itemsize == 0 else np.empty(0)
    if array.size != math.prod(shape):
        raise ValueError(f"the input_data_file of {name} does not hold the {math.prod(shape)} elements of its dims")
    return array.astype(dtype, copy=False).reshape(shape)


def _texts(content: bytes) -> Iterator[bytes]:
    start = 0
    while start + 4 <= len(content):
        size = int.from_bytes(content[start : start + 4], "little")
        yield content[start + 4 : start + 4 + size]
        start += 4 + size
