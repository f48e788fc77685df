"""The one seam to Flask: where views find the models, the deadline and what a client sent, and how errors look."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import numpy as np
from flask import Blueprint, Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import HTTPException

from servekit import access
from servekit.batcher import TOO_LATE, Result, beside
from servekit.codecs.compression import inflate
from servekit.codecs.pieces import freed_in_pieces
from servekit.config import Settings
from servekit.errors import DeadlineExceeded, InvalidInput, ModelNotFound, OutOfMemory, RequestError
from servekit.exchange import RawRequest, RawResponse
from servekit.logs import tell_failure
from servekit.metrics import observe_shed
from servekit.middleware import DEADLINE
from servekit.model import Model
from servekit.payload import MAX_PARTS, BodyInMemory, Payload
from servekit.platforms import AUTO, NONE
from servekit.repository import Repository
from servekit.signature import Signature
from servekit.tally import Tally

log = logging.getLogger(__name__)

Write = Callable[[str, int], Response]  # from the sentence of an error and its status

_KEY, _VISIBLE, _SETTINGS, _DRESSES = "servekit", "servekit.visible", "servekit.settings", "servekit.dresses"
_SENTENCES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this address; POST to /predict, or GET /health.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This address does not take that method; the Allow header lists those it takes.",
    HTTPStatus.BAD_REQUEST: "The request cannot be understood.",
}


LARGE_BYTES = 2**18  # of a body or of outputs: from here on reading and writing them takes tens of milliseconds
GROWTH = 20  # how many times larger a compressed body may well be than it looks
LARGE_AT_ONCE = 2**25  # bytes of them in one worker: what is read may take twenty times its place in the body


class _Large:
    """Runs steps that read or write many bytes, so many at once that memory is bounded: one, or some that are smaller."""

    def __init__(self) -> None:
        self._bytes = 0
        self._changed = threading.Condition()

    def run(self, size: int, until: float, step: Callable[[], Result]) -> Result:
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size), max(0.0, until - time.monotonic())):
                observe_shed("large")
                raise DeadlineExceeded(TOO_LATE)
            self._bytes += size
        try:
            return step()
        finally:
            with self._changed:
                self._bytes -= size
                self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return not self._bytes or self._bytes + size <= LARGE_AT_ONCE


_large = _Large()


def init_app(app: Flask, settings: Settings, repository: Repository, tally: Tally | None = None) -> None:
    """Give `app` its models, its limits, its keys and the one shape of its errors; requests of keys are counted in `tally`.

    Raises SettingError for keys that cannot be used.
    """
    access.init_app(app, settings, tally)
    seen = access.visible(app, repository)
    app.extensions.update({_KEY: repository, _VISIBLE: seen, _SETTINGS: settings, _DRESSES: {}})
    app.request_class = BodyInMemory
    app.config["MAX_CONTENT_LENGTH"] = app.config["MAX_FORM_MEMORY_SIZE"] = settings.max_body_bytes
    app.config["MAX_FORM_PARTS"] = MAX_PARTS
    app.register_error_handler(Exception, _dressed(partial(_answer, error_response)))


def dress(app: Flask, port: str, render: Callable[[Exception], Response]) -> None:
    """Let `render` write every error of the requests that come in on `port`, which has a contract of its own."""
    app.extensions[_DRESSES][port] = render


def dress_blueprint(blueprint: Blueprint, write: Write) -> None:
    """Let `write` make the answer to every error of `blueprint`, whose contract has a form of its own."""
    blueprint.register_error_handler(Exception, partial(_answer, write))


def repository() -> Repository:
    """Return the models of this worker, as far as the current request may see them."""
    return cast(Repository, current_app.extensions[_VISIBLE])


def repository_of(app: Flask) -> Repository:
    """Return the models that `app` serves."""
    return cast(Repository, app.extensions[_KEY])


def settings() -> Settings:
    """Return the settings of this server."""
    return settings_of(current_app)


def settings_of(app: Flask) -> Settings:
    """Return the settings that `app` was made with."""
    return cast(Settings, app.extensions[_SETTINGS])


def default_model() -> Model:
    """Return the model that answers where an address names none: the one of the settings, or the only one.

    Raises as `Repository.get` does, and ModelNotFound if there are several.
    """
    return default_model_of(repository(), settings().default_model)


def default_model_of(repository: Repository, name: str) -> Model:
    """Return the model of `repository` called `name`, or the only one if that is ""; raise as `default_model` does."""
    if name:
        return repository.get(name)
    names = sorted(repository.desired().models)
    if len(names) != 1:
        there = ", ".join(names) or "none"
        raise ModelNotFound(f"One model should answer here, and there are: {there}; set SERVEKIT_DEFAULT_MODEL to one.")
    return repository.get(names[0])


def why_no_default(repository: Repository, settings: Settings) -> str:
    """Return why no model answers at the addresses of a cloud, which name none; "" if one does or none has to."""
    if settings.platform in (AUTO, NONE) or settings.multi_model:
        return ""
    try:
        default_model_of(repository, settings.default_model)
    except ModelNotFound as error:
        chosen = settings.default_model
        return f"SERVEKIT_DEFAULT_MODEL is {chosen}. {error}" if chosen else str(error)
    except RequestError:
        pass  # it may come
    return ""


def signature_of(model: Model) -> Signature:
    """Return what clients of `model` send and get; raise InvalidInput if its own code reads requests as they come."""
    if model.signature is None:
        raise InvalidInput("This model reads requests by code of its own; it is served at the addresses of its platform.")
    return model.signature


def ask(model: Model, path: str = "", accept: str = "") -> RawResponse:
    """Let the own code of `model` answer the current request; `path` and `accept` take the place of the client's."""
    row = np.empty(1, object)
    row[0] = RawRequest(
        request.get_data(cache=False),
        request.headers.get("Content-Type", ""),
        accept or request.headers.get("Accept", ""),
        request.method,
        request.query_string.decode("latin-1"),
        path or request.path,
        dict(request.headers),
    )
    return cast(RawResponse, model.predict({"request": row}, deadline())["response"][0])


