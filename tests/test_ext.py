import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from servekit import ext
from servekit.blueprints import ops
from servekit.config import Settings
from servekit.errors import DeadlineExceeded
from servekit.middleware import DEADLINE
from servekit.repository import Repository
from servekit.state import State


def test_an_application_without_models_is_not_ready() -> None:
    app = Flask("test")
    ext.init_app(app, Settings(), Repository(State.private([]), Settings()))
    app.register_blueprint(ops.bp)
    client = app.test_client()
    for path in ("/health", "/health/ready"):
        reply = client.get(path)
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert reply.json == {"status": "unhealthy", "model_loaded": False, "device": None, "error": "No model is loaded."}
    assert client.get("/health/live").status_code == 200


def test_an_http_error_without_a_sentence_of_ours_keeps_its_phrase_only() -> None:
    from werkzeug.exceptions import Gone

    app = Flask("test")
    ext.init_app(app, Settings(), Repository(State.private([]), Settings()))

    @app.get("/gone")
    def gone() -> None:
        raise Gone("a secret description")

    reply = app.test_client().get("/gone")
    assert (reply.status_code, reply.json) == (410, {"error": "Gone."})


def test_large_ones_are_read_one_after_the_other_and_not_past_the_deadline() -> None:
    app = Flask("test")
    gate, entered = threading.Event(), threading.Event()

    def ask(seconds: float, step: Callable[[], object]) -> object:
        with app.test_request_context(environ_overrides={DEADLINE: time.monotonic() + seconds}):
            return ext.apart(ext.LARGE_AT_ONCE, step)

    def hold() -> bool:
        entered.set()
        return gate.wait(10)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, 10, hold)
        assert entered.wait(10)
        with pytest.raises(DeadlineExceeded):
            ask(0.01, lambda: 1)
        second = pool.submit(ask, 10, lambda: first.done() or gate.is_set())
        gate.set()
        assert first.result() and second.result()
    assert ask(0.0, lambda: 2) == 2  # none is under way


def test_a_form_that_is_too_large_is_refused_while_large_ones_are_read() -> None:
    app, gate, entered = Flask("test"), threading.Event(), threading.Event()
    ext.init_app(app, Settings(max_body_bytes=ext.LARGE_BYTES), Repository(State.private([]), Settings()))
    app.post("/form")(lambda: {"count": len(ext.payload().all("a"))})
    soon = {DEADLINE: time.monotonic() + 10}

    def hold() -> bool:
        entered.set()
        return gate.wait(10)

    def hold_all() -> object:
        with app.test_request_context(environ_overrides=soon):
            return ext.apart(ext.LARGE_AT_ONCE, hold)

    with ThreadPoolExecutor() as pool:
        held = pool.submit(hold_all)
        assert entered.wait(10)
        reply = app.test_client().post("/form", data={"a": "x" * ext.LARGE_BYTES}, environ_overrides=soon)
        assert reply.status_code == 413
        assert not held.done()
        gate.set()
