"""SageMaker's container contract, and MLflow's scoring server: `/ping`, `/invocations`, `/models`.

Sources: SageMaker's "Custom inference code with hosting services", "Use your own inference code with batch transform" and
"Custom containers for multi-model endpoints"; MLflow's `mlflow.pyfunc.scoring_server`.
"""

import dataclasses
import logging
import re
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, request

import servekit
from servekit import ext
from servekit.access import management, open_to_all
from servekit.codecs import scoring
from servekit.codecs.arrays import dump_json
from servekit.codecs.instances import zeros_of
from servekit.codecs.values import parse_json
from servekit.desired import Entry
from servekit.errors import (
    InvalidInput,
    ModelLoadError,
    ModelNotFound,
    OutOfMemory,
    WorkersFailed,
)
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.openapi import Example
from servekit.payload import require_plain
from servekit.platforms import MLFLOW
from servekit.stores import model_entry
from servekit.tensors import byte_count, row_count

log = logging.getLogger(__name__)

bp = Blueprint("sagemaker", __name__)
multi_model = Blueprint("sagemaker_multi_model", __name__)  # registered where SageMaker asks for it
mlflow = Blueprint("mlflow", __name__)

ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
TARGET_MODEL = "X-Amzn-SageMaker-Target-Model"
MAX_TRANSFORM_MEGABYTES = 100  # of all concurrent requests of a batch transform, by its documentation
PAGE = 100  # models of a list, if `limit` says nothing

_ATTRIBUTES = re.compile(r"[ -~]{0,1024}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,100}: [ -~]{0,8000}")
_FRAMING = frozenset(("content-type", "content-length", "transfer-encoding", "connection"))
_NO_MEMORY = ("MemoryError", "alloc", "out of memory", "OutOfMemory")  # in what a failed load says of itself
# of MLflow; below 500 else BAD_REQUEST
_CODES = {
    **{401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "RESOURCE_DOES_NOT_EXIST"},
    **{429: "REQUEST_LIMIT_EXCEEDED", 503: "TEMPORARILY_UNAVAILABLE"},
}
_OF_FRONT = (401, 403, 429)  # what SageMaker itself refuses, before a model is asked

route = partial(bp.route, strict_slashes=False, merge_slashes=False)
model_route = partial(multi_model.route, strict_slashes=False, merge_slashes=False)


@route("/ping", methods=["GET", "POST"])
@open_to_all
def ping() -> Response:
    """Answer 200 with nothing when predictions can be made, else 503; a multi-model endpoint may have no model yet."""
    repository = ext.repository()
    if not (ext.settings().multi_model and not repository.desired().models):
        repository.require_ready()
    return _response(b"", scoring.JSON)


@route("/invocations", methods=["POST"])
@route("/endpoints/<endpoint>/invocations", methods=["POST"])
def invocations(endpoint: str = "") -> Response:
    """Predict by the default model, or by the one that the header Target-Model names, from a body of any known type.

    The second address is that of AWS' own client, so that it can be pointed here.
    """
    target = request.headers.get(TARGET_MODEL)
    return _invoke(ext.repository().get(target) if target else ext.default_model())


