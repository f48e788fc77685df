"""Encoded pictures in, a class and its probability out."""

import dataclasses
import io
import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, ImageStat, PngImagePlugin

from servekit.errors import InputTooLarge, InvalidInput
from servekit.handlers.base import Handler
from servekit.signature import Signature
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import Tensors

log = logging.getLogger(__name__)
# Pillow warns of what is odd in a file: whoever sends files would write into our log.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 4_000_000  # a tiny file may declare a huge picture; a decoder that believes it takes all memory

PngImagePlugin.MAX_TEXT_MEMORY = 2**22  # bytes of a file's texts, of which a camera's are read; Pillow keeps 64 MiB

IMAGE = "image"  # what clients call the input

_MODES = {1: "L", 3: "RGB"}  # channels of the network -> mode of Pillow
_LIGHT = 128  # of 255: from here on a pixel counts as light
_TURNS = {  # EXIF orientation -> what undoes it; 1 is upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_SOURCES = frozenset(("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"))
_DARK = bytes(range(_LIGHT))
_VALUES = (np.arange(256) / 255).astype(np.float32)  # of a byte, between 0 and 1
_INVERSE = _VALUES[::-1].copy()


class ImageHandler(Handler):
    """Reads PNG and JPEG into `(rows, channels, height, width)` float32 between 0 and 1, and classifies.

    The one input of `model.json` gives channels (1 or 3), height and width; the one output holds the logits.
    """

    def __init__(self, spec: ModelSpec, background: str | None = None) -> None:
        """`background` ("black" or "white") is what the network's pictures are drawn on, if it matters.

        A picture whose border shows the other one is inverted: a digit in ink on paper for a network that learnt from
        light digits on black. Without it pictures are taken as they are.
        """
        super().__init__(spec)
        if background not in (None, "black", "white"):
            raise ValueError("background must be black or white")
        self._background = background
        if len(spec.inputs[0].shape) != 4 or spec.inputs[0].shape[1] not in _MODES:
            raise ValueError("its input must have the shape -1, channels (1 or 3), height, width")
        _, channels, self._height, self._width = spec.inputs[0].shape
        self._mode = _MODES[channels]
        Image.preinit()  # Pillow finds its decoders when it first needs one: the first client would pay for that

    @property
    def signature(self) -> Signature:
        """`image`, encoded or as pixels; `predicted_class`, `confidence` and `probabilities`."""
        classes = self.spec.outputs[0].shape[-1]
        outputs = (
            TensorSpec("predicted_class", "int64", (-1,)),
            TensorSpec("confidence", "float32", (-1,)),
            TensorSpec("probabilities", "float32", (-1, classes)),
        )
        image = dataclasses.replace(self.spec.inputs[0], name=IMAGE)
        labels = {"probabilities": self.spec.labels} if self.spec.labels else {}
        return Signature((image,), outputs, frozenset((IMAGE,)), labels)

    def preprocess(self, tensors: Tensors) -> Tensors:
        """Decode `image`, an array of encoded pictures, or take the pixels that it holds as they are.

        Raises InvalidInput for one that cannot be read, and for pixels of another shape.
        """
        if IMAGE not in tensors:
            raise InvalidInput("This model takes images.")
        contents = tensors[IMAGE]
        if contents.dtype != object:
            return {self.spec.inputs[0].name: self._as_given(contents)}
        pixels = np.empty((len(contents), *self.spec.inputs[0].shape[1:]), np.float32)
        for row, content in zip(pixels, contents, strict=True):
            row[...] = self._pixels(content)
        return {self.spec.inputs[0].name: pixels}

    def postprocess(self, tensors: Tensors) -> Tensors:
        """Return `predicted_class` and `confidence`, `(rows,)`, and `probabilities`, `(rows, classes)`."""
        # The reductions of ufuncs: numpy's methods of the same names go through Python, which rows this short feel.
        logits = tensors[self.spec.outputs[0].name]
        weights = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
        probabilities = weights / np.add.reduce(weights, axis=1, keepdims=True)
        return {
            "predicted_class": probabilities.argmax(axis=1),
            "confidence": np.maximum.reduce(probabilities, axis=1),
            "probabilities": probabilities,
        }

    def _as_given(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        if pixels.shape[1:] != self.spec.inputs[0].shape[1:] or pixels.dtype.kind not in "fiu":
            raise InvalidInput(f"The pixels must be numbers, of the shape {list(self.spec.inputs[0].shape)}.")
        return pixels.astype(np.float32, copy=False)

    def _pixels(self, content: bytes) -> NDArray[np.float32]:
        image = decode(content)
        data = image.tobytes()
        has_light_border = self._background is not None and _has_light_border(image, data)
        if image.size != (self._width, self._height):
            fill = "white" if has_light_border else "black"
            image = ImageOps.pad(image, (self._width, self._height), Image.Resampling.LANCZOS, color=fill)
            data = image.tobytes()
        if image.mode != self._mode:
            data = image.convert(self._mode).tobytes()
        is_inverse = self._background is not None and has_light_border != (self._background == "white")
        pixels = (_INVERSE if is_inverse else _VALUES).take(np.frombuffer(data, np.uint8))
        return pixels.reshape(self._height, self._width, -1).transpose(2, 0, 1)


class PixelsHandler(ImageHandler):
    """Reads pictures as ImageHandler does, and answers with the pixels: the first model of an ensemble.

    Its `model.json` names no network; its one input and its one output have the same name and shape.
    """

    @property
    def signature(self) -> Signature:
        """`image`, encoded or as pixels, and the output of `model.json`."""
        return dataclasses.replace(super().signature, outputs=self.spec.outputs, labels={})

    def postprocess(self, tensors: Tensors) -> Tensors:
        """Return the pixels, `(rows, channels, height, width)` float32 between 0 and 1."""
        return tensors


def decode(content: bytes) -> Image.Image:
    """Decode a PNG or JPEG of at most MAX_PIXELS into an upright picture of mode L or RGB, without transparency.

    Raises InvalidInput with what is wrong with it, InputTooLarge for one of more pixels.
    """
    if not content:
        raise InvalidInput("The file is empty; send a PNG or JPEG image.")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputTooLarge(f"The image is too large; at most {MAX_PIXELS} pixels are read.") from None
    except MemoryError:
        raise
    except Exception:  # the header of a hostile file fails in many ways, all of which mean the same here
        raise InvalidInput("The file is not an image that is read here; send PNG or JPEG.") from None
    if image.width * image.height > MAX_PIXELS:  # known from the header: nothing has been decoded yet
        raise InputTooLarge(f"The image is too large; at most {MAX_PIXELS} pixels are read.")
    try:
        image.load()
        return _opaque(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        log.debug("An image could not be decoded: %r", error)
        raise InvalidInput("The image is damaged or cut off; send the whole file.") from None


def _upright(image: Image.Image) -> Image.Image:
    """Turn `image` as its EXIF data say; EXIF that cannot be read says nothing.

    Pillow's own exif_transpose also writes the data anew, and fails on what it could read.
    """
    if _EXIF_SOURCES.isdisjoint(image.info):
        return image  # nothing to read, which takes longer to find out otherwise
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    """Return `image` as L or RGB of 8 bits, on a background if it was transparent."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip to 255 instead of scaling
        return Image.fromarray((np.asarray(image, np.float32) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        return _on_background(image.convert("RGBA"))
    return image if image.mode == "L" else image.convert("RGB")


def _on_background(image: Image.Image) -> Image.Image:
    """Put a transparent picture on white, or on black if what is visible of it is light: ink must show."""
    alpha = image.getchannel("A")
    is_visible = alpha.getextrema() != (0, 0)
    is_light = is_visible and ImageStat.Stat(image.convert("RGB").convert("L"), mask=alpha).mean[0] >= _LIGHT
    canvas = Image.new("RGBA", image.size, "black" if is_light else "white")
    return Image.alpha_composite(canvas, image).convert("RGB")


def _has_light_border(image: Image.Image, data: bytes) -> bool:
    """Return True if more than half of the outermost pixels are light; `data` are the bytes of `image`."""
    width = image.width
    if image.mode != "L":
        data = image.convert("L").tobytes()
    border = data[:width] + data[-width:] + data[::width] + data[width - 1 :: width]
    return 2 * len(border.translate(None, _DARK)) > len(border)
