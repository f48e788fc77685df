import numpy as np

from servekit.tensors import bytes_tensor, concatenate, row_count, slice_rows


def test_rows_are_counted_sliced_and_joined() -> None:
    tensors = {"a": np.arange(6).reshape(3, 2), "b": np.arange(3)}
    assert row_count(tensors) == 3
    parts = [slice_rows(tensors, slice(0, 1)), slice_rows(tensors, slice(1, 3))]
    joined = concatenate(parts)
    assert all((joined[name] == tensors[name]).all() for name in tensors)
    assert concatenate([tensors]) is tensors


def test_byte_strings_keep_their_trailing_zeros() -> None:
    assert bytes_tensor([b"a\0\0", b""]).tolist() == [b"a\0\0", b""]
