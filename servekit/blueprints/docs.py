"""The OpenAPI document of this server, `/openapi.json`, and the page that shows it, `/docs`.

Both need the extra `openapi`; without it these addresses do not exist.
"""

import functools
import hashlib
import mimetypes
import sys
import weakref
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flask import Blueprint, Response, current_app, request
from werkzeug.exceptions import NotFound
from werkzeug.routing import Rule

from servekit import access, ext
from servekit.batcher import beside
from servekit.errors import RequestError
from servekit.model import Model

if TYPE_CHECKING:
    from servekit.openapi.document import Document, Group

bp = Blueprint("docs", __name__)

IS_INSTALLED = all(map(find_spec, ("apispec", "flask_swagger_ui")))

_KEY = "servekit.openapi"
_OWN = Path(__file__).parent.parent / "static"
_OWN_ASSETS = ("docs.js",)
_UI_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
_FOR_GOOD = "public, max-age=31536000, immutable"  # an address with the content's hash in it
_ASK_AGAIN = "no-cache"  # the ETag says whether it is still the same
# Only from here: no script in the page, no font, style, picture or call from anywhere else. The style sheet holds
# pictures as data.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Asset(NamedTuple):
    """A file of the page."""

    content: bytes
    kind: str
    tag: str


class Made(NamedTuple):
    """The document of some models, which it does not keep in memory."""

    models: list["weakref.ref[Model] | None"]
    names: list[str]
    document: "Document"


@bp.get("/openapi.json")
def describe() -> Response:
    """Describe this server: an OpenAPI 3.1 document of its addresses and of the models that are loaded now."""
    return _answer(Asset(_document().body, "application/json", ""), _ASK_AGAIN)


@bp.get("/docs", strict_slashes=False)
def page() -> Response:
    """Show the document as a page for people, who can try each request there."""
    here = "" if request.path.endswith("/") else "docs/"
    text = (_OWN / "docs.html").read_text(encoding="utf-8")
    for name in (*_UI_ASSETS, *_OWN_ASSETS):
        text = text.replace(f"{{{name}}}", f"{here}{name}?v={_asset(name).tag}")
    response = _answer(Asset(text.encode(), "text/html; charset=utf-8", ""), _ASK_AGAIN)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@bp.get("/docs/<asset>")
def asset(asset: str) -> Response:
    """Give a file of the page, or one that an example of the document names."""
    if asset in _UI_ASSETS or asset in _OWN_ASSETS:
        found = _asset(asset)
        return _answer(found, _FOR_GOOD if request.args.get("v") == found.tag else _ASK_AGAIN)
    content, kind = _document().files.get(asset, (None, ""))
    if content is None:
        raise NotFound
    return _answer(Asset(content, kind, ""), _ASK_AGAIN)


def _answer(asset: Asset, caching: str) -> Response:
    response = current_app.response_class(asset.content, content_type=asset.kind)
    response.set_etag(asset.tag or _hash(asset.content))
    response.headers["Cache-Control"] = caching
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.make_conditional(request)
    del response.headers["Date"]  # which make_conditional sets, and every worker, too
    return response


@functools.cache
def _asset(name: str) -> Asset:
    """Read a file of the page, once a worker; `name` is one of those listed above, never a client's."""
    if name in _OWN_ASSETS:
        path = _OWN / name
    else:
        import flask_swagger_ui

        path = Path(flask_swagger_ui.__file__).parent / "dist" / name
    content = path.read_bytes()
    return Asset(content, mimetypes.guess_type(name)[0] or "application/octet-stream", _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _document() -> "Document":
    """Return the document of the models that are loaded now, made anew, beside the event loop, when they have changed."""
    repository = ext.repository()
    names = sorted({model.name for model in repository.models})
    models = [_loaded(lambda name=name: repository.get(name)) for name in names]  # type: ignore[misc]
    models.append(_loaded(ext.default_model))
    made: Made | None = current_app.extensions.get(_KEY)
    if made is None or made.names != names or [reference and reference() for reference in made.models] != models:
        document = beside(lambda: _make(models, names))
        made = Made([None if model is None else weakref.ref(model) for model in models], names, document)
        current_app.extensions[_KEY] = made
    return made.document


def _loaded(look_up: Callable[[], Model]) -> Model | None:
    """Return the model that answers where an address names no version, or not even a model; None if none is loaded."""
    try:
        return look_up()
    except RequestError:
        return None


def _make(models: list[Model | None], names: list[str]) -> "Document":
    from servekit.openapi.document import Loaded, make  # its package is not for those who never look

    *by_name, default = models
    views = current_app.view_functions
    return make(_groups(), views, Loaded([model for model in by_name if model], default, names), access.guarded(current_app))


def _groups() -> list["Group"]:
    """Return the contracts of the address that was asked: their routes stand where those of this document do."""
    from servekit.openapi.document import Group

    here = request.url_rule.subdomain if request.url_rule else ""
    rules: dict[str, list[Rule]] = {}
    for rule in current_app.url_map.iter_rules():
        blueprint = rule.endpoint.rpartition(".")[0]
        if rule.subdomain == here and blueprint != bp.name:
            rules.setdefault(blueprint, []).append(rule)
    groups = []
    for name, mine in sorted(rules.items(), key=lambda item: not item[0]):  # what belongs to no blueprint comes last
        module = sys.modules[current_app.blueprints[name].import_name] if name else None
        about = (getattr(module, "__doc__", None) or "The server itself.").partition("\n\n")[0]
        groups.append(Group(name.replace("_", " ") or "server", about, mine, getattr(module, "examples", None)))
    return groups
