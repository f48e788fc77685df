"""Damaged pictures: each is a picture or refused, whatever Pillow makes of it, and none takes long or much memory."""

import io
import zlib

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from servekit.errors import InvalidInput
from servekit.handlers.image import MAX_PIXELS, decode
from tests.fuzz.made import WORDS, bounded, damaged


def saved(mode: str, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG with a sum that is right."""
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


EXIF = Image.Exif()
EXIF[0x0112] = 6
PNGS = tuple(saved(mode, "PNG") for mode in ("L", "RGB", "RGBA", "P", "1", "LA", "I;16"))
JPEGS = (saved("L", "JPEG"), saved("RGB", "JPEG", progressive=True), saved("CMYK", "JPEG"), saved("RGB", "JPEG", exif=EXIF))
MARKS = (
    *WORDS,
    b"IHDR",
    b"IDAT",
    b"PLTE",
    b"tRNS",
    b"\xff\xd8",
    b"\xff\xda",
    b"\xff\xc4",
    b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03",
    b"\x7f\xff\xff\xff",
)


def require_picture(content: bytes) -> None:
    """Fail unless `content` is refused, or decoded into a picture that the handler can go on with."""
    try:
        image = bounded(decode, content)
    except InvalidInput:
        return
    assert image.mode in ("L", "RGB") and image.width * image.height <= MAX_PIXELS
    assert len(image.tobytes()) == image.width * image.height * len(image.getbands())


@given(damaged((*PNGS, *JPEGS), MARKS, most=3))
def test_no_damaged_file_hurts_the_decoder(content: bytes) -> None:
    require_picture(content)


@given(
    st.integers(0, 3000) | st.integers(0, 2**32 - 1),
    st.integers(0, 3000) | st.integers(0, 2**32 - 1),
    st.sampled_from((1, 2, 4, 8, 16)) | st.integers(0, 255),
    st.sampled_from((0, 2, 3, 4, 6)) | st.integers(0, 255),
    st.integers(0, 1),
    st.lists(
        st.tuples(
            st.sampled_from((b"IDAT", b"PLTE", b"tRNS", b"eXIf", b"iTXt", b"zTXt", b"iCCP", b"acTL", b"fcTL", b"IHDR")),
            st.binary(max_size=30),
        )
    ),
    st.binary(max_size=40) | st.just(bytes(2**17)),
)
def test_no_png_with_right_sums_hurts_the_decoder(
    width: int, height: int, depth: int, color: int, interlace: int, others: list[tuple[bytes, bytes]], pixels: bytes
) -> None:
    try:
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((depth, color, 0, 0, interlace))
    except OverflowError:
        return
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunk(*one) for one in others)
    require_picture(content + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b""))
