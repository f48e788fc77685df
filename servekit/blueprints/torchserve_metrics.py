"""TorchServe's metrics address: `GET /metrics`."""

from flask import Blueprint, Response, request

from servekit.lean import PlainResponse
from servekit.torchserve import exposition, openapi, wire
from servekit.torchserve.registry import current

bp = Blueprint("torchserve_metrics", __name__)
render = wire.render  # every error at this address


@bp.get("/api-description", strict_slashes=False)
@bp.route("/", methods=["OPTIONS"], provide_automatic_options=False)
def describe_api() -> Response:
    """Answer with the OpenAPI document of this address."""
    return wire.answer(openapi.metrics())


@bp.get("/metrics", strict_slashes=False)
def show() -> Response:
    """Answer with the metrics of all workers, in TorchServe's text; `?name[]=` selects samples, and may be repeated."""
    text, content_type = exposition.render(request.args.getlist("name[]"), current().properties)
    return wire.dressed(PlainResponse(text, content_type=content_type))
