"""TorchServe's metrics address: `GET /metrics`."""

from flask import Blueprint, Response, current_app, request

from servekit.torchserve import exposition

bp = Blueprint("torchserve_metrics", __name__)


@bp.get("/metrics", strict_slashes=False)
def show() -> Response:
    """Answer with the metrics of all workers, in TorchServe's text; `?name[]=` selects samples, and may be repeated."""
    options = current_app.extensions["torchserve"].properties
    text, content_type = exposition.render(request.args.getlist("name[]"), options)
    return Response(text, content_type=content_type)
