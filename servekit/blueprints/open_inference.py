"""The Open Inference Protocol (V2) over HTTP, as clients of Triton and KServe speak it: `/v2`."""

import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Blueprint, Response, jsonify, request

import servekit
from servekit import ext
from servekit.codecs.compression import deflate, inflate
from servekit.codecs.open_inference import quoted, read_request
from servekit.codecs.open_inference_answers import write_response
from servekit.errors import InvalidInput, ModelNotFound, ModelNotLoaded, NotReady, VersionNotFound
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.serving.describe import describe_model
from servekit.serving.encodings import accepted_encoding

bp = Blueprint("open_inference", __name__)

EXTENSIONS = (
    *("classification", "model_repository", "model_configuration", "binary_tensor_data", "parameters", "statistics"),
)
HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON, _BINARY = "application/json", "application/octet-stream"
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_WORTH_DEFLATING = 1024  # bytes: below it the headers weigh as much as what is saved

View = TypeVar("View", bound=Callable[..., Any])


def route(path: str, *methods: str) -> Callable[[View], View]:
    """Register a view for `path`; other methods than its own get the protocol's 405."""
    add = partial(bp.add_url_rule, path, strict_slashes=False, merge_slashes=False, provide_automatic_options=False)
    allowed = {*methods, *(("HEAD",) if "GET" in methods else ())}

    def refuse(**values: str) -> Response:
        response = ext.error_response("Method Not Allowed", HTTPStatus.METHOD_NOT_ALLOWED)
        response.headers["Allow"] = ", ".join(sorted(allowed))
        return response

    def register(view: View) -> View:
        add(view.__name__, view, methods=methods)
        add(f"not_{path.strip('/').translate(_AS_NAME)}", refuse, methods=_METHODS - allowed)
        return view

    return register


_AS_NAME = str.maketrans("/<>:", "____")


@route("/v2", "GET")
def describe_server() -> dict[str, Any]:
    """Name the server and the extensions of the protocol that it speaks."""
    return {"name": "servekit", "version": servekit.__version__, "extensions": list(EXTENSIONS)}


@route("/v2/health/live", "GET")
def live() -> dict[str, bool]:
    """Say that the server answers."""
    return {"live": True}


@route("/v2/health/ready", "GET")
def ready() -> Any:
    """Say whether every model that should be served is."""
    try:
        ext.repository().require_ready()
    except NotReady as error:
        return jsonify(error=str(error), ready=False), error.status, {"Retry-After": str(error.retry_after)}
    return {"ready": True}


@route("/v2/models/<name>", "GET")
@route("/v2/models/<name>/versions/<version>", "GET")
def model_metadata(name: str, version: str | None = None) -> dict[str, Any]:
    """Name the inputs and outputs of a model, and its versions that are ready."""
    model = find_model(name, version)
    versions = [each.version for each in ext.repository().models if each.name == name]
    return describe_model(model, [model.version] if version else versions)


@route("/v2/models/<name>/ready", "GET")
@route("/v2/models/<name>/versions/<version>/ready", "GET")
def model_ready(name: str, version: str | None = None) -> dict[str, Any]:
    """Say whether a model is loaded."""
    return {"name": find_model(name, version).name, "ready": True}


@route("/v2/models/<name>/infer", "POST")
@route("/v2/models/<name>/versions/<version>/infer", "POST")
def infer(name: str, version: str | None = None) -> Response:
    """Answer by a model: JSON tensors, binary ones after the JSON, or one raw input; compressed if that is accepted."""
    model = find_model(name, version)
    if model.signature is None:
        raise InvalidInput(f"The model '{model.name}' reads requests by itself, in its own form; see its own address.")
    environ = request.environ
    body = request.get_data(cache=False)
    if encoding := environ.get("HTTP_CONTENT_ENCODING"):
        body = inflate(body, encoding, ext.settings().max_body_bytes)
    asked = read_request(body, environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH"), model.name, model.signature)
    deadline, timeout = ext.deadline(), asked.parameters.timeout
    if timeout is not None:
        deadline = min(deadline, time.monotonic() + timeout)
    answers = model.predict(asked.tensors, deadline)
    content, header_length = write_response(answers, asked, model.name, model.version, model.signature)
    return _answer(content, header_length, environ.get("HTTP_ACCEPT_ENCODING", ""))


@bp.route("/v2/<path:rest>", methods=_METHODS, merge_slashes=False, provide_automatic_options=False)
def nothing(rest: str) -> Response:
    """Refuse what is no address of the protocol."""
    return ext.error_response("Not Found", HTTPStatus.NOT_FOUND)


def find_model(name: str, version: str | None = None) -> Model:
    """Return a loaded model; raise what is wrong in the words that Triton's clients look for."""
    which = quoted(name) + ("" if version is None else " version " + quoted(version).strip("'"))
    try:
        return ext.repository().get(name, version)
    except (ModelNotFound, VersionNotFound):
        raise ModelNotFound(f"Request for unknown model: {which} is not found") from None
    except ModelNotLoaded:
        raise ModelNotLoaded(f"Request for unknown model: {which} is not at ready state") from None


def _answer(content: bytes, header_length: int | None, accepted: str) -> Response:
    headers = {"Content-Type": _JSON}
    if header_length is not None:
        headers = {"Content-Type": _BINARY, HEADER_LENGTH: str(header_length)}
    if accepted and len(content) >= _WORTH_DEFLATING and (encoding := accepted_encoding(accepted)):
        content = deflate(content, encoding)
        headers["Content-Encoding"] = encoding
    return PlainResponse(content, headers=headers)
