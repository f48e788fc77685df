"""The digit classifier: a picture in, a digit out."""

import base64
from typing import Any

from flask import Blueprint

from servekit import ext
from servekit.codecs.values import decode_base64
from servekit.errors import InvalidInput
from servekit.model import Model
from servekit.openapi import DIGIT_PNG, MULTIPART, Example
from servekit.payload import Payload, Upload
from servekit.tensors import Tensors, bytes_tensor

bp = Blueprint("mnist", __name__)


@bp.post("/mnist/predict")
def predict() -> dict[str, Any]:
    """Classify one PNG or JPEG: multipart `file`, a raw image body, or JSON `{"image": "<base64>"}`.

    Answers `{"predicted_class": 7, "confidence": 0.99, "probabilities": [...]}`. 400 for what is no such image or too
    large, 504 past the deadline.
    """
    content = read_image(ext.payload())
    answer = ext.repository().get("mnist").predict({"image": bytes_tensor([content])}, ext.deadline())
    return {name: answer[name][0].tolist() for name in ("predicted_class", "confidence", "probabilities")}


@bp.post("/predict/batch")
@bp.post("/mnist/predict/batch")
def predict_batch() -> dict[str, Any]:
    """Classify many images, multipart `files` sent several times, in one pass of the network.

    Answers `{"predictions": [{"file", "predicted_class", "confidence"}, ...]}` in their order; a file that cannot be
    read has `{"file", "error"}` in its place. 400 without files, 413 for more than 1000.
    """
    members = ext.payload().all("files")
    if not members:
        raise InvalidInput("There are no files; send them as multipart, with curl: -F files=@a.png -F files=@b.png")
    if not all(isinstance(member, Upload) for member in members):
        raise InvalidInput("files is text, not a file; with curl write -F files=@digit.png")
    images = [{"image": bytes_tensor([upload.content])} for upload in members]
    answers = ext.repository().get("mnist").predict_each(images, ext.deadline())
    return {"predictions": [describe(upload, answer) for upload, answer in zip(members, answers, strict=True)]}


def examples(model: Model) -> list[Example]:
    """Return requests for the model that this contract serves."""
    if model.name != "mnist":
        return []
    as_text = base64.b64encode(DIGIT_PNG).decode()
    batch = {"files": [DIGIT_PNG, DIGIT_PNG]}
    return [
        Example("mnist.predict", {}, {"file": DIGIT_PNG}, MULTIPART, summary="A picture of a one"),
        Example("mnist.predict", {}, DIGIT_PNG, "image/png", summary="A picture of a one"),
        Example("mnist.predict", {}, {"image": as_text}, summary="A picture of a one"),
        Example("mnist.predict_batch", {}, batch, MULTIPART, summary="Two pictures of a one"),
    ]


def read_image(payload: Payload) -> bytes:
    """Return the encoded image that `payload` carries; raise InvalidInput."""
    file, image = payload.one("file"), payload.one("image")
    if file is not None and image is not None:
        raise InvalidInput("There are two images; send either file or image.")
    if isinstance(file, Upload):
        return file.content
    if isinstance(image, str):
        return decode_base64(image)
    if file is not None:
        raise InvalidInput("file is text, not a file; with curl write -F file=@digit.png")
    raise InvalidInput('There is no image; send one as multipart file, as a raw body, or as JSON {"image": "<base64>"}.')


def describe(upload: Upload, answer: Tensors | InvalidInput) -> dict[str, Any]:
    """Return the entry of one file in the answer of a batch."""
    if isinstance(answer, InvalidInput):
        return {"file": upload.filename, "error": str(answer)}
    return {
        "file": upload.filename,
        "predicted_class": answer["predicted_class"][0].item(),
        "confidence": answer["confidence"][0].item(),
    }
