"""Compressed bodies: gzip, and deflate in the form that HTTP means (zlib, RFC 1950); bounded while they inflate."""

import io
import zlib
from collections.abc import Iterator
from typing import Any

from servekit.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType

_PIECE = 2**16  # bytes that are read or written at a time
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # of zlib: 31 reads and writes gzip's header and checksum


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Return what `body` holds in the Content-Encoding `encoding`: gzip, deflate, identity or "".

    No more than `limit` bytes and one are ever in memory: PayloadTooLarge. Raises UnsupportedMediaType for other encodings, and
    InvalidInput for a body that is damaged, cut off, or followed by more.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType("That Content-Encoding is not read; send gzip, deflate or none.")
    inflator = zlib.decompressobj(_WINDOW_BITS[encoding])
    content = io.BytesIO()
    try:
        for piece in _pieces(inflator, memoryview(body)):
            if content.tell() + len(piece) > limit:
                raise PayloadTooLarge(f"The body inflates to too much; at most {limit} bytes are read.")
            content.write(piece)
    except zlib.error:
        raise InvalidInput("The compressed body is damaged.") from None
    if not inflator.eof or inflator.unused_data:
        raise InvalidInput("The compressed body is cut off, or something follows it.")
    return content.getvalue()


def _pieces(inflator: Any, body: memoryview) -> Iterator[bytes]:
    """Inflate piece by piece: in one step zlib would hold all the pieces and their sum."""
    for start in range(0, len(body), _PIECE):
        rest = body[start : start + _PIECE]
        while rest and not inflator.eof:
            yield inflator.decompress(rest, _PIECE)
            rest = inflator.unconsumed_tail
        if inflator.eof:
            if start + _PIECE < len(body):
                inflator.decompress(b"more")  # which it notes
            return
    while piece := inflator.decompress(b"", _PIECE):
        yield piece


def deflate(body: bytes, encoding: str) -> bytes:
    """Return `body` in the Content-Encoding gzip or deflate."""
    return zlib.compress(body, 1, _WINDOW_BITS[encoding])
