"""Tensors as bytes and back, in every datatype of the Open Inference Protocol."""

import struct

import numpy as np
import pytest

from servekit.codecs.datatypes import DTYPES, datatype_of_array, pack, unpack
from servekit.errors import InvalidInput
from servekit.tensors import bytes_tensor

NUMBERS = sorted(set(DTYPES) - {"BYTES", "BF16", "BOOL"})


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_keep_their_bytes(datatype: str) -> None:
    array = np.array([[0, 1], [100, 7]], DTYPES[datatype])
    content = bytes(pack(array, datatype))
    assert content == array.tobytes() and datatype_of_array(array) == datatype
    assert unpack(content, datatype, 4).tolist() == [0, 1, 100, 7]
    with pytest.raises(ValueError):
        unpack(content, datatype, 5)


def test_an_aligned_tensor_is_not_copied_and_another_one_is() -> None:
    body = memoryview(b"    " + np.arange(4, dtype="<f4").tobytes())
    array = unpack(body[4:], "FP32", 4)
    assert np.shares_memory(array, np.frombuffer(body, np.uint8)) and not array.flags.writeable
    shifted = unpack(memoryview(b" " + np.arange(4, dtype="<f4").tobytes())[1:], "FP32", 4)
    assert shifted.tolist() == [0, 1, 2, 3] and shifted.flags.aligned


def test_arrays_of_any_order_are_written_row_by_row() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert bytes(pack(array, "INT32")) == np.array([0, 3, 1, 4, 2, 5], "<i4").tobytes()
    assert bytes(pack(np.zeros((0, 3), np.float32), "FP32")) == b""


def test_truth_values_are_bytes_of_0_and_1() -> None:
    assert bytes(pack(np.array([True, False]), "BOOL")) == b"\x01\x00"
    assert unpack(b"\x01\x00", "BOOL", 2).tolist() == [True, False]
    assert unpack(b"", "BOOL", 0).tolist() == []
    with pytest.raises(InvalidInput, match="0 or 1"):
        unpack(b"\x02", "BOOL", 1)


def test_bytes_have_their_length_before_them() -> None:
    content = bytes.fromhex("02000000616200000000") + b"\x02\x00\x00\x00\xc3\xa9"
    assert pack(np.array([b"ab", b"", "é"], object), "BYTES") == content
    assert unpack(content, "BYTES", 3).tolist() == [b"ab", b"", "é".encode()]
    for wrong in (content[:-1], content + b"\0", struct.pack("<I", 2**32 - 1) + b"abc", b"\x01\x00\x00"):
        with pytest.raises(ValueError):
            unpack(wrong, "BYTES", 1)
    with pytest.raises(ValueError):
        unpack(content, "BYTES", 4)
    with pytest.raises(ValueError):
        unpack(b"", "BYTES", 2**60)


def test_bfloat16_is_rounded_to_the_nearest() -> None:
    values = np.array([1.0, -2.5, 3.14159, 65280.0, np.inf, -np.inf, np.nan, 1.00390625, 1.01171875], np.float32)
    content = pack(values, "BF16")
    assert len(content) == 2 * len(values)
    back = unpack(bytes(content), "BF16", len(values))
    assert back[:6].tolist() == [1.0, -2.5, 3.140625, 65280.0, np.inf, -np.inf] and np.isnan(back[6])
    assert back[7:].tolist() == [1.0, 1.015625]  # a half goes to the even one


def test_a_nan_of_any_bits_stays_one() -> None:
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(unpack(bytes(pack(nan, "BF16")), "BF16", 2)).all()


def test_text_and_objects_are_bytes() -> None:
    assert datatype_of_array(np.array(["a"])) == datatype_of_array(bytes_tensor([b"a"])) == "BYTES"
    assert bytes(pack(np.array(["a"]), "BYTES")) == b"\x01\x00\x00\x00a"
