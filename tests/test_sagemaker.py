"""SageMaker's and MLflow's contract, in process: their golden answers, and what hostile requests get."""

import dataclasses
import gc
import io
import json
import pickle
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from servekit.app import create_app
from servekit.blueprints.sagemaker import ATTRIBUTES, TARGET_MODEL, examples
from servekit.config import Settings
from servekit.ext import repository_of, why_no_default
from servekit.repository import Repository
from servekit.spec import TensorSpec
from tests import networks
from tests.conftest import png
from tests.versions import write_regressor
from train.data import Digits

GOLDEN = Path(__file__).parent / "golden" / "sagemaker"
SINGLE = json.loads((GOLDEN / "single.json").read_text())
MLFLOW = json.loads((GOLDEN / "mlflow.json").read_text())


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two models whose answers are known exactly: `double`, and `two`, which has two outputs."""
    folder = tmp_path_factory.mktemp("doubles")
    write_regressor(folder, networks.Double(), "double")
    outputs = tuple(TensorSpec(name, "float32", (-1, 1)) for name in ("twice", "half"))
    write_regressor(folder, networks.TwoOutputs(), "two", handler="servekit.handlers.base:Handler", outputs=outputs)
    return folder


def client_of(store: Path, platform: str = "sagemaker", **settings: Any) -> FlaskClient:
    return create_app(Settings(model_store=store, platform=platform, engine="torch", **settings)).test_client()


@pytest.fixture(scope="module")
def client(doubles: Path) -> FlaskClient:
    return client_of(doubles, default_model="double")


@pytest.fixture(scope="module")
def mlflow(doubles: Path) -> FlaskClient:
    return client_of(doubles, "mlflow", default_model="double")


def ask(client: FlaskClient, body: bytes | str, kind: str = "application/json", **headers: str) -> TestResponse:
    path = headers.pop("path", "/invocations")
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(path, data=body, content_type=kind, headers=fields)


def require_golden(client: FlaskClient, case: dict[str, Any]) -> None:
    headers = case.get("headers", {}) | ({"Accept": case["accept"]} if "accept" in case else {})
    method, body = case.get("method", "POST"), case.get("body", "").encode()
    answer = client.open(case["path"], method=method, data=body, content_type=case.get("type"), headers=headers)
    assert (answer.status_code, answer.get_data(as_text=True)) == (case["status"], case["answer"])
    assert answer.headers["Content-Type"] == case.get("answer_type", "application/json")
    for name, value in case.get("answer_headers", {}).items():
        assert answer.headers[name] == value


@pytest.mark.parametrize("name", SINGLE)
def test_sagemaker_gets_its_golden_answers(client: FlaskClient, name: str) -> None:
    require_golden(client, SINGLE[name])


@pytest.mark.parametrize("name", MLFLOW)
def test_mlflow_gets_its_golden_answers(mlflow: FlaskClient, name: str) -> None:
    require_golden(mlflow, MLFLOW[name])


def test_mlflow_asks_for_version_and_health(mlflow: FlaskClient, client: FlaskClient) -> None:
    assert mlflow.get("/version").status_code == mlflow.get("/health").status_code == 200
    assert client.get("/version").status_code == client.get("/models").status_code == 404


def test_an_array_comes_back_as_an_array(client: FlaskClient) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[1.0], [2.5]]))
    answer = ask(client, stream.getvalue(), "application/x-npy", Accept="application/x-npy")
    assert np.load(io.BytesIO(answer.data), allow_pickle=False).tolist() == [2, 5]
    answer = ask(client, stream.getvalue(), "application/x-npy", Accept="application/x-npy", **{TARGET_MODEL: "two"})
    assert np.load(io.BytesIO(answer.data), allow_pickle=False).tolist() == [[2, 0.5], [5, 1.25]]


def test_a_digit_is_read_in_every_form(store: Path, digits: Digits) -> None:
    client = create_app(Settings(model_store=store, platform="sagemaker", default_model="mnist")).test_client()
    image = digits.test_images[0]
    pixels = (image / 255).astype(np.float32)
    array = io.BytesIO()
    np.save(array, pixels[np.newaxis])
    found = ask(client, png(image), "image/png").get_json()["predictions"][0]
    bodies = {
        "application/x-npy": array.getvalue(),
        "text/csv": ",".join(map(str, pixels.ravel())).encode(),
        "application/jsonlines": json.dumps(pixels.tolist()).encode(),
        "application/json": json.dumps([{"image": pixels.tolist()}]).encode(),
    }
    for kind, body in bodies.items():
        assert ask(client, body, kind).get_json()[0]["predicted_class"] == found["predicted_class"], kind
    line = ask(client, png(image), "image/png", Accept="text/csv").get_data(as_text=True).split(",")
    assert (len(line), int(line[0])) == (12, found["predicted_class"])
    assert ask(client, b"no image", "image/png").status_code == 400


def test_the_default_answer_may_be_another(doubles: Path) -> None:
    client = client_of(doubles, default_model="double", default_accept="text/csv")
    assert ask(client, "1\n", "text/csv").data == ask(client, "1\n", "text/csv", Accept="*/*").data == b"2.0\n"
    assert ask(client, "1\n", "text/csv", Accept="application/json").data == b"[2.0]"


def test_a_server_without_a_model_for_the_addresses_of_a_cloud_says_so_at_the_start(doubles: Path) -> None:
    cloud = Settings(model_store=doubles, platform="sagemaker", engine="torch")
    repository = Repository.load(cloud)
    for name, reason in (
        ("", "One model should answer here, and there are: double, two; set SERVEKIT_DEFAULT_MODEL to one."),
        ("duoble", "SERVEKIT_DEFAULT_MODEL is duoble. That model is not loaded; the loaded ones: double, two."),
        ("two", ""),
    ):
        assert why_no_default(repository, dataclasses.replace(cloud, default_model=name)) == reason
    for elsewhere in ({"platform": "none"}, {"multi_model": True}):
        assert why_no_default(repository, dataclasses.replace(cloud, **elsewhere)) == ""  # type: ignore[arg-type]


def test_a_batch_has_as_many_lines_as_it_was_sent(client: FlaskClient) -> None:
    lines = "".join(f"{number}\n" for number in range(3000))
    for accept in ("text/csv", "application/jsonlines"):
        answer = ask(client, lines, "text/csv", Accept=accept).get_data(as_text=True)
        assert [float(line) for line in answer.splitlines()] == [2.0 * number for number in range(3000)]


@pytest.mark.parametrize("value", ["a\x7f", "é", "x" * 1025, "a\tb", "\x01"])
def test_attributes_that_could_break_an_answer_are_refused(client: FlaskClient, value: str) -> None:
    answer = ask(client, "[1]", **{ATTRIBUTES: value})
    assert answer.status_code == 400
    assert ATTRIBUTES not in answer.headers


def test_attributes_come_back_with_errors_and_not_from_pings(client: FlaskClient) -> None:
    answer = ask(client, "{", **{ATTRIBUTES: "trace=1"})
    assert (answer.status_code, answer.headers[ATTRIBUTES]) == (400, "trace=1")
    assert ATTRIBUTES not in client.get("/ping").headers


@pytest.mark.parametrize("kind", ["application/x-pickle", "application/octet-stream", "application/x-npy", "application/x-npz"])
def test_nothing_is_unpickled(client: FlaskClient, tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    stream = io.BytesIO()
    np.save(stream, np.array([Payload()], dtype=object), allow_pickle=True)
    for body in (pickle.dumps(Payload()), stream.getvalue()):
        assert ask(client, body, kind).status_code in (400, 415)
    assert not canary.exists()


def test_a_body_may_be_too_large(doubles: Path) -> None:
    client = client_of(doubles, default_model="double", max_body_bytes=100)
    answer = ask(client, "1\n" * 100, "text/csv")
    assert (answer.status_code, answer.get_json()["code"]) == (413, 413)


def test_without_a_default_model_the_remedy_is_named(doubles: Path) -> None:
    answer = ask(client_of(doubles), "[1]")
    assert (answer.status_code, "SERVEKIT_DEFAULT_MODEL" in answer.get_json()["error"]) == (404, True)


def test_who_is_not_ready_says_so(doubles: Path) -> None:
    client = client_of(doubles, default_model="double")
    for name in ("double", "two"):
        repository_of(client.application).scale(name, None, 0, 0)
    answers = [client.get("/ping"), ask(client, "[1]")]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(answer.headers["Retry-After"] == "1" for answer in answers)


def test_who_is_late_is_told(doubles: Path) -> None:
    answer = ask(client_of(doubles, default_model="double", deadline_seconds=1e-9), "[1]")
    assert (answer.status_code, answer.get_json()["code"]) == (504, 504)


def test_who_is_too_many_is_told(doubles: Path) -> None:
    client = client_of(doubles, default_model="double", max_waiting=1)
    repository_of(client.application)._backlog.enter(1)
    answer = ask(client, "[1]")
    assert (answer.status_code, int(answer.headers["Retry-After"]) >= 1) == (503, True)


def test_a_bug_of_a_model_stays_in_the_log(tmp_path: Path) -> None:
    write_regressor(tmp_path, networks.Faulty(), "faulty")
    write_regressor(tmp_path, networks.Hungry(), "hungry")
    client = client_of(tmp_path, default_model="faulty")
    answer = ask(client, "[1]")
    message = "The server failed; its log says why, under the X-Request-Id of this answer."
    assert (answer.status_code, answer.get_json()) == (500, {"error": message, "code": 500})
    assert ask(client, "[1]", **{TARGET_MODEL: "hungry"}).status_code == 503


def test_the_examples_work(client: FlaskClient, doubles: Path) -> None:
    for model in repository_of(client.application).models:
        for example in examples(model):
            answer = ask(client, json.dumps(example.body), **example.headers)
            assert answer.status_code == 200, answer.data


# A model that brings its own code.


CODE = """
def model_fn(model_dir): return 3
def transform_fn(model, body, content_type, accept, context):
    if body == "fail": raise RuntimeError("secret of the model")
    context.set_response_header(0, "X-Own", body)
    context.set_response_header(0, "Content-Length", "0")
    return f"{model} {body} {accept}", "text/plain"
