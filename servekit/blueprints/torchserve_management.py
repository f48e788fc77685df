"""TorchServe's management API: models are registered, scaled, described, listed and removed."""

from functools import partial
from typing import Any

from flask import Blueprint, Response, request

from servekit.codecs.values import parse_json
from servekit.errors import InvalidInput
from servekit.payload import require_plain
from servekit.torchserve import openapi, wire
from servekit.torchserve.access import bound_body, guarded, open_to_all, require_key
from servekit.torchserve.describe import describe, list_models
from servekit.torchserve.refusals import Refusal, no_method, no_resource
from servekit.torchserve.registration import Registration, Scale, parse_switch
from servekit.torchserve.registry import Outcome, current
from servekit.torchserve.tokens import MANAGEMENT

bp = Blueprint("torchserve_management", __name__)
bp.before_request(partial(require_key, MANAGEMENT))
bp.before_request(bound_body)
render = partial(guarded, MANAGEMENT)  # every error at this address

_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
route = partial(bp.route, strict_slashes=False, merge_slashes=False, provide_automatic_options=False)


@route("/", methods=["OPTIONS"])
@route("/api-description", methods=_ANY)
@open_to_all
def describe_api() -> Response:
    """Answer with the OpenAPI document of this address."""
    return wire.answer(openapi.management())


@route("/models", methods=["GET"])
def list_all() -> Response:
    """List the default versions: `limit` of them, from `next_page_token` on."""
    return wire.answer(list_models(current().registry, request.args.get("limit"), request.args.get("next_page_token")))


@route("/models", methods=["POST"])
def register() -> Response:
    """Register a model from `url`; 202 if it is loaded later. Needs `enable_model_api`."""
    _require_model_api()
    return _outcome(current().registry.register(Registration.parse(_parameters())))


@route("/models/<name>", methods=["GET"])
@route("/models/<name>/<version>", methods=["GET"])
@route("/models/<name>/<version>/set-default", methods=["GET"])
def describe_model(name: str, version: str | None = None) -> Response:
    """Describe a version, the default one, or `all`; with `customized=true` in the handler's own words, too."""
    is_customized = parse_switch(request.args.get("customized"), False)
    headers = wire.headers_of(request) if is_customized else None
    return wire.answer(describe(current().registry, name, version, headers))


@route("/models/<name>", methods=["PUT"])
@route("/models/<name>/<version>", methods=["PUT"])
def scale(name: str, version: str | None = None) -> Response:
    """Load a model in `min_worker` workers, or in none; 202 unless `synchronous`."""
    registry = current().registry
    registry.find(name, version)
    return _outcome(registry.scale(name, version, Scale.parse(request.args)))


@route("/models/<name>", methods=["DELETE"])
@route("/models/<name>/<version>", methods=["DELETE"])
def unregister(name: str, version: str | None = None) -> Response:
    """Remove a version, or the default one if it is the last. Needs `enable_model_api`."""
    _require_model_api()
    return _outcome(current().registry.unregister(name, version))


@route("/models/<name>", methods=["OPTIONS"])
@route("/models/<name>/<version>", methods=["OPTIONS"])
@route("/models/<name>/<version>/set-default", methods=["OPTIONS"])
def describe_model_api(name: str, version: str | None = None) -> Response:
    """Answer with the OpenAPI document of one model's management."""
    return wire.answer(openapi.management_of(current().registry.find(name, version).name))


@route("/models/<name>/<version>/set-default", methods=["PUT"])
def set_default(name: str, version: str) -> Response:
    """Let a version answer the requests that name none."""
    return _outcome(current().registry.set_default(name, version))


@route("/v1/models/<name>", methods=["GET"])
def is_ready(name: str) -> Response:
    """Say whether a worker holds the model; what follows a colon is passed over, as TorchServe does."""
    entry = current().registry.find(name.partition(":")[0])
    holds = any(entry.key in worker.loaded for worker in current().registry.repository.workers())
    return wire.answer({"name": entry.name, "ready": holds})


@route("/token", methods=_ANY)
@open_to_all
def renew_token() -> Response:
    """Renew the management or inference key, as `type` says, for who holds the API key; read it from the file."""
    tokens = current().tokens
    if tokens is None:
        raise no_resource()
    tokens.renew(request.args.get("type"), request.headers.get("Authorization"))
    return wire.nothing()


@route("/workflows", methods=["GET"])
def list_workflows() -> Response:
    """List no workflows."""
    return wire.answer({"workflows": []})


@route("/workflows", methods=["POST"])
def register_workflow() -> Response:
    """Refuse, as TorchServe does since its last release."""
    raise Refusal("BadRequestException", "Registering new workflows is disabled.")


@route("/workflows/<name>", methods=["GET", "DELETE"])
def find_workflow(name: str) -> Response:
    """Refuse: there are no workflows."""
    raise Refusal("WorkflowNotFoundException", f"Workflow not found: {name}")


def _require_model_api() -> None:
    if not current().properties.enable_model_api:
        raise no_method()


def _outcome(outcome: Outcome) -> Response:
    return wire.status(outcome.message, outcome.status)


def _parameters() -> dict[str, Any]:
    """Return the parameters: the members of a JSON body if one is sent, else the query."""
    if request.mimetype != wire.JSON:
        return dict(request.args.items())
    require_plain(request)
    body = request.get_data(cache=False)
    sent = parse_json(body) if body else {}
    if not isinstance(sent, dict):
        raise InvalidInput('The JSON must be an object, such as {"url": "noop.mar"}.')
    return sent