def deadline() -> float:
    """Return the time of the monotonic clock, in seconds, until which the current request may wait."""
    return cast(float, request.environ[DEADLINE])


def apart(size: int, step: Callable[[], Result]) -> Result:
    """Return what `step` returns, which reads or writes `size` bytes; if they are many others are served meanwhile.

    Raises DeadlineExceeded when other large ones are not done in time, and Overloaded when too many wait for that.
    """
    if size <= LARGE_BYTES:
        return step()
    until = deadline()

    def run() -> Result:
        with freed_in_pieces():
            return step()

    return beside(lambda: _large.run(size, until, run))


def inflated_body() -> bytes:
    """Return the body of the current request, inflated if it is compressed; raise as `inflate` does."""
    body, encoding = request.get_data(cache=False), request.environ.get("HTTP_CONTENT_ENCODING")
    if not encoding:
        return body
    limit = settings().max_body_bytes
    return apart(min(limit, len(body) * GROWTH), lambda: inflate(body, encoding, limit))


def payload() -> Payload:
    """Return what the current request carries, read on first use; raise as `read_payload` does."""
    sent: BodyInMemory = request._get_current_object()  # type: ignore[attr-defined]
    return apart(len(sent.get_data()), lambda: sent.payload)


def error_response(message: str, status: int) -> Response:
    """Return `{"error": message}` with its status."""
    response = jsonify(error=message)
    response.status_code = status
    return response


def _dressed(render: Callable[[Any], Response]) -> Callable[[Any], Response]:
    def answer(error: Exception) -> Response:
        other = current_app.extensions[_DRESSES].get(request.environ["SERVER_PORT"])
        return cast(Response, other(error)) if other else render(error)

    return answer


def _answer(write: Write, error: Exception) -> Response:
    message, status, headers = _told(error)
    response = write(message, status)
    for name, value in headers:
        response.headers[name] = value
    return response


def _told(error: Exception) -> tuple[str, int, Sequence[tuple[str, str]]]:
    """Return the sentence, the status and the headers that a client is told of `error`; the log is told the rest."""
    if isinstance(error, RequestError):
        return str(error), error.status, error.headers
    if isinstance(error, HTTPException):
        return _told_of_http(error)
    if isinstance(error, MemoryError):
        log.error("There was no memory for a request: %s", error)
        return _told(OutOfMemory("The server is short of memory; send less at once, or try again later."))
    tell_failure(log, error)
    message = "The server failed; its log says why, under the X-Request-Id of this answer."
    return message, HTTPStatus.INTERNAL_SERVER_ERROR, []


def _told_of_http(error: HTTPException) -> tuple[str, int, Sequence[tuple[str, str]]]:
    """Return what Flask or Werkzeug has raised in our words, with its headers (Allow, for one)."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    message = _SENTENCES.get(status, f"{status.phrase}.")
    if status is HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        message = f"The request is too large; at most {limit} bytes and {MAX_PARTS} files or fields are read."
    return message, status, [(name, value) for name, value in error.get_headers(request.environ) if name != "Content-Type"]
