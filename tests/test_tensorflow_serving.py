"""TensorFlow Serving's REST API and KServe's V1: documented requests, refusals, and what hostile clients send."""

import base64
import gzip
import json
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from servekit import ext
from servekit.app import create_app
from servekit.blueprints import tensorflow_serving
from servekit.config import Settings
from servekit.desired import Entry
from servekit.repository import Repository
from servekit.state import State
from tests import networks
from tests.documented import write_models, write_own_reader
from tests.server import Server
from tests.versions import write_regressor
from train.data import Digits

GOLDEN = Path(__file__).parent / "golden" / "tensorflow_serving"
CASES = [(path.stem, case) for path in sorted(GOLDEN.glob("*.json")) for case in json.loads(path.read_text())]
PREDICT = "/v1/models/half_plus_three:predict"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the models of TensorFlow Serving's documentation."""
    folder = tmp_path_factory.mktemp("documented")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def client(documented: Path) -> FlaskClient:
    return create_app(Settings(model_store=documented, platform="none")).test_client()


@pytest.fixture(scope="module")
def trained(store: Path) -> FlaskClient:
    return create_app(Settings(model_store=store, platform="none")).test_client()


def ask(client: FlaskClient, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body)
    response = client.post(path, data=data, headers=headers)
    assert response.content_type == "application/json"
    return response.status_code, json.loads(response.data)


@pytest.mark.parametrize(("group", "case"), CASES, ids=[f"{group}: {case['name']}" for group, case in CASES])
def test_what_is_documented_is_answered(client: FlaskClient, group: str, case: dict[str, Any]) -> None:
    # As curl sends it; the content type means nothing.
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = client.open(case["path"], method=case["method"], data=case.get("body"), headers=headers)
    answer = json.loads(response.data, parse_constant=str)
    assert (response.status_code, response.content_type) == (case["status"], "application/json")
    assert answer == case["answer"] and list(answer) == list(case["answer"])


def test_a_digit_is_the_same_in_every_form(trained: FlaskClient, digit: bytes, digits: Digits) -> None:
    known = trained.post("/predict", data=digit, content_type="image/png").get_json()
    expected = {name: np.float32(value).astype(str).astype(float).tolist() for name, value in known.items()}
    encoded = {"b64": base64.b64encode(digit).decode()}
    pixels = (digits.test_images[0] / 255).tolist()
    for instance in (encoded, {"image": encoded}, pixels, [pixels], {"image": pixels}):
        answer = ask(trained, "/v1/models/mnist:predict", {"instances": [instance] * 2})
        assert answer == (200, {"predictions": [expected] * 2})
    for inputs in ([encoded], {"image": [encoded]}, [[pixels]]):
        columns = {name: [value] for name, value in expected.items()}
        assert ask(trained, "/v1/models/mnist/versions/1:predict", {"inputs": inputs}) == (200, {"outputs": columns})
    flat = np.ravel(pixels).tolist()
    scores = [[str(label), score] for label, score in enumerate(expected["probabilities"])]
    for feature in (encoded, [encoded], flat):
        status, answer = ask(trained, "/v1/models/mnist:classify", {"examples": [{"image": feature}]})
        assert (status, answer) == (200, {"results": [scores]})


def test_paths_are_read_in_any_case_and_with_a_slash_at_the_end(client: FlaskClient) -> None:
    for path in ("/v1/Models/half_plus_three:PREDICT", f"{PREDICT}/", "/v1/MODELS/half_plus_three/Versions/123:predict"):
        assert ask(client, path, {"instances": [1]}) == (200, {"predictions": [3.5]})
    for path in ("/v1/models/half_plus_three/", "/v1/models/half_plus_three/METADATA", "/v1/models/"):
        assert client.get(path).status_code == 200
    for path in ("//v1/models", "/v1//models", "/v1/models//half_plus_three", "/v1/models/a%2Fb", "/v1/models/a%2Fb:predict"):
        assert client.get(path).status_code in (400, 404)


