"""TorchServe's `/predictions/<model>` for models of the model store, at servekit's own address."""

import dataclasses
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from flask import Blueprint, Response, request
from numpy.typing import NDArray

from servekit import ext
from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.instances import predictions_of, rows_of, zeros_of
from servekit.errors import InvalidInput, ModelNotFound, VersionNotFound
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.openapi import Example
from servekit.payload import FORM, JSON, MULTIPART, Upload, require_plain
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import Tensors, byte_count
from servekit.torchserve.refusals import STATUSES, Refusal, no_method, no_model, no_version

bp = Blueprint("predictions", __name__)
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
_route = partial(bp.route, methods=_METHODS, strict_slashes=False, merge_slashes=False)

PARTS = ("data", "body", "file")  # of a form: the names that TorchServe's handlers look for, and curl's users write
TOP = 5  # classes, as TorchServe's image_classifier gives them

_NAMED = tuple(f"{part}=".encode() for part in PARTS)  # how a form of text begins; else curl's --data-binary says it is one
_JSON_BEGINS = (b"{", b"[")


@_route("/predictions/<name>")
@_route("/predictions/<name>/<version>")
def predictions(name: str, version: str | None = None) -> Response:
    """Answer one row, sent as it is or as JSON, or the rows of `{"instances": [...]}`.

    Classifiers answer `{"label": probability}` of the five best, other models the row's outputs. Errors are
    `{"code", "type", "message"}`: 400 for what cannot be read, 404, 503, 504 past the deadline.
    """
    if request.method not in ("POST", "PUT"):  # curl -T puts
        raise no_method()
    model = _model(name, version)
    signature, content = ext.signature_of(model), _content()
    tensors, are_instances = ext.apart(len(content), lambda: _inputs(content, signature))
    given = model.predict(tensors, ext.deadline())

    def written() -> Response:
        answers = _answers(given, signature)
        return _json({"predictions": answers} if are_instances else answers[0])

    return ext.apart(byte_count(given), written)


def _model(name: str, version: str | None) -> Model:
    try:
        return ext.repository().get(name, version)
    except VersionNotFound:
        raise no_version(name, str(version)) from None
    except ModelNotFound:
        raise no_model(name) from None


def _content() -> bytes:
    """Return what was sent: the body, or the part of a form that TorchServe's handlers would take."""
    require_plain(request)
    body = request.get_data()
    is_form = request.mimetype == MULTIPART or request.mimetype == FORM and body.startswith(_NAMED)
    if not is_form:
        return body
    payload = ext.payload()
    for name in PARTS:
        part = payload.one(name)
        if part is not None:
            return part.content if isinstance(part, Upload) else part.encode(errors="surrogateescape")
    raise InvalidInput(f"The form holds none of: {', '.join(PARTS)}; with curl write -F data=@file")


def _inputs(content: bytes, signature: Signature) -> tuple[dict[str, NDArray[Any]], bool]:
    """Return the inputs that `content` holds, and whether it holds instances: as many as the client likes."""
    first = signature.inputs[0]
    takes_bytes = first.name in signature.encoded or first.dtype == "bytes"
    is_json = request.mimetype == JSON or content.lstrip()[:1] in _JSON_BEGINS
    if takes_bytes and len(signature.inputs) == 1 and not is_json:
        if not content:
            raise InvalidInput("There is nothing to predict from; send it as the body, or with curl: -F data=@file")
        item = first if first.dtype == "bytes" else TensorSpec(first.name, "bytes", (-1,))
        return rows_of([content], dataclasses.replace(signature, inputs=(item,), encoded=frozenset())), False
    value = load_json(content)
    if isinstance(value, dict) and "instances" in value and len(value) == 1:
        return rows_of(value["instances"], signature), True
    return rows_of([value], signature), False


def _answers(tensors: Tensors, signature: Signature) -> Any:
    """Return an answer for each row: of a classifier the best classes, of other models what they give."""
    for output in signature.outputs:
        labels = signature.labels.get(output.name)
        if labels and len(output.shape) == 2:
            return [_best(row, labels) for row in tensors[output.name]]
    return predictions_of(tensors, signature)


def _best(scores: NDArray[Any], labels: tuple[str, ...]) -> dict[str, Any]:
    order = np.argsort(-scores.astype(np.float64), kind="stable")[:TOP]
    return {labels[index] if index < len(labels) else str(index): scores[index] for index in order}


def _json(value: Any, code: int = HTTPStatus.OK) -> Response:
    return PlainResponse(dump_json(value), code, content_type=JSON)


# Errors, in TorchServe's form.


@bp.errorhandler(Refusal)
def render(error: Refusal) -> Response:
    """Write an error that TorchServe has a kind for."""
    return _refusal(error.kind, str(error), error.status)


def write_error(message: str, status: int) -> Response:
    """Write any other error as `{"code", "type", "message"}`."""
    return _refusal(_KINDS.get(status, "InternalServerException"), message, status)


def _refusal(kind: str, message: str, status: int) -> Response:
    return _json({"code": int(status), "type": kind, "message": message}, status)


ext.dress_blueprint(bp, write_error)

_KINDS: dict[int, str] = {
    **{status: kind for kind, status in reversed(list(STATUSES.items()))},
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "BadRequestException",
    HTTPStatus.UNAUTHORIZED: "InvalidKeyException",
    HTTPStatus.FORBIDDEN: "InvalidKeyException",
    HTTPStatus.TOO_MANY_REQUESTS: "ServiceUnavailableException",
}


def examples(model: Model) -> list[Example]:
    """Return a row of zeros as JSON, which `model` answers."""
    if model.signature is None:
        return []
    row = zeros_of(model.signature)
    return [
        Example("predictions.predictions", {"name": model.name}, row, summary="A row"),
        Example("predictions.predictions", {"name": model.name, "version": model.version}, {"instances": [row]}, summary="Rows"),
    ]
