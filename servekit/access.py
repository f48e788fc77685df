"""Who may ask for what, checked before any view: one place for every address, method and port, also for those that lead nowhere.

Views say what they are for by a mark; what has none is for keys of inference. Without keys nothing is registered that
requests would pass through, but for a look at where those to management come from.
"""

import ipaddress
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from flask import Flask, current_app, request

from servekit import metrics
from servekit.config import Settings
from servekit.desired import Desired, Entry
from servekit.errors import Forbidden, ForeignSite, ModelNotFound, TooManyRequests, Unauthorized
from servekit.keys import INFERENCE, JUDGES, MANAGEMENT, METRICS, Key, Keyring, holder
from servekit.model import Model
from servekit.repository import Repository
from servekit.tally import Tally

View = TypeVar("View", bound=Callable[..., Any])

OPEN = "open"  # the scope of what needs no key
HEADER = "HTTP_AUTHORIZATION"  # environ key

_MARK, _KEY = "servekit_scope", "servekit.access"
_SCOPES = {"prometheus_metrics": METRICS, "torchserve_metrics": METRICS, "torchserve_management": MANAGEMENT}  # of whole rooms
_ANY = "any"  # what an address that leads nowhere is for: whoever has a key may know that it does
_MISSING = "This server asks for a key; send it in the header as Authorization: Bearer KEY."
_UNKNOWN = "That key is not known here; send one that is, as Authorization: Bearer KEY."
_NOT_THIS = "That key is not for this address; it needs a key for {scope}."
_NOT_MODEL = "That key is not for this model."
_TOO_MANY = "That key has made all the requests that it may make for now; try again in {seconds} s."
_OTHER_NAME = (
    "Without a key the server is managed at its own address only; ask it by that (such as 127.0.0.1), or set "
    "SERVEKIT_MANAGEMENT_KEY and send the key."
)
_OTHER_SITE = "A page of another site has sent this request; without a key the server is not managed by those."


def open_to_all(view: View) -> View:
    """Mark `view` as one that answers without a key: health."""
    setattr(view, _MARK, OPEN)
    return view


def management(view: View) -> View:
    """Mark `view` as one that changes or shows how the server is run: it needs a key for management.

    Where there are no keys it answers requests for the server's own address only.
    """

    @wraps(view)
    def own_address_only(*args: Any, **values: Any) -> Any:
        require_own_address()
        return view(*args, **values)

    setattr(own_address_only, _MARK, MANAGEMENT)
    return cast(View, own_address_only)


class Access:
    """What checks the requests of an application: `keyring` None lets all in, counts are kept in `tally`."""

    def __init__(self, app: Flask, settings: Settings, tally: Tally | None) -> None:
        """Raises SettingError for keys that cannot be used."""
        self.is_anonymous = settings.allow_anonymous
        self.keyring = Keyring(settings) if settings.has_keys else None
        self._views = app.view_functions
        self._tally = tally
        self._rates: Any = None

    def check(self, keyring: Keyring) -> None:
        """Let the current request pass, or raise Unauthorized, Forbidden or TooManyRequests. Its key goes no further."""
        given = request.environ.pop(HEADER, None)
        holder.set(None)
        scope = self.scope_of(request.endpoint)
        if scope == OPEN:
            return
        key = keyring.find(given) if given else None
        if key is None:
            metrics.observe_refused_key("unknown" if given else "missing")
            raise Unauthorized(_UNKNOWN if given else _MISSING)
        if scope != _ANY and not key.may(scope):
            raise _forbidden(_NOT_THIS.format(scope=scope))
        if key.rate_limit:
            self._count(key)
        holder.set(key)

    def scope_of(self, endpoint: str | None) -> str:
        """Return what a view is for; None is that of an address that leads nowhere."""
        if endpoint is None:
            return _ANY
        view, room = self._views.get(endpoint), endpoint.partition(".")[0]
        return getattr(view, _MARK, None) or _SCOPES.get(room, INFERENCE)

    def _count(self, key: Key) -> None:
        if self._rates is None:
            from servekit.rates import Rates  # its package is not for those who limit nobody

            self._rates = Rates(self._tally or Tally())
        if seconds := self._rates.wait_of(key.name, key.rate_limit):
            metrics.observe_shed("rate")
            error = TooManyRequests(_TOO_MANY.format(seconds=seconds))
            error.retry_after = seconds
            raise error