@route("/execution-parameters", methods=["GET"])
def execution_parameters() -> Response:
    """Say how a batch transform is to send its records: so many requests at once, many records each, of such a size."""
    concurrent = min(MAX_TRANSFORM_MEGABYTES, ext.repository().desired().workers)
    megabytes = min(ext.settings().max_body_bytes // 2**20, MAX_TRANSFORM_MEGABYTES // concurrent)
    parameters = {"MaxConcurrentTransforms": concurrent, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": max(1, megabytes)}
    return _response(dump_json(parameters), scoring.JSON)


@mlflow.get("/version")
def version() -> Response:
    """Name the version of the server."""
    return PlainResponse(servekit.__version__.encode(), content_type="text/plain; charset=utf-8")


@model_route("/models", methods=["GET"])
def list_models() -> Response:
    """List the loaded models: `limit` of them, from `next_page_token` on."""
    start, limit = _count("next_page_token", 0), _count("limit", PAGE)
    entries = ext.repository().desired().entries()
    shown: dict[str, Any] = {"models": [_described(entry) for entry in entries[start : start + limit]]}
    if start + limit < len(entries):
        shown["nextPageToken"] = str(start + limit)
    return _response(dump_json(shown), scoring.JSON)


@model_route("/models", methods=["POST"])
@management
def load_model() -> Response:
    """Load the model that lies in the folder `url` in every worker, as `model_name`.

    404 for a folder that is not there, 409 for a model that is loaded, 507 when there is no memory for it.
    """
    require_plain(request)
    sent = parse_json(request.get_data(cache=False))
    name, url = (sent.get(key) if isinstance(sent, dict) else None for key in ("model_name", "url"))
    if not isinstance(name, str) or not isinstance(url, str) or not _NAME.fullmatch(name):
        raise InvalidInput('Send {"model_name": "...", "url": "..."}; a name has letters, digits, dots, dashes, underscores.')
    folder = _folder_of(url)
    repository = ext.repository()
    entry = model_entry(name, folder, repository.desired().workers)
    if entry is None:
        raise ModelNotFound("There is no model at that url: no model.json, no code/inference.py and no TorchScript.")
    try:
        repository.register(dataclasses.replace(entry, source=url, is_required=False))
    except (MemoryError, ModelLoadError, WorkersFailed) as error:
        return _not_loaded(error)
    return _response(dump_json({"status": "Workers scaled"}), scoring.JSON)


@model_route("/models/<name>", methods=["GET"])
def describe_model(name: str) -> Response:
    """Describe a loaded model."""
    return _response(dump_json(_described(ext.repository().find(name))), scoring.JSON)


@model_route("/models/<name>", methods=["DELETE"])
@management
def unload_model(name: str) -> Response:
    """Unload a model in every worker; its memory is free when this returns."""
    ext.repository().unregister(name)
    return _response(dump_json({"status": f'Model "{name}" unregistered'}), scoring.JSON)


@model_route("/models/<name>/invoke", methods=["POST"])
def invoke_model(name: str) -> Response:
    """Predict by a loaded model, as `/invocations` does; 507 when there is no memory for it."""
    try:
        return _invoke(ext.repository().get(name))
    except (MemoryError, OutOfMemory):
        return _error("There is no memory for this request; unload a model.", HTTPStatus.INSUFFICIENT_STORAGE)


def examples(model: Model) -> list[Example]:
    """Return a request of zeros for a model that says what it takes; none for text or encoded data, which no zero is."""
    if model.signature is None or any(spec.dtype == "bytes" for spec in model.signature.inputs):
        return []
    body, target = {"instances": [zeros_of(model.signature)]}, {TARGET_MODEL: model.name}
    return [Example("sagemaker.invocations", {}, body, headers=target, summary="A row of zeros, by name")]


def write_error(message: str, status: int) -> Response:
    """Write an error as a container does, `{"error", "code"}`, or as MLflow's clients or AWS' client know it."""
    response = _error(message, status)
    is_models = "endpoint" in (request.view_args or {}) and status not in _OF_FRONT
    return _as_model_error(response) if is_models else response


for _blueprint in (bp, multi_model, mlflow):
    ext.dress_blueprint(_blueprint, write_error)


def _invoke(model: Model) -> Response:
    _require_attributes()
    settings, signature = ext.settings(), model.signature
    accept = request.headers.get("Accept", "").strip()
    if signature is None:
        return _pass_on(model, settings.default_accept if accept in ("", scoring.ANY) else accept)
    media = scoring.choose(accept, settings.default_accept)
    is_mlflow = settings.platform == MLFLOW
    require_plain(request)
    body, content_type = request.get_data(cache=False), request.headers.get("Content-Type", "")
    scored = ext.apart(len(body), lambda: scoring.read(body, content_type, signature, has_header=is_mlflow))
    outputs = model.predict(scored.tensors, ext.deadline())
    if {len(array) for array in outputs.values()} != {row_count(scored.tensors)} and signature.is_batched:
        raise RuntimeError(f"the model {model.name} answers with another number of rows than it was sent")
    is_wrapped = scored.is_wrapped or is_mlflow
    return _response(ext.apart(byte_count(outputs), lambda: scoring.write(outputs, signature, media, is_wrapped)), media)


def _pass_on(model: Model, accept: str) -> Response:
    """Let the model's own code read the request."""
    answer = ext.ask(model, accept=accept)
    response = _response(answer.body, answer.content_type, answer.status)
    for name, value in answer.headers.items():
        if _HEADER.fullmatch(f"{name}: {value}") and name.lower() not in _FRAMING:
            response.headers[name] = value
    return response


def _response(body: bytes, content_type: str, status: int = HTTPStatus.OK) -> Response:
    """Return an answer with the attributes that the client wants back."""
    response = PlainResponse(body, status, content_type=content_type)
    attributes = request.headers.get(ATTRIBUTES, "")
    if attributes and _ATTRIBUTES.fullmatch(attributes):
        response.headers[ATTRIBUTES] = attributes
    return response


def _error(message: str, status: int) -> Response:
    if ext.settings().platform == MLFLOW:
        code = _CODES.get(status, "BAD_REQUEST" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "INTERNAL_ERROR")
        return _response(dump_json({"error_code": code, "message": message}), scoring.JSON, status)
    return _response(dump_json({"error": message, "code": int(status)}), scoring.JSON, status)


def _as_model_error(response: Response) -> Response:
    """Wrap a container's error as SageMaker does, so that AWS' client raises its ModelError."""
    told, status = response.get_data(as_text=True), response.status_code
    whose = "client" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server"
    message = f'Received {whose} error ({status}) from primary with message "{told}".'
    shown = {"Message": message, "OriginalMessage": told, "OriginalStatusCode": status, "LogStreamArn": ""}
    wrapped = _response(dump_json(shown), scoring.JSON, HTTPStatus.FAILED_DEPENDENCY)
    wrapped.headers["X-Amzn-ErrorType"] = "ModelError"
    return wrapped


def _require_attributes() -> None:
    if not _ATTRIBUTES.fullmatch(request.headers.get(ATTRIBUTES, "")):
        raise InvalidInput(f"{ATTRIBUTES} may hold 1024 visible characters of ASCII.")


def _described(entry: Entry) -> dict[str, str]:
    return {"modelName": entry.name, "modelUrl": entry.source}


def _count(name: str, default: int) -> int:
    text = request.args.get(name, "")
    if text and not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidInput(f"{name} must be a number.")
    return int(text) if text else default


def _folder_of(url: str) -> Path:
    """Return the folder below the model store that `url` names, which no link and no `..` may lead to."""
    store, path = ext.settings().model_store.absolute(), Path(url)
    root = store.resolve()
    base = next((base for base in (store, root) if path.is_relative_to(base)), None)
    inside = None if base is None else path.relative_to(base)
    if inside is None or not inside.parts or ".." in inside.parts or not url.isprintable():
        raise InvalidInput("The url must be a folder below the folder of the models.")
    folder = root / inside
    try:
        is_there, is_direct = folder.is_dir(), folder.resolve() == folder
    except OSError:  # a name that is too long
        is_there = is_direct = False
    if not is_there:
        raise ModelNotFound("There is no folder at that url.")
    if not is_direct:
        raise InvalidInput("The url must be a folder below the folder of the models, without links.")
    return folder


def _not_loaded(error: Exception) -> Response:
    """Tell the platform why a model was not loaded: with 507 it unloads another one and tries again."""
    log.error("A model was not loaded: %s", error)
    if isinstance(error, MemoryError) or any(word in str(error) for word in _NO_MEMORY):
        return _error("There is no memory for this model; unload another one.", HTTPStatus.INSUFFICIENT_STORAGE)
    return _error("The model cannot be loaded; the log of the server says why.", HTTPStatus.INTERNAL_SERVER_ERROR)
