"""The Open Inference Protocol (V2) over HTTP, as clients of Triton and KServe speak it: `/v2`."""

import logging
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Blueprint, Response, jsonify, request

import servekit
from servekit import ext
from servekit.access import management, open_to_all
from servekit.codecs.compression import deflate
from servekit.codecs.open_inference import quoted, read_request
from servekit.codecs.open_inference_answers import write_response
from servekit.errors import InvalidInput, ModelLoadError, ModelNotFound, ModelNotLoaded, NotReady, WorkersFailed
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.openapi import Example
from servekit.serving.describe import describe_config, describe_model
from servekit.serving.encodings import accepted_encoding
from servekit.serving.index import entries_to_load, list_models, read_parameters, unload
from servekit.serving.samples import infer_examples
from servekit.serving.statistics import describe_statistics
from servekit.tensors import byte_count

log = logging.getLogger(__name__)

bp = Blueprint("open_inference", __name__)

EXTENSIONS = (
    *("classification", "model_repository", "model_configuration", "binary_tensor_data", "parameters", "statistics"),
)
HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON, _BINARY = "application/json", "application/octet-stream"
_LOGGING = {
    **{"log_file": "", "log_info": True, "log_warning": True, "log_error": True},
    **{"log_verbose_level": 0, "log_format": "default"},
}
_TRACING = {
    **{"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1"},
    **{"log_frequency": "0", "trace_file": "", "trace_mode": "triton"},
}
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


_AS_NAME = str.maketrans("/<>:(),", "_______")


@route("/v2", "GET")
def describe_server() -> dict[str, Any]:
    """Name the server and the extensions of the protocol that it speaks."""
    return {"name": "servekit", "version": servekit.__version__, "extensions": list(EXTENSIONS)}


@route("/v2/health/live", "GET")
@open_to_all
def live() -> dict[str, bool]:
    """Say that the server answers."""
    return {"live": True}


@route("/v2/health/ready", "GET")
@open_to_all
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
    model = find_model(name, version)
    model.require_ready()
    return {"name": model.name, "ready": True}


@route("/v2/models/<name>/infer", "POST")
@route("/v2/models/<name>/versions/<version>/infer", "POST")
def infer(name: str, version: str | None = None) -> Response:
    """Answer by a model: JSON tensors, binary ones after the JSON, or one raw input; compressed if that is accepted."""
    model = find_model(name, version)
    signature, environ = ext.signature_of(model), request.environ
    body = ext.inflated_body()
    length = environ.get("HTTP_INFERENCE_HEADER_CONTENT_LENGTH")
    asked = ext.apart(len(body), lambda: read_request(body, length, model.name, signature))
    deadline, timeout = ext.deadline(), asked.parameters.timeout
    if timeout is not None:
        deadline = min(deadline, time.monotonic() + timeout)
    answers = model.predict(asked.tensors, deadline)
    accepted = environ.get("HTTP_ACCEPT_ENCODING", "")
    return ext.apart(
        byte_count(answers),
        lambda: _answer(*write_response(answers, asked, model.name, model.version, signature), accepted),
    )


@route("/v2/models/<name>/config", "GET")
@route("/v2/models/<name>/versions/<version>/config", "GET")
def model_config(name: str, version: str | None = None) -> dict[str, Any]:
    """Describe a model as Triton's configuration files do."""
    return describe_config(find_model(name, version))


@route("/v2/models/stats", "GET")
def all_statistics() -> dict[str, Any]:
    """Say what all workers have counted, of every loaded version."""
    return describe_statistics(ext.repository().models)


@route("/v2/models/<name>/stats", "GET")
@route("/v2/models/<name>/versions/<version>/stats", "GET")
def model_statistics(name: str, version: str | None = None) -> dict[str, Any]:
    """Say what all workers have counted, of a version, or of every loaded one of a model."""
    model = find_model(name, version)
    versions = [each for each in ext.repository().models if each.name == name]
    return describe_statistics([model] if version else versions)


@route("/v2/models", "GET")
def model_names() -> dict[str, list[str]]:
    """List the names of the loaded models, as KServe does."""
    return {"models": sorted({model.name for model in ext.repository().models})}


@route("/v2/repository/index", "POST")
@management
def index() -> Response:
    """List every version in the store and its state; `{"ready": true}` asks for the loaded ones only."""
    only_ready = read_parameters(ext.inflated_body()).get("ready", False)
    if type(only_ready) is not bool:
        raise InvalidInput("Invalid value for 'ready': expected a boolean")
    return jsonify(list_models(ext.repository(), ext.settings(), only_ready))


@route("/v2/repository/models/<name>/load", "POST")
@management
def load_model(name: str) -> Any:
    """Serve what the store holds of a model, in all workers; only where SERVEKIT_MANAGEMENT is on."""
    _require_management()
    parameters = read_parameters(ext.inflated_body()).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInput("The parameters of a load must be an object.")
    try:
        ext.repository().serve(entries_to_load(parameters, ext.settings(), name, ext.repository().desired().workers))
    except ModelNotFound:
        raise ModelNotFound(f"failed to load {quoted(name)}, failed to poll from model repository") from None
    except (ModelLoadError, WorkersFailed) as error:
        log.error("%s was not loaded: %s", name, error)
        return ext.error_response(f"failed to load '{name}', no version is available", HTTPStatus.INTERNAL_SERVER_ERROR)
    return {"name": name, "load": True}


