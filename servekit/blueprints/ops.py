"""Health, for people and orchestrators.

`/metrics` stands beside these routes; see `servekit/metrics`.
"""

from typing import Any

from flask import Blueprint

from servekit import ext
from servekit.access import open_to_all
from servekit.errors import NotReady

bp = Blueprint("ops", __name__)


@bp.get("/health/live")
@open_to_all
def live() -> dict[str, str]:
    """Say that this process answers; a container that fails here should be restarted."""
    return {"status": "alive"}


@bp.get("/health")
@bp.get("/health/ready")
@open_to_all
def ready() -> Any:
    """Say whether predictions can be made, and on what; 503 with the reason if not."""
    repository = ext.repository()
    try:
        repository.require_ready()
    except NotReady as error:
        body = {"status": "unhealthy", "model_loaded": False, "device": None, "error": str(error)}
        return body, error.status, {"Retry-After": str(error.retry_after)}
    return {"status": "healthy", "model_loaded": True, "device": repository.models[0].device}
