"""Vertex AI's contract for custom containers: the routes that `AIP_*` variables name, and those of its REST clients.

Source: Vertex AI's "Custom container requirements for prediction".
"""

import base64
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from flask import Blueprint, Response, request
from flask.blueprints import BlueprintSetupState

from servekit import ext
from servekit.access import open_to_all
from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.instances import predictions_of, rows_of, zero_row
from servekit.codecs.values import decode_base64
from servekit.errors import InvalidInput, SettingError
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.openapi import Example
from servekit.payload import require_plain
from servekit.signature import Signature
from servekit.tensors import Tensors, byte_count, bytes_tensor

bp = Blueprint("vertex", __name__)
route = partial(bp.route, strict_slashes=False, merge_slashes=False)

JSON = "application/json"

_PATH = re.compile(r"/[A-Za-z0-9._~:/@!$&'()*+,;=-]*")  # of RFC 3986's path, what stands for itself
_RAW = ("image/", "application/octet-stream")
_ENDPOINT = "/v1/projects/<project>/locations/<location>/endpoints/<endpoint_id>"
# google.rpc.Code, by which Google's clients raise their exceptions
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


@bp.record
def add_routes(state: BlueprintSetupState) -> None:
    """Add the two routes that the platform names; raise SettingError for what cannot be an address."""
    health_path, predict_path = paths(os.environ)
    state.add_url_rule(health_path, "health", health, methods=["GET"], strict_slashes=False, merge_slashes=False)
    state.add_url_rule(predict_path, "predict", predict, methods=["POST"], strict_slashes=False, merge_slashes=False)


def paths(environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the addresses of the probe and of predictions; raise SettingError for those that cannot be."""
    endpoint, deployed = environ.get("AIP_ENDPOINT_ID", ""), environ.get("AIP_DEPLOYED_MODEL_ID", "")
    of_model = f"/v1/endpoints/{endpoint}/deployedModels/{deployed}"
    # without ids nobody has deployed it: the addresses of Vertex' own local runs
    defaults = (of_model, f"{of_model}:predict") if endpoint and deployed else ("/health", "/predict")
    found = []
    for variable, default in zip(("AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"), defaults, strict=True):
        path = environ.get(variable) or default
        if not _PATH.fullmatch(path):
            raise SettingError(
                f"{variable} must be the path of an address: a slash, then letters, digits and marks that need no escape."
            )
        found.append(path)
    return found[0], found[1]


# Routes.


@open_to_all
def health() -> Response:
    """Say whether predictions can be made: 200, or 503 with the reason."""
    ext.repository().require_ready()
    return _json({"status": "healthy"})


def predict() -> Response:
    """Answer `{"instances": [...]}` with `{"predictions": [...]}`, an element each; a raw body is one instance."""
    return _json({"predictions": _predictions(request.get_data(cache=False), request.headers.get("Content-Type", ""))})


@route(f"{_ENDPOINT}:predict", methods=["POST"])
def predict_by_endpoint(project: str, location: str, endpoint_id: str) -> Response:
    """Answer as the platform does to its own clients, whatever endpoint they name."""
    predictions = _predictions(request.get_data(cache=False), JSON)
    return _json({"predictions": predictions, "deployedModelId": os.environ.get("AIP_DEPLOYED_MODEL_ID", "")})


@route(f"{_ENDPOINT}:rawPredict", methods=["POST"])
def predict_raw_by_endpoint(project: str, location: str, endpoint_id: str) -> Response:
    """Answer a body as it is, or one that Google's client has wrapped as `{"httpBody": ...}`, with one wrapped again."""
    require_plain(request)
    body, kind = request.get_data(cache=False), request.headers.get("Content-Type", "")
    wrapped = None if kind.lower().startswith(_RAW) else ext.apart(len(body), lambda: _unwrapped(body))
    if wrapped is None:
        return _json({"predictions": _predictions(body, kind)})
    body, kind = wrapped
    answer = _dumped({"predictions": _predictions(body, kind)})
    return _json({"contentType": JSON, "data": base64.b64encode(answer).decode()})


def examples(model: Model) -> list[Example]:
    """Return requests that work for `model`: a row of zeros."""
    if model.signature is None:
        return []
    body = {"instances": [zero_row(model.signature)]}
    place = {"project": "p", "location": "l", "endpoint_id": "e"}
    return [
        Example("vertex.health", {}, summary="Probe"),
        Example("vertex.predict", {}, body, summary="One instance"),
        Example("vertex.predict_by_endpoint", place, body, summary="One instance, as Google's client asks"),
        Example("vertex.predict_raw_by_endpoint", place, body, summary="One instance, as it is"),
    ]


# Bodies.


def _predictions(body: bytes, kind: str) -> Any:
    """Return a prediction for each instance in `body`, whose content type is `kind`; raise as Model.predict does."""
    model = ext.default_model()
    signature = ext.signature_of(model)
    require_plain(request)
    tensors = ext.apart(len(body), lambda: _tensors(body, kind.lower(), signature))
    answer = model.predict(tensors, ext.deadline())
    return ext.apart(byte_count(answer), lambda: _shown(answer, signature))


def _shown(answer: Tensors, signature: Signature) -> Any:
    predictions = predictions_of(answer, signature)
    is_finite = all(array.dtype.kind != "f" or np.isfinite(array).all() for array in answer.values())
    return predictions if is_finite else _with_nulls(predictions)


def _tensors(body: bytes, kind: str, signature: Signature) -> Tensors:
    if kind.startswith(_RAW) and len(signature.inputs) == 1 and signature.encoded:
        return {signature.inputs[0].name: bytes_tensor([body])}
    value = load_json(body)
    if not isinstance(value, dict) or "instances" not in value:
        raise InvalidInput('The JSON must be an object with instances, such as {"instances": [[5]]}.')
    if not isinstance(value.get("parameters"), dict | None):
        raise InvalidInput("The parameters must be an object.")
    return rows_of(value["instances"], signature, takes_whole_floats=True)


def _unwrapped(body: bytes) -> tuple[bytes, str] | None:
    """Return body and content type of the google.api.HttpBody that `body`, JSON, wraps; None if it wraps none."""
    document = load_json(body)
    if not isinstance(document, dict) or "httpBody" not in document:
        return None
    value = document["httpBody"]
    if not isinstance(value, dict) or not isinstance(value.get("data", ""), str):
        raise InvalidInput("httpBody must be an object with contentType and data, in base64.")
    kind = value.get("contentType", JSON)
    if not isinstance(kind, str):
        raise InvalidInput("The contentType of httpBody must be text.")
    return decode_base64(value.get("data", "")), kind


def _with_nulls(value: Any) -> Any:
    """Return `value` with null for what is not finite, which neither JSON nor Google's values can say."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_with_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: _with_nulls(item) for name, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _dumped(value: Any) -> bytes:
    return dump_json(value) + b"\n"


def _json(value: Any) -> Response:
    return PlainResponse(_dumped(value), content_type=JSON)


# Errors, as Google's clients read them.


def write_error(message: str, status: int) -> Response:
    """Write an error as `{"error": {"code", "message", "status"}}`."""
    response = _json({"error": {"code": int(status), "message": message, "status": _CODES.get(int(status), "UNKNOWN")}})
    response.status_code = int(status)
    return response


ext.dress_blueprint(bp, write_error)
