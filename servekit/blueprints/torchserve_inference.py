"""TorchServe's inference API: predictions and explanations under all the paths that its clients know."""

import time
from functools import partial
from http import HTTPStatus

import numpy as np
from flask import Blueprint, Response, request

from servekit import access, ts
from servekit.batcher import Parts
from servekit.config import ARRIVED
from servekit.engines.torchserve import HandlerRequest
from servekit.shedding import BY_BODY
from servekit.torchserve import exposition, openapi, wire
from servekit.torchserve.access import bound_body, guarded, open_to_all, require_key
from servekit.torchserve.refusals import Refusal, no_resource
from servekit.torchserve.registry import current, is_archive
from servekit.torchserve.tokens import INFERENCE

bp = Blueprint("torchserve_inference", __name__)
bp.before_request(partial(require_key, INFERENCE))
bp.before_request(bound_body)
render = partial(guarded, INFERENCE)  # every error at this address

OPEN_INFERENCE_PROTOCOL = "oip"

_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
route = partial(
    bp.route, methods=_ANY, strict_slashes=False, merge_slashes=False, provide_automatic_options=False
)


@route("/", methods=["OPTIONS"])
@route("/api-description")
@open_to_all
def describe_api() -> Response:
    """Answer with the OpenAPI document of this address."""
    return wire.answer(openapi.inference())


@route("/ping")
@route("/ping/<path:rest>")
@access.open_to_all
def ping(rest: str = "") -> Response:
    """Say whether every model that should be loaded is, or is about to be; 500 if not."""
    if current().registry.is_healthy():
        return wire.status("Healthy")
    return wire.status("Unhealthy", HTTPStatus.INTERNAL_SERVER_ERROR)


@route("/predictions/<name>")
@route("/predictions/<name>/<version>")
@route("/predictions/<name>/<version>/<path:rest>")
def predictions(name: str, version: str | None = None, rest: str = "") -> Response:
    """Answer as the handler does; it finds what follows the version in its header `url_path`."""
    return _predict(name, version, _request("False", rest))


@route("/explanations/<name>")
@route("/explanations/<name>/<version>")
@route("/explanations/<name>/<version>/<path:rest>")
def explanations(name: str, version: str | None = None, rest: str = "") -> Response:
    """Answer as the handler does when it is asked to explain."""
    return _predict(name, version, _request("True", rest))


@route("/v1/models/<name>:predict")
@route("/v2/models/<name>/infer")
def infer(name: str) -> Response:
    """Answer as `/predictions` does; the archive's envelope reads the body."""
    return _predict(name, None, wire.handler_request(request, {"explain": "False"}))


@route("/v1/models/<name>:explain")
@route("/v2/models/<name>/explain")
def explain(name: str) -> Response:
    """Answer as `/explanations` does; the archive's envelope reads the body."""
    return _predict(name, None, wire.handler_request(request, {"explain": "True"}))


@route("/invocations")
def invocations() -> Response:
    """Answer by the model that `model_name` names, in the query or in a form; else by the only one loaded at start."""
    made = wire.handler_request(request, with_query=True)
    if "model_name" not in request.args:
        request.environ[BY_BODY] = True
    given = [parameter.value.decode(errors="replace") for parameter in made.parameters if parameter.name == "model_name"]
    name = given[0] if given else current().registry.only_model()
    if not name:
        raise Refusal("BadRequestException", "Parameter model_name is required.")
    return _predict(name, None, made)


@route("/models/<name>/invoke")
@route("/<name>/predict")
@route("/<name>/<version>/predict")
def invoke(name: str, version: str | None = None) -> Response:
    """Answer by the model of the path; its handler sees the query, too."""
    return _predict(name, version, wire.handler_request(request, with_query=True))


@route("/wfpredict/<name>")
def predict_workflow(name: str) -> Response:
    """Refuse: there are no workflows."""
    raise Refusal("WorkflowNotFoundException", f"Workflow not found: {name}")


@route("/v2")
def describe_server() -> Response:
    """Name the server, for clients of the Open Inference Protocol."""
    _require_open_inference_protocol()
    # The misspelt member is TorchServe's.
    return wire.answer({"name": "Torchserve", "version": ts.__version__, "extenstion": ["kserve", "kubeflow"]})


@route("/v2/health/<probe>")
def probe(probe: str) -> Response:
    """Answer the probes `live` and `ready` of the Open Inference Protocol."""
    _require_open_inference_protocol()
    if probe not in ("live", "ready"):
        raise no_resource()
    return wire.answer({probe: True})


@route("/v2/models/<name>/versions/<path:rest>")
def versions(name: str, rest: str) -> Response:
    """Refuse: with this protocol TorchServe's clients name no version."""
    _require_open_inference_protocol()
    return wire.answer({"error": "Model versioning is not yet supported."}, HTTPStatus.NOT_IMPLEMENTED)


def _request(explain: str, rest: str) -> HandlerRequest:
    return wire.handler_request(request, {"explain": explain, "url_path": rest.rstrip("/")})


def _predict(name: str, version: str | None, made: HandlerRequest) -> Response:
    registry = current().registry
    entry = registry.find(name, version)
    if request.method == "OPTIONS":
        return wire.answer(openapi.inference_of(entry.name))
    if not is_archive(entry):
        raise Refusal("BadRequestException", f"Model {name} is no archive; it is served at servekit's own address.")
    arrived, label = request.environ.get(ARRIVED, time.monotonic()), version or "default"
    parts, rows = Parts(), np.empty(1, object)
    rows[0], made.send = made, parts.put
    try:
        answers = registry.model(name, version).stream({"request": rows}, arrived + entry.options["response_timeout"], parts)
        first = next(answers)
    except Exception:
        exposition.observe_inference(name, label)
        raise
    if isinstance(first, bytes):
        return wire.streamed(made, first, answers, lambda: _observe(name, label, arrived, made))
    answers.close()
    _observe(name, label, arrived, made)
    return wire.handler_answer(first["response"][0])


def _observe(name: str, label: str, arrived: float, made: HandlerRequest) -> None:
    now = time.monotonic()
    exposition.observe_inference(name, label, (now - arrived) * 1e6, max(0.0, made.begun - arrived) * 1e6)


def _require_open_inference_protocol() -> None:
    if current().properties.ts_open_inference_protocol.lower() != OPEN_INFERENCE_PROTOCOL:
        raise no_resource()
