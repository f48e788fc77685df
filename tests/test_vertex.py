"""Vertex AI's routes; Google's own client asks them in tests/clients/test_vertex.py."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import url_for
from flask.testing import FlaskClient

from servekit.app import create_app
from servekit.blueprints import vertex
from servekit.config import Settings
from servekit.errors import SettingError
from servekit.ext import repository_of
from servekit.platforms import platform_of
from tests.test_blueprints import shape_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "vertex" / "answers.json").read_text())
IDS = {"AIP_ENDPOINT_ID": "7", "AIP_DEPLOYED_MODEL_ID": "8"}
PREDICT = "/v1/endpoints/7/deployedModels/8:predict"
CLIENT = "/v1/projects/p/locations/l/endpoints/e"

Serve = Callable[..., FlaskClient]


@pytest.fixture
def serve(store: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve the line, or what `settings` say, as Vertex AI does with these variables."""

    def start(settings: dict[str, Any] | None = None, **variables: str) -> FlaskClient:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        chosen = {"model_store": store, "default_model": "linear", **(settings or {})}
        return create_app(Settings(platform="vertex", **chosen)).test_client()

    return start


@pytest.mark.parametrize("name", GOLDEN)
def test_every_answer_has_its_golden_form(serve: Serve, name: str) -> None:
    case = GOLDEN[name]
    answer = serve(**IDS).open(case["path"], method=case["method"], data=case.get("body", "").encode())
    assert (answer.status_code, answer.content_type) == (case["status"], "application/json")
    if "answer" in case:
        assert answer.json == case["answer"]
    else:
        assert shape_of(answer.json) == case["shape"]


def test_a_digit_may_be_sent_in_any_form(serve: Serve, digit: bytes) -> None:
    client, encoded = serve({"default_model": "mnist"}, **IDS), base64.b64encode(digit).decode()
    expected = client.post(PREDICT, data=digit, content_type="image/png").json["predictions"]
    assert len(expected) == 1 and expected[0]["confidence"] == max(expected[0]["probabilities"])
    body = {"instances": [{"b64": encoded}, {"b64": encoded}]}
    assert client.post(PREDICT, json=body).json["predictions"] == expected * 2
    assert client.post(PREDICT, data=json.dumps(body)).json["predictions"] == expected * 2  # no content type
    assert client.post(f"{CLIENT}:rawPredict", data=digit, content_type="image/png").json["predictions"] == expected
    wrapped = {"httpBody": {"contentType": "application/octet-stream", "data": encoded}}
    answer = client.post(f"{CLIENT}:rawPredict", json=wrapped).json
    assert json.loads(base64.b64decode(answer["data"]))["predictions"] == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"instances": 5}', b'{"instances": []}', b'{"instances": [null]}', b'{"instances": ["x"]}', b"\xff"]
    + [b'{"instances": [1e999]}', b'{"instances": ' + b"[" * 1000, b'{"instances": [[1], [2, 3]]}']
    + [b'{"instances": [{"other": 1}]}', b'{"instances": [{"b64": "x"}]}'],
)
def test_bad_input_is_refused_with_a_sentence(serve: Serve, body: bytes) -> None:
    for path in (PREDICT, f"{CLIENT}:predict", f"{CLIENT}:rawPredict"):
        answer = serve(**IDS).post(path, data=body)
        assert answer.status_code == 400
        assert answer.json["error"]["status"] == "INVALID_ARGUMENT" and answer.json["error"]["message"].endswith((".", "}."))


@pytest.mark.parametrize("wrapped", [5, {"data": 5}, {"data": "not base64!"}, {"contentType": 5, "data": ""}])
def test_a_wrapped_body_must_be_whole(serve: Serve, wrapped: Any) -> None:
    assert serve(**IDS).post(f"{CLIENT}:rawPredict", json={"httpBody": wrapped}).status_code == 400


def test_what_is_not_finite_is_null(serve: Serve) -> None:
    client = serve(**IDS)
    model = repository_of(client.application).get("linear")
    found = {"prediction": np.array([np.nan, 1.5], np.float32), "more": np.array([[np.inf, 1], [2, 3]], np.float32)}
    model.predict = lambda tensors, deadline: found
    answer = client.post(PREDICT, json={"instances": [[1], [2]]}).json
    assert answer == {"predictions": [{"prediction": None, "more": [None, 1.0]}, {"prediction": 1.5, "more": [2.0, 3.0]}]}


