"""What is left out of Flask must not be missed by anything that uses it."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from flask import Flask, Response, after_this_request, g, redirect, request, session, stream_with_context

from servekit.lean import FastJSON, LeanFlask, PythonJSON


def routes(app: Flask) -> Flask:
    @app.get("/json")
    def answer() -> dict[str, object]:
        return {"b": 1.5, "a": [True, None, "é"]}

    @app.get("/redirect")
    def elsewhere() -> Response:
        return redirect("/json")  # type: ignore[return-value]

    @app.get("/stream")
    def stream() -> Response:
        def pieces() -> Iterator[str]:
            yield request.path
            yield "!"

        return Response(stream_with_context(pieces()))

    @app.get("/after")
    def after() -> str:
        @after_this_request
        def mark(response: Response) -> Response:
            response.headers["X-After"] = g.get("before", "no")
            return response

        return "after"

    @app.get("/closed")
    def closed() -> Response:
        response = Response("closed")
        response.call_on_close(lambda: CLOSED.append(True))
        return response

    @app.get("/slash/")
    def slash() -> str:
        return "slash"

    @app.get("/text/<path:name>")
    def text(name: str) -> str:
        return name

    @app.route("/nothing", methods=["DELETE"])
    def nothing() -> tuple[str, int]:
        return "", 204

    return app


CLOSED: list[bool] = []
PATHS = ("/json", "/redirect", "/stream", "/after", "/closed", "/slash", "/slash/", "/text/a%2Fb%C3%A9", "/text/%FF", "/none")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_every_answer_is_that_of_flask(path: str, method: str) -> None:
    plain = Flask("plain")
    plain.json.sort_keys = False  # type: ignore[attr-defined]
    answers = []
    for app in (routes(plain), routes(LeanFlask("lean"))):
        response = app.test_client().open(path, method=method)
        content = response.get_json() if response.is_json and response.get_data() else response.get_data()
        headers = {name: value for name, value in response.headers if not (response.is_json and name == "Content-Length")}
        answers.append((response.status, headers, content))
    assert answers[0] == answers[1]


def test_what_is_registered_before_requests_runs() -> None:
    app = routes(LeanFlask("lean"))
    app.before_request(lambda: setattr(g, "before", "yes"))
    assert app.test_client().get("/after").headers["X-After"] == "yes"


def test_a_body_is_closed_when_someone_waits_for_that() -> None:
    CLOSED.clear()
    routes(LeanFlask("lean")).test_client().get("/closed").close()
    assert CLOSED == [True]


def test_there_are_no_sessions() -> None:
    app = LeanFlask("lean")
    app.testing = True  # exceptions come through

    @app.get("/")
    def keep() -> str:
        assert not session
        session["a"] = 1
        return "kept"

    with pytest.raises(RuntimeError, match="session is unavailable"):
        app.test_client().get("/")


@pytest.mark.parametrize("provider", [FastJSON, PythonJSON])
def test_both_kinds_of_json_say_the_same(provider: type[PythonJSON]) -> None:
    app = routes(LeanFlask("lean"))
    app.json = provider(app)
    body = app.test_client().get("/json").get_data()
    assert json.loads(body) == {"b": 1.5, "a": [True, None, "é"]}
    assert body.index(b'"b"') < body.index(b'"a"') and body.endswith(b"}\n") and b" " not in body


def test_fast_json_writes_arrays() -> None:
    app = LeanFlask("lean")
    app.add_url_rule("/", view_func=lambda: {"x": np.float32([1, 2.5])})
    assert app.test_client().get("/").get_json() == {"x": [1, 2.5]}
