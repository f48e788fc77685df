"""Compressed bodies: gzip, and deflate in the form that HTTP means (zlib, RFC 1950); bounded while they inflate."""

import zlib

from servekit.errors import InvalidInput, PayloadTooLarge, UnsupportedMediaType

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}  # of zlib: 31 reads and writes gzip's header and checksum


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Return what `body` holds in the Content-Encoding `encoding`: gzip, deflate, identity or "".

    No more than `limit` bytes are ever in memory: PayloadTooLarge. Raises UnsupportedMediaType for other encodings, and
    InvalidInput for a body that is damaged, cut off, or followed by more.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise UnsupportedMediaType("That Content-Encoding is not read; send gzip, deflate or none.")
    inflator = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        content = inflator.decompress(body, limit)
        if inflator.unconsumed_tail or not inflator.eof and inflator.decompress(b"", 1):
            raise PayloadTooLarge(f"The body inflates to too much; at most {limit} bytes are read.")
    except zlib.error:
        raise InvalidInput("The compressed body is damaged.") from None
    if not inflator.eof or inflator.unused_data:
        raise InvalidInput("The compressed body is cut off, or something follows it.")
    return content


def deflate(body: bytes, encoding: str) -> bytes:
    """Return `body` in the Content-Encoding gzip or deflate."""
    return zlib.compress(body, 1, _WINDOW_BITS[encoding])
