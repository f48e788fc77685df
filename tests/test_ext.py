from flask import Flask

from servekit import ext
from servekit.blueprints import ops
from servekit.config import Settings
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
