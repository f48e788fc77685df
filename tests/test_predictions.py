"""TorchServe's `/predictions` for models of the store, at servekit's own address."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from servekit import ext
from servekit.app import create_app
from servekit.blueprints import predictions
from servekit.config import Settings
from servekit.desired import Entry
from servekit.repository import Repository
from servekit.state import State
from tests.documented import write_models, write_own_reader
from train.data import Digits

FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def client(store: Path) -> FlaskClient:
    return create_app(Settings(model_store=store, platform="none")).test_client()


def ask(client: FlaskClient, path: str, body: Any, kind: str = "", method: str = "POST") -> tuple[int, Any]:
    response = client.open(f"/predictions/{path}", method=method, data=body, content_type=kind or None)
    assert response.content_type == "application/json"
    return response.status_code, json.loads(response.data)


def refusal(client: FlaskClient, path: str, body: Any, kind: str = "", method: str = "POST") -> tuple[int, str, str]:
    status, answer = ask(client, path, body, kind, method)
    assert list(answer) == ["code", "type", "message"] and answer["code"] == status
    return status, answer["type"], answer["message"]


def test_a_picture_gets_its_five_best_classes_in_every_form(client: FlaskClient, digit: bytes, digits: Digits) -> None:
    status, expected = ask(client, "mnist", digit)
    assert status == 200 and len(expected) == 5
    assert next(iter(expected)) == str(digits.test_labels[0])
    assert list(expected.values()) == sorted(expected.values(), reverse=True)
    answers = [
        ask(client, "mnist", digit, "image/png", "PUT"),  # curl -T
        ask(client, "mnist/1", digit, FORM),  # curl --data-binary
        ask(client, "mnist/", digit, "application/octet-stream"),
        *(ask(client, "mnist", {name: (io.BytesIO(digit), "x.png")}, "multipart/form-data") for name in ("data", "body", "file")),
    ]
    assert answers == [(200, expected)] * len(answers)
    encoded = {"b64": base64.b64encode(digit).decode()}
    for row in (encoded, {"image": encoded}, (digits.test_images[0] / 255).tolist()):
        assert ask(client, "mnist", json.dumps(row), "application/json") == (200, expected)
    assert ask(client, "mnist", json.dumps({"instances": [encoded] * 2})) == (200, {"predictions": [expected] * 2})


@pytest.mark.parametrize("body", ["5", "5.0", '{"value": 5}', "[5]", '{"value": [5]}'])
@pytest.mark.parametrize("kind", ["", FORM, "application/json"])
def test_a_number_gets_its_prediction(client: FlaskClient, body: str, kind: str) -> None:
    status, answer = ask(client, "linear", body, kind)
    assert status == 200 and abs(answer - 9) < 0.1


def test_a_field_of_a_form_is_read(client: FlaskClient) -> None:
    assert ask(client, "linear", "data=5", FORM) == ask(client, "linear", "5")
    assert ask(client, "linear", {"body": "5"}, "multipart/form-data") == ask(client, "linear", "5")
    status, answer = ask(client, "linear", '{"instances": [1, 5]}')
    assert status == 200 and len(answer["predictions"]) == 2


@pytest.mark.parametrize("scores", [np.array([0, 7, 255], np.uint8), np.array([False, False, True])])
def test_the_best_class_comes_first_whatever_its_dtype(scores: np.ndarray) -> None:
    assert next(iter(predictions._best(scores, ("a", "b", "c")))) == "c"


def test_models_of_several_inputs_and_outputs_answer_with_objects(tmp_path: Path) -> None:
    write_models(tmp_path)
    client = create_app(Settings(model_store=tmp_path, platform="none")).test_client()
    row = {"tag": "ab", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]}
    answer = {"tag": "xx", "tag_bytes": {"b64": "eHg="}, "sum": 15, "matrix": [[1, 2], [3, 4]]}
    assert ask(client, "tagged", json.dumps(row)) == (200, answer)


def test_errors_are_in_the_form_of_torchserve(client: FlaskClient) -> None:
    assert refusal(client, "half", "5") == (404, "ModelNotFoundException", "Model not found: half")
    message = "Model version: 9 does not exist for model: linear"
    assert refusal(client, "linear/9", "5") == (404, "ModelVersionNotFoundException", message)
    assert refusal(client, "linear", None, method="GET")[:2] == (405, "MethodNotAllowedException")
    for body in ("", "five", '{"x": 5}', "[1, 2]", "[" * 250_000, '{"instances": []}', "1e999", "null"):
        assert refusal(client, "linear", body)[:2] == (400, "BadRequestException")
    for body in (b"", b"no picture", b"[1", b'{"b64": "AAAA"}'):
        assert refusal(client, "mnist", body)[:2] == (400, "BadRequestException")
    assert "holds none of: data, body, file" in refusal(client, "mnist", {"x": "y"}, "multipart/form-data")[2]
    assert refusal(client, "mnist", b"--x", "multipart/form-data")[:2] == (400, "BadRequestException")


def test_limits_have_the_form_of_torchserve(store: Path) -> None:
    settings = Settings(model_store=store, platform="none", max_body_bytes=100, deadline_seconds=1e-9)
    client = create_app(settings).test_client()
    assert refusal(client, "linear", "5" * 101)[:2] == (413, "PayloadTooLargeException")
    assert refusal(client, "linear", "5")[:2] == (504, "InternalServerException")


def test_a_model_that_cannot_answer_here_says_why(tmp_path: Path) -> None:
    write_own_reader(tmp_path)
    client = create_app(Settings(model_store=tmp_path, platform="none")).test_client()
    assert refusal(client, "own", "5")[:2] == (400, "BadRequestException")
    with client.application.test_request_context():
        assert predictions.examples(ext.repository().get("own")) == []
    app = Flask("test")
    entry = Entry("late", "1", "servekit", "late/1", "/nowhere", workers=0)
    ext.init_app(app, Settings(platform="none"), Repository(State.private([entry]), Settings()))
    app.register_blueprint(predictions.bp)
    response = app.test_client().post("/predictions/late", data="5")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(response.data)["type"] == "ServiceUnavailableException"


def test_every_example_works(client: FlaskClient) -> None:
    with client.application.test_request_context():
        models = ext.repository().models
        found = [(example, client.application.url_map.bind("")) for model in models for example in predictions.examples(model)]
    assert len(found) == 4
    for example, urls in found:
        path = urls.build(example.endpoint, dict(example.values), "POST")
        assert client.post(path, json=example.body).status_code == 200