def init_app(app: Flask, settings: Settings, tally: Tally | None) -> None:
    """Let requests to `app` pass with a key only, if `settings` have any; before anything else looks at them.

    Raises SettingError for keys that cannot be used.
    """
    access = app.extensions[_KEY] = Access(app, settings, tally)
    app.extensions[JUDGES] = {}
    if access.keyring is not None:
        app.extensions[JUDGES][""] = access.keyring.knows
        app.before_request(partial(access.check, access.keyring))


def visible(app: Flask, repository: Repository) -> Repository:
    """Return `repository` as views are to see it: as far as the key of the current request goes."""
    return repository if _of(app).keyring is None else cast(Repository, _Visible(repository))


def guarded(app: Flask) -> frozenset[str]:
    """Return the names of the views of `app` that ask for a key."""
    access = _of(app)
    return frozenset(name for name in app.view_functions if access.keyring and access.scope_of(name) != OPEN)


def require_model(name: str) -> None:
    """Raise Forbidden if the key of the current request is for other models than `name`, whether or not that is there."""
    key = holder.get()
    if key is not None and not key.sees(name):
        raise _forbidden(_NOT_MODEL)


def require_own_address(allowed_origin: str = "") -> None:
    """Raise ForeignSite, where nobody needs a key, if a page of another site may have sent the current request.

    Such a page reaches a server on loopback by the browser of whoever works there: as itself, or under a name of its own
    that it has pointed at 127.0.0.1 (DNS rebinding). `allowed_origin` may (`*`: every one).
    """
    access, environ = _of(current_app), request.environ
    if access.keyring is not None:
        return
    host, origin = environ.get("HTTP_HOST", ""), environ.get("HTTP_ORIGIN", "")
    is_foreign = environ.get("HTTP_SEC_FETCH_SITE") == "cross-site" or bool(origin) and not _is_same(origin, host)
    if is_foreign and allowed_origin not in ("*", origin or "*"):
        raise ForeignSite(_OTHER_SITE)
    # Behind a unix socket stands a proxy, which knows its names; an open server has been opened on purpose.
    if host and not access.is_anonymous and environ.get("REMOTE_ADDR") and not _is_own(host, environ["SERVER_NAME"]):
        raise ForeignSite(_OTHER_NAME)


def _of(app: Flask) -> Access:
    return cast(Access, app.extensions[_KEY])


def _forbidden(message: str) -> Forbidden:
    metrics.observe_refused_key("forbidden")
    return Forbidden(message)


def _is_same(origin: str, host: str) -> bool:
    scheme, _, authority = origin.lower().partition("://")
    return bool(scheme) and authority == host.lower()


def _is_own(host: str, server: str) -> bool:
    """Return True if `host`, as a client wrote it, is loopback or the address `server` that it has connected to."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == server or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Visible:
    """The models of a worker that the key of the current request may ask; all else is the repository's."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    @property
    def models(self) -> list[Model]:
        key = holder.get()
        return [model for model in self._repository.models if key is None or key.sees(model.name)]

    def get(self, name: str, version: str | None = None) -> Model:
        self._require(name)
        return self._repository.get(name, version)

    def find(self, name: str, version: str | None = None) -> Entry:
        self._require(name)
        return self._repository.find(name, version)

    def desired(self) -> Desired:
        desired, key = self._repository.desired(), holder.get()
        return desired if key is None or key.models is None else desired.restricted(key.models)

    def _require(self, name: str) -> None:
        """Raise Forbidden for a model of others; ModelNotFound without the names of the others for one that is not there."""
        require_model(name)
        key = holder.get()
        if key is not None and key.models is not None and name not in (there := self.desired().models):
            raise ModelNotFound(f"That model is not loaded; the loaded ones: {', '.join(sorted(there)) or 'none'}.")