"""


@pytest.fixture
def scripted(tmp_path: Path) -> FlaskClient:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(CODE)
    return client_of(tmp_path)


def test_inference_py_reads_requests_itself(scripted: FlaskClient) -> None:
    assert scripted.get("/ping").status_code == 200
    answer = ask(scripted, "[1]", Accept="*/*", **{ATTRIBUTES: "a"})
    assert (answer.status_code, answer.data) == (200, b"3 [1] application/json")
    assert (answer.headers["Content-Type"], answer.headers["X-Own"], answer.headers[ATTRIBUTES]) == ("text/plain", "[1]", "a")
    assert "X-Own" not in ask(scripted, "a\nSet-Cookie: b", "text/csv").headers
    assert repository_of(scripted.application).get("model").signature is None


def test_what_inference_py_fails_with_is_not_told(scripted: FlaskClient) -> None:
    answer = ask(scripted, "fail")
    assert (answer.status_code, answer.get_json()["code"]) == (500, 500)
    assert b"secret" not in answer.data and b"Traceback" not in answer.data


# Many models.


@pytest.fixture
def models(tmp_path: Path, doubles: Path) -> Path:
    """The folder that SageMaker puts models into, with two of them."""
    store = tmp_path / "models"
    for name in ("a", "b"):
        (store / name).mkdir(parents=True)
        shutil.copytree(doubles / "double" / "1", store / name / "model")
    return store


@pytest.fixture
def many(models: Path) -> FlaskClient:
    return client_of(models, multi_model=True)


@pytest.fixture
def load(many: FlaskClient, models: Path) -> Callable[..., TestResponse]:
    def load(name: Any, url: Any = None) -> TestResponse:
        url = str(models / "a" / "model") if url is None else url
        return many.post("/models", data=json.dumps({"model_name": name, "url": url}), content_type="application/json")

    return load


def test_models_come_and_go(many: FlaskClient, models: Path, load: Callable[..., TestResponse]) -> None:
    url = str(models / "a" / "model")
    assert (many.get("/ping").status_code, many.get("/models").get_json()) == (200, {"models": []})
    assert load("h1").status_code == 200
    assert load("h1").status_code == 409
    assert many.get("/models").get_json() == {"models": [{"modelName": "h1", "modelUrl": url}]}
    assert many.get("/models/h1").get_json() == {"modelName": "h1", "modelUrl": url}
    assert ask(many, "1\n", "text/csv", path="/models/h1/invoke", Accept="text/csv").data == b"2.0\n"
    assert ask(many, "[1]", path="/endpoints/e/invocations", **{TARGET_MODEL: "h1"}).data == b"[2.0]"
    assert many.delete("/models/h1").status_code == 200
    assert [many.delete("/models/h1").status_code, many.get("/models/h1").status_code] == [404, 404]
    assert ask(many, "[1]", path="/models/h1/invoke").status_code == 404
    assert many.get("/ping").status_code == 200


def test_the_list_comes_in_pages(many: FlaskClient, load: Callable[..., TestResponse]) -> None:
    for name in ("h1", "h2", "h3"):
        assert load(name).status_code == 200
    first = many.get("/models?limit=2").get_json()
    assert [model["modelName"] for model in first["models"]] == ["h1", "h2"]
    second = many.get(f"/models?limit=2&next_page_token={first['nextPageToken']}").get_json()
    assert ([model["modelName"] for model in second["models"]], "nextPageToken" in second) == (["h3"], False)
    for query in ("limit=x", "limit=-1", "next_page_token=1e3", "limit=" + "9" * 30):
        assert many.get(f"/models?{query}").status_code == 400


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("{store}/none/model", 404),
        ("{store}", 400),
        ("{store}/", 400),
        ("{store}/a/../b/model", 400),
        ("{store}/../models/a/model", 400),
        ("{store}/a/model/model.json", 404),
        ("{store}/a", 404),
        ("a/model", 400),
        ("/etc", 400),
        ("/", 400),
        ("", 400),
        ("file://{store}/a/model", 400),
        ("http://127.0.0.1:9/model", 400),
        ("s3://bucket/model.tar.gz", 400),
        ("\\\\host\\share", 400),
        ("{store}/a/model\x00", 400),
        ("{store}/a/%2e%2e/b/model", 404),
        ("{store}/link/model", 400),
        ("{store}/out", 400),
        ("x" * 10_000, 400),
        ("{store}/" + "x" * 300, 404),
        (5, 400),
        (None, 200),
    ],
)
def test_a_url_leads_below_the_models_only(
    models: Path, load: Callable[..., TestResponse], tmp_path: Path, url: Any, status: int
) -> None:
    (models / "link").symlink_to(models / "a")
    shutil.copytree(models / "a" / "model", tmp_path / "outside")
    (models / "out").symlink_to(tmp_path / "outside")
    answer = load("h", url.format(store=models) if isinstance(url, str) else url)
    assert answer.status_code == status, answer.data
    assert str(tmp_path) not in answer.get_data(as_text=True)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\nb", "é", "x" * 256, 5, None, ["a"]])
def test_a_name_is_plain(load: Callable[..., TestResponse], name: Any) -> None:
    assert load(name).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model_name": "a"}', b"[" * 1000])
def test_a_request_to_load_is_an_object(many: FlaskClient, body: bytes) -> None:
    assert many.post("/models", data=body).status_code == 400


def test_a_model_that_cannot_be_loaded_is_not_there(many: FlaskClient, models: Path, load: Callable[..., TestResponse]) -> None:
    (models / "a" / "model" / "model.pth").write_bytes(b"damaged")
    answer = load("h1")
    assert (answer.status_code, answer.get_json()["error"]) == (500, "The model cannot be loaded; the log of the server says why.")
    assert many.get("/models").get_json() == {"models": []}
    write_code(models / "b" / "model", "def model_fn(d): raise MemoryError('no more')")
    assert load("h2", str(models / "b" / "model")).status_code == 507


def test_a_model_that_finds_no_memory_gets_507(many: FlaskClient, models: Path, load: Callable[..., TestResponse]) -> None:
    code = "def model_fn(d): return 1\ndef transform_fn(m, b, c, a): raise MemoryError('no more')"
    write_code(models / "b" / "model", code)
    assert load("h1", str(models / "b" / "model")).status_code == 200
    assert ask(many, "[1]", path="/models/h1/invoke").status_code == 507


def write_code(folder: Path, code: str) -> None:
    for path in folder.iterdir():
        path.unlink()
    (folder / "code").mkdir()
    (folder / "code" / "inference.py").write_text(code)


def test_a_model_that_is_unloaded_leaves_no_memory_behind(
    many: FlaskClient, models: Path, load: Callable[..., TestResponse]
) -> None:
    code = """
class Weights(bytearray): pass
def model_fn(d):
    model = Weights(10)
    model.itself = model  # only the garbage collector can free it
    return model
def transform_fn(m, b, c, a): return "1"
"""
    write_code(models / "b" / "model", code)
    load("h1", str(models / "b" / "model"))
    watched = weakref.ref(repository_of(many.application).get("h1")._engine._model)
    gc.disable()
    try:
        assert watched() is not None
        assert many.delete("/models/h1").status_code == 200
        assert watched() is None
    finally:
        gc.enable()
