import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from servekit.errors import InvalidInput
from servekit.handlers.image import MAX_PIXELS, ImageHandler, PixelsHandler, decode
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import bytes_tensor


def make_spec(channels: int = 1, height: int = 28, width: int = 28) -> ModelSpec:
    image = TensorSpec("image", "float32", (-1, channels, height, width))
    return ModelSpec("h:H", "n:N", inputs=(image,), outputs=(TensorSpec("logits", "float32", (-1, 3)),), files={})


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def digit() -> Image.Image:
    """A one in light ink on black, off the middle so that turning it shows."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:20, 17:20] = 250
    pixels[4:7, 10:20] = 130
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def handler() -> ImageHandler:
    return ImageHandler(make_spec(), background="black")


def read(handler: ImageHandler, *files: bytes) -> np.ndarray:
    return handler.preprocess({"image": bytes_tensor(files)})["image"]


def test_a_picture_of_the_right_form_is_not_touched(handler: ImageHandler, digit: Image.Image) -> None:
    pixels = read(handler, encode(digit), encode(digit))
    assert (pixels.shape, pixels.dtype) == ((2, 1, 28, 28), np.float32)
    assert (pixels[0, 0] * 255 == np.asarray(digit)).all()


def clear(image: Image.Image) -> Image.Image:
    """The ink of `image` alone, its background transparent."""
    rgba = Image.new("RGBA", image.size, (255, 255, 255, 0))
    rgba.putalpha(image)
    return rgba


def dark_ink(image: Image.Image) -> Image.Image:
    """Black ink on nothing."""
    rgba = Image.new("RGBA", image.size, (0, 0, 0, 0))
    rgba.putalpha(image)
    return rgba


@pytest.mark.parametrize(
    ("convert", "kind", "options"),
    [
        (lambda image: image.convert("RGB"), "PNG", {}),
        (lambda image: image.convert("RGBA"), "PNG", {}),
        (lambda image: image.convert("LA"), "PNG", {}),
        (lambda image: image.convert("P"), "PNG", {}),
        (lambda image: image.convert("RGB").quantize(16), "PNG", {}),
        (lambda image: Image.fromarray(np.asarray(image).astype(np.uint16) * 257), "PNG", {}),
        (lambda image: ImageOps.invert(image), "PNG", {}),
        (clear, "PNG", {}),
        (dark_ink, "PNG", {}),
        (lambda image: image, "JPEG", {"quality": 100}),
        (lambda image: image.convert("RGB").convert("CMYK"), "JPEG", {"quality": 100, "subsampling": 0}),
        (lambda image: ImageOps.invert(image.convert("RGB")), "JPEG", {"quality": 100}),
        (lambda image: image.resize((280, 280), Image.Resampling.NEAREST), "PNG", {}),
        (lambda image: image.resize((14 * 4, 14 * 4), Image.Resampling.NEAREST), "JPEG", {"quality": 100}),
    ],
    ids="RGB RGBA LA P palette 16bit inverted light-on-clear dark-on-clear JPEG CMYK dark-JPEG tenfold double-JPEG".split(),
)
def test_other_forms_mean_the_same_digit(
    handler: ImageHandler, digit: Image.Image, convert: object, kind: str, options: dict[str, object]
) -> None:
    pixels = read(handler, encode(convert(digit), kind, **options))[0, 0] * 255
    difference = np.abs(pixels - np.asarray(digit, np.float32))
    assert difference.mean() < 4, difference.max()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_rotation_is_undone_as_pillow_would(digit: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(digit, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert (np.asarray(decode(content)) == np.asarray(expected)).all()


@pytest.mark.parametrize("exif", [b"garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\4abc\0\0\0\0\0", b"Exif\0\0"])
def test_exif_that_cannot_be_read_says_nothing(digit: Image.Image, exif: bytes) -> None:
    for kind in ("JPEG", "PNG"):
        content = encode(digit, kind, exif=exif)
        assert np.abs(np.asarray(decode(content), np.float32) - np.asarray(digit)).mean() < 4


def test_a_wide_picture_is_not_squeezed(handler: ImageHandler) -> None:
    wide = Image.new("L", (56, 28), 0)
    wide.paste(255, (14, 0, 42, 28))  # a square in the middle
    pixels = read(handler, encode(wide))[0, 0]
    assert pixels[:6].max() == 0 and pixels[-6:].max() == 0  # bars above and below
    assert pixels[14, 8:20].min() > 0.98  # the square is still a square: 14 x 14
    assert pixels[14, :5].max() < 0.2


def test_colour_and_size_follow_the_network() -> None:
    handler = ImageHandler(make_spec(channels=3, height=4, width=6))
    pixels = read(handler, encode(Image.new("RGB", (6, 4), (255, 0, 51))))
    assert pixels.shape == (1, 3, 4, 6)
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])


def test_without_a_background_nothing_is_inverted() -> None:
    white = read(ImageHandler(make_spec()), encode(Image.new("L", (28, 28), 255)))
    assert white.min() == 1.0
    assert read(ImageHandler(make_spec(), background="white"), encode(Image.new("L", (28, 28), 0))).min() == 1.0
    with pytest.raises(ValueError, match="black or white"):
        ImageHandler(make_spec(), background="blue")


def test_what_a_handler_cannot_take_is_said() -> None:
    with pytest.raises(ValueError, match="its input must have the shape"):
        ImageHandler(make_spec(channels=2))
    with pytest.raises(InvalidInput, match="takes images"):
        ImageHandler(make_spec()).preprocess({"value": np.zeros(1)})


def test_logits_become_probabilities(handler: ImageHandler) -> None:
    answer = handler.postprocess({"logits": np.float32([[0, 1000, 0], [np.log(1), np.log(2), np.log(1)]])})
    assert answer["predicted_class"].tolist() == [1, 1]
    assert answer["confidence"].tolist() == pytest.approx([1.0, 0.5])
    np.testing.assert_allclose(answer["probabilities"], [[0, 1, 0], [0.25, 0.5, 0.25]], atol=1e-7)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares a huge picture."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(2001, 2000), (12_000, 12_000), (60_000, 60_000)])
def test_a_picture_that_declares_too_many_pixels_is_never_decoded(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match=f"at most {MAX_PIXELS} pixels"):
        decode(bomb(*size))


def test_the_largest_picture_is_read() -> None:
    assert decode(encode(Image.new("L", (2000, 2000)))).size == (2000, 2000)


@pytest.mark.parametrize("content", [b"GIF89a" + b"\0" * 50, b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_png_or_jpeg_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInput, match="send PNG or JPEG|damaged"):
        decode(content)
    with pytest.raises(InvalidInput):
        decode(encode(Image.new("L", (9, 9)), "GIF"))


def test_an_empty_file_says_so() -> None:
    with pytest.raises(InvalidInput, match="The file is empty"):
        decode(b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    content = encode(Image.fromarray(noise), kind)
    with pytest.raises(InvalidInput, match="damaged or cut off"):
        decode(content[: len(content) // 2])


def test_no_damage_to_a_picture_causes_anything_but_a_refusal() -> None:
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x829A] = 6, "a description", 0.1
    originals = [
        encode(noise, "JPEG", exif=exif),
        encode(noise, "PNG", exif=exif),
        encode(noise.quantize(7), "PNG", transparency=bytes(range(7))),
        encode(noise.convert("L"), "PNG", transparency=3),
    ]
    refused = 0
    for original in originals:
        for _ in range(500):
            damaged = np.frombuffer(original, np.uint8).copy()
            places = random.integers(0, len(damaged), 5)
            damaged[places] = random.integers(0, 256, 5)
            try:
                decode(repaired(damaged.tobytes()))
            except InvalidInput:
                refused += 1
    assert 0 < refused < 2000


def repaired(content: bytes) -> bytes:
    """Return a damaged PNG with its checksums made right, so that the damage goes deeper; others as they are."""
    chunks, start = [content[:8]], 8
    while content[:4] == b"\x89PNG" and start + 12 <= len(content):
        length = struct.unpack_from(">I", content, start)[0]
        body = content[start + 4 : start + 8 + length]
        chunks.append(struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body)))
        start += 12 + length
    return b"".join(chunks) if len(chunks) > 1 else content


def test_pixels_are_those_that_a_classifier_sees(handler: ImageHandler, digit: Image.Image) -> None:
    output = TensorSpec("pixels", "float32", (-1, 1, 28, 28))
    pixels = PixelsHandler(dataclasses.replace(make_spec(), outputs=(output,)), background="black")
    signature = pixels.signature
    assert (signature.outputs, signature.encoded, signature.labels) == ((output,), frozenset(("image",)), {})
    sent = {"image": bytes_tensor([encode(digit)])}
    np.testing.assert_array_equal(
        pixels.postprocess(pixels.preprocess(sent))["image"], handler.preprocess(sent)["image"]
    )