def test_a_context_of_many_features_is_refused_once_and_not_for_each_example(client: FlaskClient) -> None:
    context = {f"no{number}": 1 for number in range(2000)}
    started = resource.getrusage(resource.RUSAGE_SELF)
    status, answer = ask(client, "/v1/models/half_plus_three:regress", {"context": context, "examples": [{}] * 3000})
    assert (status, "no input called no0, no1, no10" in answer["error"]) == (400, True), answer
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert used.ru_maxrss - started.ru_maxrss < 100_000  # kilobytes: merged with each, they take 700 000
    assert used.ru_utime - started.ru_utime < 0.5


def test_compressed_requests_are_read_within_the_limit(client: FlaskClient) -> None:
    body = gzip.compress(b'{"instances": [1.0]}')
    assert ask(client, PREDICT, body, **{"Content-Encoding": "gzip"}) == (200, {"predictions": [3.5]})
    bomb = gzip.compress(b" " * 100 * 2**20)
    status, answer = ask(client, PREDICT, bomb, **{"Content-Encoding": "gzip"})
    assert status == 413 and "inflates to too much" in answer["error"]
    assert ask(client, PREDICT, body[:-3], **{"Content-Encoding": "gzip"})[0] == 400
    assert ask(client, PREDICT, body, **{"Content-Encoding": "br"})[0] == 415


HOSTILE = {
    "deep lists": b'{"instances": ' + b"[" * 250_000 + b"]" * 250_000 + b"}",
    "deep lists that are not closed": b'{"instances": ' + b"[" * 250_000,
    "deep objects": b'{"instances": ' + b'{"x":' * 250_000 + b"1" + b"}" * 250_001,
    "a hundred levels": b'{"instances": ' + b"[" * 98 + b"1" + b"]" * 98 + b"}",
    "many empty lists": b'{"instances": [' + b"[]," * 10**6 + b"[]]}",
    "almost as many": b'{"instances": [' + b"[]," * 900_000 + b"[]]}",
    "many empty objects": b'{"instances": [' + b"{}," * 900_000 + b"{}]}",
    "a huge integer": b'{"instances": [' + b"9" * 10_000 + b"]}",
    "an integer of 300 digits": b'{"instances": [' + b"9" * 300 + b"]}",
    "a number that overflows": b'{"instances": [1e999]}',
    "a number that float32 cannot hold": b'{"instances": [1e300]}',
    "a name twice": b'{"instances": [1], "instances": {"x": 1}}',
    "not finite": b'{"instances": [NaN]}',
    "no UTF-8": b'{"instances": ["\xff"]}',
    "a lone surrogate": b'{"instances": [{"\\ud800": 1}]}',
    "null": b'{"instances": [null]}',
    "true": b'{"instances": [true]}',
    "text": b'{"instances": ["1"]}',
    "a signature of megabytes": b'{"signature_name": "' + b"x" * 10**6 + b'", "instances": [1]}',
    "names of megabytes": b'{"inputs": {"' + b"y" * 10**6 + b'": [1]}}',
    "bytes for a number": b'{"instances": [{"b64": "AAAA"}]}',
    "base64 of text that is none": b'{"instances": [{"b64": "' + b"=" * 10**6 + b'"}]}',
    "b64 that is a number": b'{"instances": [{"b64": 1}]}',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("verb", ["predict", "regress"])
def test_what_hostile_clients_send_is_refused(client: FlaskClient, verb: str, body: bytes) -> None:
    body = body.replace(b'"instances"', b'"examples"') if verb == "regress" else body
    status, answer = ask(client, f"/v1/models/half_plus_three:{verb}", body)
    assert status == 400
    assert list(answer) == ["error"] and len(answer["error"]) < 500
    assert ask(client, PREDICT, {"instances": [1.0]}) == (200, {"predictions": [3.5]})


def test_the_server_goes_on_after_hostile_requests(server: Server) -> None:
    hostile = [body for name, body in HOSTILE.items() if name.startswith(("deep", "many", "names"))]
    for body in (*hostile, b'{"instances": [' + b'{"b64": ""},' * 5000 + b'{"b64": ""}]}'):
        status, _, answer = server.post("/v1/models/mnist:predict", body)
        assert status in (400, 503) and list(answer) == ["error"]
    assert server.post("/v1/models/linear:predict", b'{"instances": [1]}')[0] == 200


def test_a_model_that_is_not_loaded_is_not_ready() -> None:
    entry = Entry("late", "1", "servekit", "late/1", "/nowhere", workers=0)
    app = Flask("test")
    ext.init_app(app, Settings(platform="none"), Repository(State.private([entry]), Settings()))
    app.register_blueprint(tensorflow_serving.bp)
    client = app.test_client()
    response = client.get("/v1/models/late")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
    status = {"version": "1", "state": "END", "status": {"error_code": "OK", "error_message": ""}}
    assert json.loads(response.data) == {
        "error": "Model with name late is not ready.",
        "model_version_status": [status],
        "name": "late",
        "ready": False,
    }
    for path in ("/v1/models/late:predict", "/v1/models/late/versions/1:predict"):
        assert ask(client, path, {"instances": [1]}, **{"X-Request-Id": "1"})[0] == 503
    assert client.get("/v1/models/late/metadata").status_code == 503


def test_a_version_that_could_not_be_loaded_says_so_without_its_reason() -> None:
    entry = Entry("bad", "1", "servekit", "bad/1", "/secret/folder", is_required=False)
    app = Flask("test")
    ext.init_app(app, Settings(platform="none"), Repository(State.private([entry]), Settings()))
    app.register_blueprint(tensorflow_serving.bp)
    response = app.test_client().get("/v1/models/bad")
    version = json.loads(response.data)["model_version_status"][0]
    assert (response.status_code, version["state"], version["status"]["error_code"]) == (503, "END", "INTERNAL")
    assert b"secret" not in response.data


def test_who_comes_too_late_or_with_too_much_is_told(documented: Path) -> None:
    late = create_app(Settings(model_store=documented, platform="none", deadline_seconds=1e-9)).test_client()
    status, answer = ask(late, PREDICT, {"instances": [1]})
    assert status == 504 and "deadline" in answer["error"]
    small = create_app(Settings(model_store=documented, platform="none", max_body_bytes=50)).test_client()
    assert ask(small, PREDICT, {"instances": [1] * 500})[0] == 413


def test_who_finds_too_many_waiting_is_told(tmp_path: Path) -> None:
    write_regressor(tmp_path, networks.Slow())
    app = create_app(Settings(model_store=tmp_path, platform="none", max_waiting=1))
    path = "/v1/models/linear:predict"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app.test_client(), path, {"instances": [5]})
        answers = []
        while not first.done():  # whoever of the two comes first is answered
            answers.append(ask(app.test_client(), path, {"instances": [5]}))
    answers.append(first.result())
    refused = [answer for status, answer in answers if status == 503]
    assert refused and all("The batch scheduling queue to which this task was submitted is full" in one["error"] for one in refused)
    assert all(answer == {"predictions": [5.0]} for status, answer in answers if status != 503)


