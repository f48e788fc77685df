"""Flask with less work for each request: what it does for features that nothing here uses is passed over.

Routing, views, error handlers, test client and extensions are Flask's own.
"""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from wsgiref.types import StartResponse, WSGIEnvironment

from flask import Flask, Response
from flask.json.provider import DefaultJSONProvider, JSONProvider
from flask.sessions import NullSession, SessionInterface
from werkzeug.routing import MapAdapter

if TYPE_CHECKING:
    from flask.wrappers import Request


class PlainResponse(Response):
    """A response that hands a body of one piece to the server as it is, without an iterator around it."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer; whatever is not plain (a redirect, HEAD, a stream) goes Werkzeug's way."""
        body, status = self.response, self._status_code
        is_plain = type(body) is list and len(body) == 1 and type(body[0]) is bytes and not self._on_close
        if not is_plain or status < HTTPStatus.OK or status in _BODILESS or environ["REQUEST_METHOD"] == "HEAD":
            return super().__call__(environ, start_response)
        headers = self.headers.to_wsgi_list()
        names = [name.lower() for name, _ in headers]
        if "location" in names:
            return super().__call__(environ, start_response)
        if "content-length" not in names:
            headers.append(("Content-Length", str(len(body[0]))))  # type: ignore[index]
        start_response(self._status, headers)
        return body  # type: ignore[return-value]


_BODILESS = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.RESET_CONTENT, HTTPStatus.NOT_MODIFIED))


class PythonJSON(DefaultJSONProvider):
    """JSON by the standard library; members keep the order that they were given."""

    sort_keys = False


class FastJSON(PythonJSON):
    """JSON by orjson, in a tenth of the time; it writes text as UTF-8 and not as escapes."""

    def __init__(self, app: Any) -> None:
        import orjson

        super().__init__(app)
        self._dumps: Callable[..., bytes] = orjson.dumps
        self._options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY

    def response(self, *args: Any, **kwargs: Any) -> Response:
        """Return a response that holds its arguments as JSON."""
        body = self._dumps(self._prepare_response_obj(args, kwargs), default=self.default, option=self._options)
        return PlainResponse(body, content_type=self.mimetype)


class NoSession(SessionInterface):
    """No client has a session."""

    _session = NullSession()

    def open_session(self, app: Flask, request: "Request") -> NullSession:
        """Return the session that nothing can be stored in."""
        return self._session

    def is_null_session(self, obj: object) -> bool:
        """Say that there is nothing to save."""
        return True


class LeanFlask(Flask):
    """A Flask application whose views are plain functions and whose clients have no sessions."""

    response_class = PlainResponse
    json_provider_class: type[JSONProvider] = FastJSON if find_spec("orjson") else PythonJSON
    session_interface = NoSession()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Ports with routes of their own: those of a blueprint that is registered with the port as its `subdomain`.
        self.ports: frozenset[str] = frozenset()

    def create_url_adapter(self, request: "Request | None") -> MapAdapter | None:
        """Return what matches the route of `request`: no route here depends on the host, some on the server's port."""
        looks_at_hosts = self.url_map.host_matching or self.subdomain_matching or self.config["TRUSTED_HOSTS"]
        if request is None or looks_at_hosts:
            return super().create_url_adapter(request)
        environ = request.environ
        host = environ.get("HTTP_HOST") or environ["SERVER_NAME"]
        path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
        scheme, method, query = environ["wsgi.url_scheme"], environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        port = environ["SERVER_PORT"]
        routes = port if port in self.ports else ""
        return MapAdapter(self.url_map, host, environ["SCRIPT_NAME"], routes, scheme, path, method, query)

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func`: there is no coroutine here to wrap."""
        return func

    def preprocess_request(self) -> Any:
        """Call what was registered to run before requests, if anything was."""
        if self.before_request_funcs or self.url_value_preprocessors:
            return super().preprocess_request()
        return None
