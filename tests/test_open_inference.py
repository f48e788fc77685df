"""The Open Inference Protocol at its routes: answers, refusals, and what is compared with tests/golden/open_inference."""

import contextlib
import gzip
import json
import shutil
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient

from servekit.app import create_app
from servekit.blueprints import open_inference
from servekit.config import Settings
from servekit.ext import repository_of
from servekit.spec import TensorSpec
from tests import networks
from tests.server import Server
from tests.versions import write_regressor

GOLDEN = Path(__file__).parent / "golden" / "open_inference"
INFER = "/v2/models/double/infer"
LENGTH = "Inference-Header-Content-Length"
ROW = {"name": "value", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
ANSWER = {
    "model_name": "double",
    "model_version": "1",
    "outputs": [{"name": "twice", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 4.0, 6.0]}],
}
FIELDS: dict[str, Any] = {
    "handler": "servekit.handlers.base:Handler",
    "inputs": (TensorSpec("value", "float32", (-1, 3)),),
    "outputs": (TensorSpec("twice", "float32", (-1, 3)),),
    "labels": ("cat", "dog", "cow"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `double`, and with `fragile`, which fails on numbers above zero."""
    store = tmp_path_factory.mktemp("store")
    write_regressor(store, networks.Double(), "double", **FIELDS)
    write_regressor(store, networks.Faulty(), "fragile", **FIELDS)
    return store


@pytest.fixture(scope="module")
def app(folder: Path) -> Flask:
    return create_app(Settings(model_store=folder, max_body_bytes=2**20, engine="torch"))


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    """A client of a server that is ready before and after."""
    client = app.test_client()
    yield client
    assert client.get("/v2/health/ready").json == {"ready": True}


@pytest.fixture
def managed(folder: Path, tmp_path: Path) -> FlaskClient:
    """A client that may load and unload, with a store of its own."""
    store = tmp_path / "store"
    shutil.copytree(folder, store)
    return create_app(Settings(model_store=store, management=True, engine="torch")).test_client()


def binary(head: dict[str, Any], *tensors: bytes) -> dict[str, Any]:
    """Return body and headers of a request with binary tensors."""
    text = json.dumps(head).encode()
    return {"data": text + b"".join(tensors), "headers": {LENGTH: str(len(text))}}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_answers_are_the_golden_ones(client: FlaskClient, path: Path) -> None:
    for exchange in json.loads(path.read_text()):
        sent = exchange["request"]
        body = json.dumps(sent["json"]) if "json" in sent else sent.get("body", "").encode("latin-1")
        answer = client.open(sent["path"], method=sent["method"], data=body, headers=sent.get("headers", {}))
        what = {"status": answer.status_code, "content_type": answer.headers["Content-Type"]}
        if LENGTH in answer.headers:
            what |= {"length": answer.headers[LENGTH], "body": answer.data.decode("latin-1")}
        else:
            what["json"] = answer.json
        assert what == exchange["response"], sent


def test_content_types_of_requests_do_not_matter(client: FlaskClient) -> None:
    for kind in (None, "application/x-www-form-urlencoded", "application/octet-stream", "multipart/form-data", "text/plain; x"):
        answer = client.post(INFER, data=json.dumps({"inputs": [ROW]}), content_type=kind)
        assert (answer.status_code, answer.json) == (200, ANSWER)
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compression_of_both_directions(client: FlaskClient, encoding: str, compress: Any) -> None:
    rows = np.ones((200, 3), "<f4")
    head = {"inputs": [{"name": "value", "shape": [200, 3], "datatype": "FP32", "parameters": {"binary_data_size": 2400}}]}
    sent = binary(head | {"parameters": {"binary_data_output": True}}, rows.tobytes())
    sent["data"] = compress(sent["data"])
    sent["headers"] |= {"Content-Encoding": encoding, "Accept-Encoding": f"br, {encoding};q=0.5, identity;q=0.1"}
    answer = client.post(INFER, **sent)
    assert answer.status_code == 200 and answer.headers["Content-Encoding"] == encoding
    inflated = zlib.decompress(answer.data, 47)
    assert inflated[int(answer.headers[LENGTH]) :] == (2 * rows).tobytes()


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip, deflate", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate;q=0.6", "deflate"),
        ("*", "gzip"),
        ("*;q=0.5, gzip;q=0", "deflate"),
        ("gzip;q=0, deflate;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("gzip;q=x", None),
        ("br, zstd", None),
        ("", None),
    ],
)
def test_the_answer_is_compressed_as_the_client_prefers(client: FlaskClient, accepted: str, encoding: str | None) -> None:
    many = ROW | {"shape": [100, 3], "data": [1.25] * 300}
    answer = client.post(INFER, data=json.dumps({"inputs": [many]}), headers={"Accept-Encoding": accepted})
    assert answer.status_code == 200 and answer.headers.get("Content-Encoding") == encoding


def test_only_answers_of_infer_are_compressed(client: FlaskClient) -> None:
    headers = {"Accept-Encoding": "gzip"}
    for answer in (client.get("/v2/models/stats", headers=headers), client.post(INFER, data="{}", headers=headers)):
        assert "Content-Encoding" not in answer.headers and answer.json


def test_a_body_that_inflates_to_too_much_takes_no_memory(client: FlaskClient) -> None:
    bombs = [gzip.compress(bytes(200 * 2**20), 9), zlib.compress(bytes(200 * 2**20), 9)]
    bombs.append(gzip.compress(bombs[0]))
    tracemalloc.start()
    for bomb, encoding in zip(bombs, ("gzip", "deflate", "gzip"), strict=True):
        answer = client.post(INFER, data=bomb, headers={"Content-Encoding": encoding})
        assert answer.status_code in (400, 413)
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    for encoding, status in (("br", 415), ("gzip, gzip", 415), ("gzip", 400)):
        assert client.post(INFER, data=b"{}", headers={"Content-Encoding": encoding}).status_code == status


def test_a_body_that_is_too_large(client: FlaskClient) -> None:
    answer = client.post(INFER, data=b" " * (2**20 + 1))
    assert answer.status_code == 413 and "too large" in answer.json["error"]


@pytest.mark.parametrize(
    "name", ["..", "%2e%2e", "a%2fb", "..%2f..%2fetc", "double%00", "double%0aX", "%5c..%5c", "x" * 3000, "\u202e"]
)
def test_names_of_any_kind_are_only_looked_up(client: FlaskClient, name: str) -> None:
    for path in (name, f"{name}/versions/1", f"double/versions/{name}", f"{name}/stats"):
        answer = client.get(f"/v2/models/{path}")
        assert answer.status_code == 404 and len(answer.data) < 300
        assert answer.headers["Content-Type"] == "application/json"
    assert client.post(f"/v2/models/{name}/infer", data=json.dumps({"inputs": [ROW]})).status_code == 404


@pytest.mark.parametrize("path", [f"/{INFER}", "/v2//models/double/infer", "/V2/models/double/infer", f"{INFER}/x"])
def test_other_spellings_of_an_address_are_none(client: FlaskClient, path: str) -> None:
    assert client.post(path, data=json.dumps({"inputs": [ROW]})).status_code == 404


def test_a_slash_at_the_end_changes_nothing_and_nothing_redirects(client: FlaskClient) -> None:
    for path in ("/v2", "/v2/", "/v2/models", "/v2/models/", "/v2/models/double/", "/v2/health/live/"):
        assert client.get(path).status_code == 200
    assert client.post(INFER + "/", data=json.dumps({"inputs": [ROW]})).json == ANSWER


def test_wrong_methods(client: FlaskClient) -> None:
    wrong = ("GET", INFER), ("OPTIONS", INFER), ("POST", "/v2"), ("DELETE", "/v2/models/double"), ("PUT", "/v2/logging")
    for method, path in wrong:
        answer = client.open(path, method=method, headers={"X-HTTP-Method-Override": "POST"})
        assert (answer.status_code, answer.json) == (405, {"error": "Method Not Allowed"}) and answer.headers["Allow"]
    assert client.head("/v2/health/ready").status_code == 200
    assert client.get("/v2/nothing").json == {"error": "Not Found"}


def test_a_network_that_fails_says_nothing_of_itself(client: FlaskClient) -> None:
    answer = client.post("/v2/models/fragile/infer", data=json.dumps({"inputs": [ROW]}))
    assert answer.status_code == 500 and "secret" not in answer.text and "KeyError" not in answer.text


def test_the_timeout_of_a_request_lowers_the_deadline(client: FlaskClient) -> None:
    for timeout, status in ((1, 504), (5_000_000, 200), (0, 200)):
        sent = {"inputs": [ROW], "parameters": {"timeout": timeout}}
        assert client.post(INFER, data=json.dumps(sent)).status_code == status


def test_late_and_overloaded(folder: Path) -> None:
    body = json.dumps({"inputs": [ROW]})
    late = create_app(Settings(model_store=folder, engine="torch", deadline_seconds=1e-9)).test_client()
    assert late.post(INFER, data=body).status_code == 504
    app = create_app(Settings(model_store=folder, engine="torch", max_waiting=1))
    repository_of(app).get("double")._backlog.enter(1)
    answer = app.test_client().post(INFER, data=body)
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1 and "too busy" in answer.json["error"]


def test_a_model_that_is_loaded_in_no_worker_is_not_ready(managed: FlaskClient) -> None:
    repository_of(managed.application).scale("double", None, 0, 1)
    for answer in (managed.get("/v2/models/double/ready"), managed.post(INFER, data=json.dumps({"inputs": [ROW]}))):
        assert answer.status_code == 503
        assert answer.json == {"error": "Request for unknown model: 'double' is not at ready state"}
    assert managed.post("/v2/repository/models/double/load").status_code == 200
    assert managed.get("/v2/models/double/ready").status_code == 200


def test_odd_transport_harms_no_server(server: Server) -> None:
    body = json.dumps({"inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}]}).encode()
    path = "/v2/models/linear/infer"
    pieces = iter([bytes([byte]) for byte in body.ljust(70_000)])
    assert server.request("POST", path, pieces)[0] in (200, 400)  # our own worker takes no body that is cut so small
    with contextlib.closing(server.connect()) as connection:
        connection.putrequest("POST", path)
        for name, value in ((LENGTH, str(len(body))), (LENGTH, "0"), ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        assert connection.getresponse().status == 400
    assert server.request("POST", path, body, {LENGTH: "9" * 20})[0] == 400
    for _ in range(3):
        with contextlib.closing(server.connect()) as connection:  # goes away amid the body
            connection.request("POST", path, b"{", {"Content-Length": "100"})
    assert server.get("/v2/health/ready")[2] == {"ready": True}
    assert server.post(path, body)[0] == 200


def test_statistics_tell_requests_rows_and_passes(client: FlaskClient) -> None:
    def counts(name: str = "double") -> dict[str, Any]:
        [found] = client.get(f"/v2/models/{name}/versions/1/stats").json["model_stats"]
        return found

    before = counts()
    for rows in (1, 70):
        tensor = ROW | {"shape": [rows, 3], "data": [1] * 3 * rows}
        assert client.post(INFER, data=json.dumps({"inputs": [tensor]})).status_code == 200
    client.post(INFER, data=json.dumps({"inputs": [ROW], "parameters": {"timeout": 1}}))
    after = counts()
    assert after["inference_count"] - before["inference_count"] == 71
    assert after["execution_count"] - before["execution_count"] == 3  # of seventy rows two passes, of 64 and 6
    for name, count in (("success", 2), ("fail", 1), ("queue", 2), ("compute_infer", 2)):
        was, now = before["inference_stats"][name], after["inference_stats"][name]
        assert now["count"] - was["count"] == count and now["ns"] > was["ns"]
    assert {1, 6, 64} <= {batch["batch_size"] for batch in after["batch_stats"]} and after["last_inference"] > 1e12
    assert after["version"] == "1" and set(after["inference_stats"]) >= {"cache_hit", "cache_miss", "compute_input"}
    assert [each["name"] for each in client.get("/v2/models/stats").json["model_stats"]] == ["double", "fragile"]


def test_models_are_unloaded_and_loaded(managed: FlaskClient, tmp_path: Path) -> None:
    unloaded = {"name": "double", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert managed.post("/v2/repository/models/double/unload").status_code == 200
    assert managed.get("/v2/models/double/ready").status_code == 404
    assert managed.post("/v2/repository/index").json[0] == unloaded
    ready = managed.post("/v2/repository/index", data=b'{"ready": true}').json
    assert ready == [{"name": "fragile", "version": "1", "state": "READY"}]
    assert managed.post("/v2/repository/models/double/load", data=b"{}").json == {"name": "double", "load": True}
    assert managed.post(INFER, data=json.dumps({"inputs": [ROW]})).json == ANSWER
    write_regressor(tmp_path / "store", networks.Double(), "double", **FIELDS)
    assert managed.post("/v2/repository/models/double/load").status_code == 200
    assert managed.get("/v2/models/double").json["versions"] == ["2"]
    for name in ("double", "fragile"):
        managed.post(f"/v2/repository/models/{name}/unload", data=b'{"parameters": {"unload_dependents": false}}')
    answer = managed.get("/v2/health/ready")
    assert answer.status_code == 503 and answer.json["ready"] is False and answer.json["error"]
    assert managed.get("/v2/health/live").json == {"live": True}


def test_a_version_that_cannot_be_loaded_changes_nothing(managed: FlaskClient, tmp_path: Path) -> None:
    folder = write_regressor(tmp_path / "store", networks.Double(), "double", **FIELDS)
    (folder / "model.pth").write_bytes(b"damaged")
    answer = managed.post("/v2/repository/models/double/load")
    assert (answer.status_code, answer.json) == (500, {"error": "failed to load 'double', no version is available"})
    assert managed.get("/v2/models/double").json["versions"] == ["1"]


@pytest.mark.parametrize(
    "body",
    [
        {"parameters": {"config": "{}", "file:../../x": "eA=="}},
        {"parameters": {"file:" + "x" * 300: "eA=="}},
        {"parameters": {"config": '{"max_batch_size": "16"}'}},
        {"parameters": {"config": {}}},
        {"parameters": {"other": 1}},
        {"parameters": [1]},
        [],
    ],
)
def test_a_load_brings_nothing_with_it(managed: FlaskClient, body: Any) -> None:
    assert managed.post("/v2/repository/models/double/load", data=json.dumps(body)).status_code == 400


def test_json_nested_deep_is_refused_everywhere(managed: FlaskClient) -> None:
    for path in ("/v2/repository/index", *(f"/v2/repository/models/double/{verb}" for verb in ("load", "unload")), INFER):
        for body in (b"[" * 120 + b"]" * 120, b"[" * 250_000 + b"]" * 250_000, b'{"a":' * 250_000):
            assert managed.post(path, data=body).status_code == 400
    assert managed.get("/v2/health/ready").status_code == 200


def test_examples_work(app: Flask, client: FlaskClient) -> None:
    for model in repository_of(app).models:
        [example] = open_inference.examples(model)
        assert client.post(f"/v2/models/{model.name}/infer", data=json.dumps(example.body)).status_code == 200
