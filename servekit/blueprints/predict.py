"""`/predict`, the one address for both models: what is sent says which of them is meant."""

import base64
from typing import Any

from flask import Blueprint, current_app, request

from servekit import ext
from servekit.errors import InvalidInput
from servekit.model import Model
from servekit.openapi import DIGIT_PNG, FORM, JSON, MULTIPART, Example
from servekit.shedding import BY_BODY

bp = Blueprint("predict", __name__)


@bp.post("/predict")
def predict() -> Any:
    """Answer a `value` as `/linear/predict` does and an image as `/mnist/predict` does; 400 for neither or both."""
    payload = ext.payload()
    has_value = "value" in payload
    has_image = "file" in payload or "image" in payload
    if has_value == has_image:
        raise InvalidInput("Send either a number as value=5 or an image as multipart file, raw PNG or JPEG.")
    if not request.mimetype.startswith("image/"):
        request.environ[BY_BODY] = True
    endpoint = "linear.predict" if has_value else "mnist.predict"
    return current_app.view_functions[endpoint]()


def examples(model: Model) -> list[Example]:
    """Return requests for the models that this contract serves."""
    if model.name == "linear":
        bodies: list[tuple[Any, str]] = [({"value": 5}, FORM), ({"value": 5}, JSON)]
        return [Example("predict.predict", {}, body, kind, summary="A number") for body, kind in bodies]
    if model.name == "mnist":
        as_text = {"image": base64.b64encode(DIGIT_PNG).decode()}
        bodies = [({"file": DIGIT_PNG}, MULTIPART), (DIGIT_PNG, "image/png"), (as_text, JSON)]
        return [Example("predict.predict", {}, body, kind, summary="A picture of a one") for body, kind in bodies]
    return []