def test_the_routes_are_those_that_the_platform_names(serve: Serve) -> None:
    client = serve(AIP_HEALTH_ROUTE="/is/it(well)", AIP_PREDICT_ROUTE="/predict", **IDS)
    assert client.get("/is/it(well)").status_code == 200
    assert set(client.post("/predict", json={"instances": [[5]]}).json) == {"predictions"}  # and not servekit's own
    assert client.post(PREDICT, json={"instances": [[5]]}).status_code == 400  # TensorFlow Serving's word for no address
    assert client.get("/predict").status_code == 405


def test_without_ids_the_routes_are_those_of_local_runs() -> None:
    assert vertex.paths({}) == ("/health", "/predict")
    assert vertex.paths(IDS) == ("/v1/endpoints/7/deployedModels/8", PREDICT)


@pytest.mark.parametrize("path", ["health", "/<name>", "/a b", "/a?b", "/a#b", "/%41", "/\u00e4", "/a\n", "https://a.example/"])
@pytest.mark.parametrize("variable", ["AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"])
def test_a_route_that_cannot_be_ends_the_start(variable: str, path: str) -> None:
    with pytest.raises(SettingError, match=f"{variable} must be the path of an address"):
        vertex.paths({variable: path})


def test_ids_cannot_make_a_route_of_their_own_either() -> None:
    with pytest.raises(SettingError, match="AIP_HEALTH_ROUTE"):
        vertex.paths({"AIP_ENDPOINT_ID": "<path:all>", "AIP_DEPLOYED_MODEL_ID": "8"})


def test_the_probe_fails_until_predictions_can_be_made(serve: Serve) -> None:
    client = serve(**IDS)
    for name in ("linear", "mnist"):
        repository_of(client.application).unregister(name)
    answer = client.get("/v1/endpoints/7/deployedModels/8")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json == {"error": {"code": 503, "message": "No model is loaded.", "status": "UNAVAILABLE"}}
    assert client.post(PREDICT, json={"instances": [[5]]}).json["error"]["status"] == "NOT_FOUND"


def test_overload_lateness_and_size_are_told(serve: Serve) -> None:
    busy = serve({"max_waiting": 1}, **IDS)
    repository_of(busy.application).get("linear")._backlog.enter(1)
    answer = busy.post(PREDICT, json={"instances": [[5]]})
    assert (answer.status_code, answer.json["error"]["status"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["Retry-After"]) > 0
    late = serve({"deadline_seconds": 1e-9}).post(PREDICT, json={"instances": [[5]]})
    assert (late.status_code, late.json["error"]["status"]) == (504, "DEADLINE_EXCEEDED")
    large = serve({"max_body_bytes": 10}).post(PREDICT, json={"instances": [[5]]})
    assert (large.status_code, large.json["error"]["code"]) == (413, 413)


def test_what_fails_unexpectedly_is_told_in_the_log_only(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve(**IDS)
    model = repository_of(client.application).get("linear")
    for error, status in ((ValueError("secret"), 500), (MemoryError("secret"), 503)):

        def fail(*arguments: Any, error: Exception = error) -> Any:
            raise error

        model._batcher.engine = fail
        answer = client.post(PREDICT, json={"instances": [[5]]})
        assert answer.status_code == status and "secret" not in answer.text
    assert caplog.text.count("secret") >= 2


def test_examples_work(serve: Serve) -> None:
    for name in ("linear", "mnist"):
        client = serve({"default_model": name}, **IDS)
        for example in vertex.examples(repository_of(client.application).get(name)):
            with client.application.test_request_context():
                path = url_for(example.endpoint, **example.values)
            method = "GET" if example.body is None else "POST"
            assert client.open(path, method=method, json=example.body).status_code == 200


def test_the_platforms_variables_are_read(tmp_path: Path) -> None:
    found = platform_of({"AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": "9000", "AIP_STORAGE_URI": str(tmp_path)})
    assert (found.name, found.bind, found.models) == ("vertex", "0.0.0.0:9000", tmp_path)
    with pytest.raises(SettingError, match="nothing is fetched"):
        platform_of({"AIP_MODE": "PREDICTION", "AIP_STORAGE_URI": "gs://bucket/model"})
    with pytest.raises(SettingError, match="must name a folder"):
        platform_of({"AIP_MODE": "PREDICTION", "AIP_STORAGE_URI": str(tmp_path / "none")})
    elsewhere = {"AIP_MODE": "PREDICTION", "AIP_STORAGE_URI": "gs://bucket/model", "SERVEKIT_MODEL_STORE": "/models"}
    assert platform_of(elsewhere).models is None