@route("/v2/repository/models/<name>/unload", "POST")
@management
def unload_model(name: str) -> dict[str, Any]:
    """Serve a model no more, in no worker; only where SERVEKIT_MANAGEMENT is on."""
    _require_management()
    read_parameters(ext.inflated_body())
    find_registered(name)
    unload(ext.repository(), name)
    return {"name": name, "unload": True}


@route("/v2/repository/<repository>/index", "POST")
@route("/v2/repository/<repository>/models/<name>/<verb>", "POST")
def other_repository(repository: str, name: str = "", verb: str = "") -> Response:
    """Refuse: there is one repository, and it has no name."""
    return ext.error_response("'repository_name' specification is not supported", HTTPStatus.NOT_IMPLEMENTED)


@route("/v2/logging", "GET", "POST")
@management
def logging_settings() -> Any:
    """Show how the server logs; the operator alone changes that."""
    if request.method == "POST":
        return _unsupported("The log is set by the operator: see SERVEKIT_LOG_FORMAT.")
    return dict(_LOGGING)


@route("/v2/trace/setting", "GET", "POST")
@route("/v2/models/<name>/trace/setting", "GET", "POST")
@management
def trace_settings(name: str | None = None) -> Any:
    """Show that nothing is traced."""
    if name is not None:
        find_model(name)
    return _unsupported("This server writes no traces.") if request.method == "POST" else dict(_TRACING)


@route("/v2/<any(systemsharedmemory,cudasharedmemory):kind>/status", "GET")
@route("/v2/<any(systemsharedmemory,cudasharedmemory):kind>/region/<region>/status", "GET")
def shared_memory_status(kind: str, region: str = "") -> Response:
    """List no region of shared memory."""
    return jsonify([])


@route("/v2/<any(systemsharedmemory,cudasharedmemory):kind>/unregister", "POST")
@route("/v2/<any(systemsharedmemory,cudasharedmemory):kind>/region/<region>/unregister", "POST")
def unregister_shared_memory(kind: str, region: str = "") -> dict[str, Any]:
    """Do nothing, with success: no region is registered."""
    return {}


@route("/v2/<any(systemsharedmemory,cudasharedmemory):kind>/region/<region>/register", "POST")
def register_shared_memory(kind: str, region: str) -> Response:
    """Refuse: what a client writes into shared memory after it was checked could not be trusted."""
    return _unsupported("Shared memory is not served; send and ask for tensors as JSON or binary data.")


@route("/v2/models/<name>/generate", "POST")
@route("/v2/models/<name>/generate_stream", "POST")
@route("/v2/models/<name>/versions/<version>/generate", "POST")
@route("/v2/models/<name>/versions/<version>/generate_stream", "POST")
def generate(name: str, version: str | None = None) -> Response:
    """Refuse: models here answer tensors with tensors."""
    find_model(name, version)
    return _unsupported("The generate extension is not served; send tensors to /infer.")


@bp.route("/v2/<path:rest>", methods=_METHODS, merge_slashes=False, provide_automatic_options=False)
def nothing(rest: str) -> Response:
    """Refuse what is no address of the protocol."""
    return ext.error_response("Not Found", HTTPStatus.NOT_FOUND)


def examples(model: Model) -> list[Example]:
    """Return requests that `model` answers."""
    return infer_examples(model, "open_inference.infer")


def find_model(name: str, version: str | None = None) -> Model:
    """Return a loaded model; raise what is wrong in the words that Triton's clients look for."""
    which = quoted(name) + ("" if version is None else " version " + quoted(version).strip("'"))
    try:
        return ext.repository().get(name, version)
    except ModelNotFound:
        raise ModelNotFound(f"Request for unknown model: {which} is not found") from None
    except ModelNotLoaded:
        raise ModelNotLoaded(f"Request for unknown model: {which} is not at ready state") from None


def find_registered(name: str) -> None:
    """Raise ModelNotFound, in Triton's words, for a model that is not registered."""
    try:
        ext.repository().find(name)
    except ModelNotFound:
        raise ModelNotFound(f"Request for unknown model: {quoted(name)} is not found") from None


def _require_management() -> None:
    if not ext.settings().management:
        error = NotReady("explicit model load / unload is not allowed: SERVEKIT_MANAGEMENT is off")
        error.retry_after = None  # it will not be otherwise later
        raise error


def _unsupported(message: str) -> Response:
    return ext.error_response(message, HTTPStatus.NOT_IMPLEMENTED)


def _answer(content: bytes, header_length: int | None, accepted: str) -> Response:
    encoding = accepted_encoding(accepted) if accepted and len(content) >= _WORTH_DEFLATING else ""
    if encoding:
        plain = content
        content = ext.apart(len(plain), lambda: deflate(plain, encoding))
    response = PlainResponse(content, content_type=_JSON if header_length is None else _BINARY)
    if header_length is not None:
        response.headers[HEADER_LENGTH] = str(header_length)
    if encoding:
        response.headers["Content-Encoding"] = encoding
    return response
