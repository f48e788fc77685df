"""`/predict`, the one address for both models: what is sent says which of them is meant."""

from typing import Any

from flask import Blueprint, current_app

from servekit import ext
from servekit.errors import InvalidInput

bp = Blueprint("predict", __name__)


@bp.post("/predict")
def predict() -> Any:
    """Answer a `value` as `/linear/predict` does and an image as `/mnist/predict` does; 400 for neither or both."""
    payload = ext.payload()
    has_value = "value" in payload
    has_image = "file" in payload or "image" in payload
    if has_value == has_image:
        raise InvalidInput("Send either a number as value=5 or an image as multipart file, raw PNG or JPEG.")
    endpoint = "linear.predict" if has_value else "mnist.predict"
    return current_app.view_functions[endpoint]()