def test_a_model_that_reads_requests_itself_is_not_asked(tmp_path: Path) -> None:
    write_own_reader(tmp_path)
    client = create_app(Settings(model_store=tmp_path, platform="none")).test_client()
    status, answer = ask(client, "/v1/models/own:predict", {"instances": [1]})
    assert (status, "code of its own" in answer["error"]) == (400, True)
    assert client.get("/v1/models/own").status_code == 200
    with client.application.test_request_context():
        assert tensorflow_serving.examples(ext.repository().get("own")) == []


def test_azure_keeps_its_own_root(documented: Path) -> None:
    app = Flask("test")
    settings = Settings(model_store=documented, platform="azure")
    ext.init_app(app, settings, Repository(State.private([]), settings))
    app.register_blueprint(tensorflow_serving.bp)
    assert app.test_client().get("/").status_code == 404
    assert app.test_client().get("/v1/models").get_json() == {"models": [], "object": "list", "data": []}


def test_every_example_works(trained: FlaskClient, client: FlaskClient) -> None:
    endpoints = set()
    for each in (trained, client):
        with each.application.test_request_context():
            models = ext.repository().models
        for model in models:
            for example in tensorflow_serving.examples(model):
                with each.application.test_request_context():
                    method = "GET" if example.body is None else "POST"
                    path = each.application.url_map.bind("").build(example.endpoint, dict(example.values), method)
                response = each.open(path, method=method, json=example.body)
                assert response.status_code == 200, (path, response.data)
                endpoints.add(example.endpoint.partition(".")[2])
    assert endpoints == {"status", "metadata", "predict", "classify", "regress"}
