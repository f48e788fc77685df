"""What the fuzz tests are made of: damaged bytes, signatures with tensors that fit them, and a bound on what reading costs."""

import math
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from servekit.signature import Signature, array_dtype
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

SECONDS = 2.0  # of a processor, for any small body: an honest one takes a millisecond
MEMORY = 32 * 2**20  # bytes that a small body may make its reader take
NUMBERS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")

WORDS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"]",
    b",",
    b":",
    b"-1",
    b"1e999",
    b"9" * 30,
    b"null",
    b"NaN",
    b"\\ud800",
)


def bounded(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `call(*arguments)` returns; fail if that takes long, or much memory."""
    tracemalloc.start()
    started = time.thread_time()
    try:
        return call(*arguments)
    finally:
        seconds, (_, peak) = time.thread_time() - started, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert seconds < SECONDS and peak < MEMORY, f"{seconds:.1f} s, {peak / 2**20:.0f} MiB"


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = WORDS, most: int = 4) -> bytes:
    """Draw one of `seeds` with up to `most` places lost, filled, or repeated; or bytes of any kind."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from((0, 1, 2, 4, 20))))
        filling = draw(st.sampled_from(words) | st.binary(max_size=4) | st.just(data[start:stop] * 2))
        data = data[:start] + filling + data[stop:]
    return data


def tensors_of(spec: TensorSpec, rows: int) -> st.SearchStrategy[NDArray[Any]]:
    """Arrays that fit `spec` with `rows` rows; an open axis has one to three entries."""
    sizes = st.tuples(*(st.integers(1, 3) if size == -1 else st.just(size) for size in spec.shape[1:]))
    if spec.dtype == "bytes":
        return sizes.flatmap(lambda shape: _texts((rows, *shape)))
    return sizes.flatmap(lambda shape: arrays.arrays(array_dtype(spec), (rows, *shape)))


def _texts(shape: tuple[int, ...]) -> st.SearchStrategy[NDArray[Any]]:
    texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=4)
    return st.lists(texts, min_size=math.prod(shape), max_size=math.prod(shape)).map(
        lambda items: bytes_tensor([item.encode() for item in items]).reshape(shape)
    )


@st.composite
def signatures(draw: st.DrawFn, dtypes: Sequence[str] = (*NUMBERS, "bytes"), most: int = 3) -> Signature:
    """Draw what a model may take; it gives the same back, under the same names."""
    count = draw(st.integers(1, most))
    sizes = st.lists(st.integers(1, 3), max_size=2)
    specs = [TensorSpec(name, draw(st.sampled_from(dtypes)), (-1, *draw(sizes))) for name in ("a", "b", "c")[:count]]
    return Signature(tuple(specs), tuple(specs))


@st.composite
def requests(
    draw: st.DrawFn, dtypes: Sequence[str] = (*NUMBERS, "bytes"), most: int = 3
) -> tuple[Signature, dict[str, Any]]:
    """Draw a signature and tensors that fit it, one to three rows."""
    signature, rows = draw(signatures(dtypes, most)), draw(st.integers(1, 3))
    return signature, {spec.name: draw(tensors_of(spec, rows)) for spec in signature.inputs}


def same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Tell whether two arrays have the same dtype, shape and values; nan is like nan."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=3), inner, max_size=3),
    max_leaves=12,
)
