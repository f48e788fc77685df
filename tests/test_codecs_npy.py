"""Arrays of numpy into Tensors and back: no body makes the server unpickle, or take memory for what is not there."""

import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servekit.codecs.npy import dump_npy, load_npy, read_npy, write_npy
from servekit.errors import InvalidInput, NotAcceptable
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import bytes_tensor

OUT = TensorSpec("y", "float32", (-1,))
IMAGE = Signature((TensorSpec("image", "float32", (-1, 1, 2, 3)),), (OUT,))
TWO = Signature((TensorSpec("a", "int32", (-1,)), TensorSpec("b", "float32", (-1, 2))), (OUT,))


def npy(array: Any, **more: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **more)
    return stream.getvalue()


def with_header(text: str, content: bytes = b"", version: int = 1) -> bytes:
    header = text.encode() + b"\n"
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    hidden = with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(Payload(canary)))
    for body in (npy(np.array([Payload(canary)], dtype=object), allow_pickle=True), hidden, pickle.dumps(Payload(canary))):
        with pytest.raises(InvalidInput):
            load_npy(body)
    assert not canary.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9223372036854775807), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1.0,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",  # two follow
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 60 + "2), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<U2', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<f16', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': 2, 'shape': (2,), }",
        "{'descr': '<f4', 'shape': (2,), }",
        "__import__('os').system('true')",
        "(" * 5000 + ")" * 5000,
        "{" * 9000,
        "-" * 9000 + "1",
        "",
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(header: str) -> None:
    for version in (1, 2):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidInput):
                load_npy(with_header(header, np.ones(2, np.float32).tobytes(), version))
            assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        finally:
            tracemalloc.stop()


def test_what_is_cut_off_or_of_another_kind_is_refused() -> None:
    whole = npy(np.ones(2, np.float32))
    for body in [b"", whole[:5], whole[:20], whole[:-1], whole + b"x", b"PK\x03\x04", b"\x93NUMPY\x03\x00" + whole[8:]]:
        with pytest.raises(InvalidInput):
            load_npy(body)
    long = with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + " " * 30_000, whole[-8:], 2)
    with pytest.raises(InvalidInput, match="no .npy file"):
        load_npy(long)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "|i1", "<i8", ">i8", "<u2", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_in_any_order_are_read(dtype: str, order: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    assert np.array_equal(load_npy(npy(np.array(array, order=order))), array)


@pytest.mark.parametrize("padding", range(4))
def test_numbers_lie_where_their_dtype_may(padding: int) -> None:
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }" + " " * padding
    array = load_npy(with_header(header, np.float32([1, 2]).tobytes()))
    assert array.flags.aligned and array.tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(4, 1, 2, 3), (4, 2, 3), (4, 6), (4, 2, 3, 1)])
def test_axes_of_size_one_may_be_missing_and_rows_flat(shape: tuple[int, ...]) -> None:
    image = read_npy(npy(np.arange(24.0).reshape(shape, order="C")), IMAGE)["image"]
    assert (image.shape, image.dtype) == ((4, 1, 2, 3), np.float32)
    assert image.ravel().tolist() == list(range(24))


def test_other_shapes_and_values_are_refused() -> None:
    for array, reason in [
        (np.zeros((4, 3, 2)), "must have the shape"),
        (np.zeros((2, 3)), "must have the shape"),
        (np.float32(1), "must have the shape"),
        (np.full((1, 6), 1e300), "too large for float32"),
    ]:
        with pytest.raises(InvalidInput, match=reason):
            read_npy(npy(array), IMAGE)
    with pytest.raises(InvalidInput, match="must be integers"):
        read_npy(npy(np.array([[1.5, 2, 3]])), TWO)
    with pytest.raises(InvalidInput, match="several inputs"):
        read_npy(npy(np.zeros(3)), TWO)
    with pytest.raises(InvalidInput, match="holds bytes"):
        read_npy(npy(np.zeros(3)), Signature((TensorSpec("t", "bytes", (-1,)),), (OUT,)))
    with pytest.raises(InvalidInput, match="2 rows at most"):
        read_npy(npy(np.zeros(3)), Signature((TensorSpec("t", "float32", (-1,)),), (OUT,), max_rows=2))


def test_several_inputs_stand_side_by_side() -> None:
    tensors = read_npy(npy(np.array([[1, 2, 3], [4, 5, 6]])), TWO)
    assert (tensors["a"].tolist(), tensors["b"].tolist()) == ([1, 4], [[2, 3], [5, 6]])


def test_a_model_that_is_not_batched_sees_no_rows() -> None:
    alone = Signature((TensorSpec("x", "float32", (-1, 2)),), (OUT,), is_batched=False)
    assert read_npy(npy(np.array([1.0, 2.0])), alone)["x"].tolist() == [[1, 2]]
    assert load_npy(write_npy({"y": np.array([[7, 8]])}, alone)).tolist() == [7, 8]


def test_one_output_keeps_its_form_and_several_stand_side_by_side() -> None:
    one = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    written = load_npy(write_npy({"y": one}, IMAGE))
    assert written.dtype == np.float32 and np.array_equal(written, one)
    both = Signature(IMAGE.inputs, (TensorSpec("b", "int64", (-1,)), TensorSpec("a", "float32", (-1, 2))))
    written = load_npy(write_npy({"a": np.array([[0.5, 1]], np.float32), "b": np.array([3])}, both))
    assert (written.dtype, written.tolist()) == (np.float64, [[3, 0.5, 1]])
    with pytest.raises(NotAcceptable, match="holds bytes"):
        write_npy({"y": bytes_tensor([b"a"])}, IMAGE)
    assert np.array_equal(np.load(io.BytesIO(dump_npy(one)), allow_pickle=False), one)
