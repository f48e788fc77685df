"""Refusing cheaply: while a line is full, what was answered to the last ones like it is the answer to the next.

A refusal through routing, view, codec and error handler costs a fifth of a prediction, so at five times the load that a
server can take refusals alone would take all of it. Here one costs a look-up: the contract's own answer is repeated.
"""

from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from servekit.config import CROWDED
from servekit.line import Line, crowded, refused_by
from servekit.middleware import DEADLINE, REQUEST

MAX_DOORS = 64  # remembered at a time; clients may send requests of as many kinds as they like

# What an answer to a refused request can depend on, beside the body; a content type without its parameters.
_KEYS = (
    *("SERVER_PORT", "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "HTTP_ACCEPT", "HTTP_HOST", "HTTP_ORIGIN"),
    "HTTP_X_AMZN_SAGEMAKER_TARGET_MODEL",
    # Which contracts say back: two requests with the same ones are no proof that the answer has none of them in it.
    *("HTTP_X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES", "HTTP_X_MS_REQUEST_ID", "HTTP_X_MS_CLIENT_REQUEST_ID", "HTTP_TRACEID"),
)
_RETRY_AFTER = "Retry-After"
BY_BODY = "servekit.by_body"  # environ key, set by a view: the body says which model is asked, so the next may ask another

Answer = tuple[str, list[tuple[str, str]], list[bytes]]


class Door:
    """Where requests of one kind come in: the line that has refused the last one, and what that was told."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.url_rule: Any = None  # for the meter, which looks for it on Flask's request
        # The last answer, and whether two were told it: then there is nothing of the request in it. One value, because
        # threads may look at it meanwhile.
        self.seen: tuple[Answer | None, bool] = (None, False)

    def note(self, answer: Answer, rule: Any) -> None:
        """Look at what a request was told by the application that this door's line has refused."""
        self.url_rule = rule
        self.seen = answer, self.seen[0] == answer


class Shedding:
    """Answers requests that the line they would join refuses, without the application."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._doors: dict[tuple[object, ...], Door] = {}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer as the application does, or would."""
        if CROWDED not in environ:
            return self._answer(environ, start_response)
        token = crowded.set(True)
        try:
            return self._answer(environ, start_response)
        finally:
            crowded.reset(token)

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused_by.set(None)
        authorization = environ.get("HTTP_AUTHORIZATION", "")  # which the application takes out
        if self._doors and (door := self._doors.get(_key(environ, authorization))) is not None:
            return self._at(door, environ, start_response)
        pieces = self._app(environ, start_response)
        if (line := refused_by.get()) is not None and BY_BODY not in environ:
            self._remember(_key(environ, authorization), line)
        return pieces

    def _at(self, door: Door, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        seen, is_sure = door.seen
        if is_sure and seen and door.line.refuses(environ[DEADLINE]):
            environ[REQUEST] = door
            status, headers, body = seen
            start_response(status, [*headers, (_RETRY_AFTER, str(door.line.retry_after))])
            return body
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None, /) -> Any:
            rule = getattr(environ.get(REQUEST), "url_rule", None)  # Flask forgets the request when it is done
            told[:] = [status, [header for header in headers if header[0] != _RETRY_AFTER], rule]
            return start_response(status, headers, exc_info)

        pieces = self._app(environ, start)
        if (line := refused_by.get()) is not None and told and isinstance(pieces, list):
            door.line = line
            door.note((told[0], told[1], list(pieces)), told[2])
        return pieces

    def _remember(self, key: tuple[object, ...], line: Line) -> None:
        if len(self._doors) >= MAX_DOORS:
            self._doors.clear()
        self._doors[key] = Door(line)


def _key(environ: WSGIEnvironment, authorization: str) -> tuple[object, ...]:
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0]
    return (kind, hash(authorization), *[environ.get(name, "") for name in _KEYS])  # a key of a client is not kept
