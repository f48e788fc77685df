"""Compressed bodies: both forms, bounded, and whole."""

import gzip
import zlib

import pytest

from servekit.codecs.compression import deflate, inflate
from servekit.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType


def test_both_forms_travel_both_ways() -> None:
    assert inflate(gzip.compress(b"hello"), "gzip", 100) == b"hello" == gzip.decompress(deflate(b"hello", "gzip"))
    assert inflate(zlib.compress(b"hello"), "deflate", 100) == b"hello" == zlib.decompress(deflate(b"hello", "deflate"))
    assert inflate(b"plain", "", 3) == b"plain" == inflate(b"plain", "identity", 3)


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_a_body_may_fill_the_limit(size: int) -> None:
    assert inflate(gzip.compress(b"x" * size), "gzip", 1000) == b"x" * size


@pytest.mark.parametrize("size", [1001, 100_000_000])
def test_a_bomb_is_refused_unexploded(size: int) -> None:
    with pytest.raises(PayloadTooLarge):
        inflate(gzip.compress(b"\0" * size), "gzip", 1000)


@pytest.mark.parametrize("body", [b"", b"nonsense", gzip.compress(b"x" * 50)[:-3], gzip.compress(b"a") + b"more"])
def test_damage_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        inflate(body, "gzip", 1000)


def test_other_encodings_are_refused() -> None:
    with pytest.raises(UnsupportedMediaType):
        inflate(b"x", "br", 1000)
