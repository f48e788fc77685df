"""Nobody gets in: every address of every contract, by every method and spelling, with no key, a wrong one, and one too small."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask import Flask
from werkzeug.test import EnvironBuilder, TestResponse, run_wsgi_app

from servekit import access
from servekit.app import create_app
from servekit.config import Settings
from servekit.ext import repository_of
from servekit.keys import JUDGES
from servekit.repository import Repository
from tests import triton_models
from tests.handler_archives import write as write_modules

ANY, OWNER = "any-key-of-a-client", "the-key-of-the-owner"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW")
OPS = {"/health", "/health/live", "/health/ready"}
HEALTH = OPS | {"/", "/v2/health/live", "/v2/health/ready"}
V2 = {
    *(("POST", f"/v2/repository/{rest}") for rest in ("index", "models/linear/load", "models/linear/unload")),
    *((method, f"/v2/{place}trace/setting") for method in ("GET", "POST") for place in ("", "models/linear/")),
    *((method, "/v2/logging") for method in ("GET", "POST")),
}
HANDLER = """
    import json, os
    class Handler:
        def initialize(self, context): pass
        def handle(self, data, context):
            return [{"headers": context.get_all_request_header(0), "environ": dict(os.environ)} for _ in data]
    """


class Case(NamedTuple):
    """An application with keys: what is open, what is for management, and how what is missing a key is answered."""

    app: Flask
    open: set[str]
    management: set[tuple[str, str]]
    ports: tuple[str, ...] = ("80",)
    refused: int = 401
    forbidden: int = 403


def with_keys(store: Path, **settings: Any) -> Flask:
    return create_app(Settings(model_store=store, inference_key=ANY, management_key=OWNER, management=True, **settings))


def torchserve(folder: Path) -> Flask:
    write_modules(folder / "dump", dump_handler=HANDLER)
    manifest = {"model": {"modelName": "dump", "modelVersion": "1.0", "handler": "dump_handler.py"}}
    (folder / "dump" / "MAR-INF").mkdir()
    (folder / "dump" / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    return with_keys(folder, torchserve=f"model_store={folder}\nenable_model_api=true\nts_open_inference_protocol=oip")


@pytest.fixture(scope="module", params=["own", "sagemaker", "multi_model", "mlflow", "vertex", "azure", "torchserve"])
def case(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "own":
        return Case(with_keys(store), HEALTH, V2)
    if request.param == "torchserve":
        opened = OPS | {"/ping", "/ping/x", "/ping/x/.", "/ping/x%2f", "/ping/."}
        app = torchserve(tmp_path_factory.mktemp("archives"))
        return Case(app, opened, {("GET", "/models"), ("POST", "/models")}, ("8080", "8081", "8082"), 400, 400)
    if request.param == "multi_model":
        changes = {("POST", "/models"), ("DELETE", "/models/linear")}
        folder = tmp_path_factory.mktemp("multi")
        shutil.copytree(store / "linear" / "1", folder / "linear")
        return Case(with_keys(folder, platform="sagemaker", multi_model=True), OPS | {"/ping"}, V2 | changes)
    opened = OPS | {"sagemaker": {"/ping"}, "mlflow": {"/ping"}, "azure": {"/"}, "vertex": set()}[request.param]
    return Case(with_keys(store, platform=request.param, default_model="linear"), opened, V2)


def ask(app: Flask, method: str, path: str, key: str = "", port: str = "80", **more: Any) -> TestResponse:
    """Send a request whose path is exactly `path`, as the gateway hands it on."""
    headers = more.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
    environ = EnvironBuilder("/", method=method, headers=headers, **more).get_environ()
    environ |= {"PATH_INFO": path, "SERVER_PORT": port, "REMOTE_ADDR": "127.0.0.1"}
    return TestResponse(*run_wsgi_app(app, environ, buffered=True), request=None)  # type: ignore[arg-type]


def paths_of(app: Flask) -> set[str]:
    """Return a path for each route, and some that lead nowhere; of a platform its own only."""
    values = {"name": "linear", "version": "1", "kind": "systemsharedmemory", "asset": "docs.js", "verb": "load"}
    fill = re.compile(r"<(?:[^:<>]*(?:\([^)]*\))?:)?(\w+)>")
    own = {"sagemaker", "sagemaker_multi_model", "mlflow", "vertex", "azure"} & app.blueprints.keys()
    own |= {name for name in app.blueprints if name.startswith("torchserve")}
    rules = [rule for rule in app.url_map.iter_rules() if not own or rule.endpoint.partition(".")[0] in {*own, "ops"}]
    found = {fill.sub(lambda name: values.get(name[1], "x"), rule.rule) for rule in rules}
    return found | {"/nowhere", "/v2/nowhere", "/v1/nowhere"}


def spellings(path: str) -> Iterator[str]:
    yield path
    if path != "/":
        yield from (path + "/", "/" + path, path.replace("/", "//"), path + "/.", "/." + path, path + "%2f")


def state_of(app: Flask) -> Any:
    repository = repository_of(app)
    return repository.desired(), [(model.name, model.version) for model in repository.models]


def test_without_a_key_there_is_health_and_nothing_else(case: Case) -> None:
    before, answers = state_of(case.app), set()
    for port in case.ports:
        for path in sorted(paths_of(case.app)):
            for spelling in spellings(path):
                for method in METHODS:
                    answer = ask(case.app, method, spelling, port=port)
                    if answer.status_code != case.refused:
                        place = re.sub("/+", "/", spelling)
                        assert place in case.open or place.rstrip("/") in case.open, (method, spelling, port, answer.status)
                        answers.add(place)
                    elif case.refused == 401:
                        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answers >= case.open
    assert state_of(case.app) == before


@pytest.mark.parametrize(
    "sent",
    [
        {"headers": {"Authorization": f"Bearer {ANY[:-1]}"}},
        {"headers": {"Authorization": f"Basic {ANY}"}},
        {"headers": {"X-API-Key": ANY, "Cookie": f"key={ANY}", "Proxy-Authorization": f"Bearer {ANY}"}},
        {"query_string": {"key": ANY, "token": ANY, "access_token": ANY}},
    ],
)
def test_what_is_no_key_opens_nothing(case: Case, sent: dict[str, Any]) -> None:
    for path in paths_of(case.app) - case.open:
        for method in ("GET", "POST", "DELETE"):
            answer = ask(case.app, method, path, port=case.ports[0], **sent)
            assert answer.status_code == case.refused and ANY not in answer.text, (method, path)


def test_a_missing_key_is_said_before_a_body_that_is_too_large(case: Case) -> None:
    for port in case.ports:
        for path in sorted(paths_of(case.app) - case.open):
            answer = ask(case.app, "POST", path, port=port, environ_overrides={"CONTENT_LENGTH": str(2**40)})
            assert answer.status_code == case.refused, (path, port, answer.status)


def test_a_key_for_inference_manages_nothing(case: Case) -> None:
    before, port = state_of(case.app), case.ports[-2 if len(case.ports) > 1 else 0]
    for method, path in case.management:
        for spelling in (path, path + "/", "/" + path):
            answer = ask(case.app, method, spelling, ANY, port)
            assert answer.status_code == case.forbidden, (method, spelling, answer.text)
    assert state_of(case.app) == before
    for method, path in case.management:
        if method != "DELETE" and not path.endswith("unload"):
            answer = ask(case.app, method, path, OWNER, port)
            assert answer.status_code not in (401, 403) and "InvalidKeyException" not in answer.text, (method, path)


def test_a_key_leads_to_everything_that_is_for_it(case: Case) -> None:
    for path in paths_of(case.app):
        for method in ("GET", "POST"):
            if (method, path) not in case.management and path != "/metrics":
                answer = ask(case.app, method, path, ANY, case.ports[0])
                assert answer.status_code not in (401, 403), (method, path)
                assert "InvalidKeyException" not in answer.text


def test_metrics_are_for_those_who_may_see_them(case: Case) -> None:
    port = case.ports[-1]
    assert ask(case.app, "GET", "/metrics", ANY, port).status_code == case.forbidden
    assert ask(case.app, "GET", "/metrics", OWNER, port).status_code == 200


# In the dress of each contract.


def test_a_missing_key_has_the_form_of_each_contract(store: Path) -> None:
    sentence = "This server asks for a key; send it in the header as Authorization: Bearer KEY."
    own = with_keys(store)
    for path in ("/predict", "/v2/models", "/v1/models", "/nowhere"):
        assert ask(own, "GET", path).json == {"error": sentence}
    assert ask(own, "POST", "/predictions/mnist").json == {"code": 401, "type": "InvalidKeyException", "message": sentence}
    vertex = with_keys(store, platform="vertex")
    path = "/v1/projects/p/locations/l/endpoints/e:predict"
    assert ask(vertex, "POST", path).json == {"error": {"code": 401, "message": sentence, "status": "UNAUTHENTICATED"}}
    assert ask(with_keys(store, platform="azure"), "POST", "/score").json == {"message": sentence}
    mlflow = with_keys(store, platform="mlflow")
    assert ask(mlflow, "POST", "/invocations").json == {"error_code": "UNAUTHENTICATED", "message": sentence}
    sagemaker = with_keys(store, platform="sagemaker")
    for path in ("/invocations", "/endpoints/e/invocations"):
        answer = ask(sagemaker, "POST", path)
        assert (answer.status_code, answer.json) == (401, {"error": sentence, "code": 401})


def test_the_document_says_what_asks_for_a_key(store: Path) -> None:
    document = ask(with_keys(store), "GET", "/openapi.json", ANY).json
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    assert document["paths"]["/predict"]["post"]["security"] == [{"key": []}]
    assert "security" not in document["paths"]["/health"]["get"]
    without = ask(create_app(Settings(model_store=store)), "GET", "/openapi.json").text
    assert '"security' not in without


# Keys of some models.


@pytest.fixture(scope="module")
def limited(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """An application with a key for `linear` alone, one of three requests an hour, and one for metrics."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    keys = [
        {"name": "some", "key": ANY, "models": ["linear", "gone"]},
        {"name": "few", "key": "a-key-of-few-requests", "rate_limit": "3/hour"},
        {"name": "scraper", "key": "a-key-of-prometheus", "scope": "metrics"},
        {"name": "owner", "key": OWNER, "scope": "management"},
    ]
    path.touch(0o600)
    path.write_text(json.dumps({"keys": keys}))
    return create_app(Settings(model_store=store, keys=str(path)))


def test_a_key_of_some_models_asks_those_and_sees_no_others(limited: Flask) -> None:
    v1 = ("/v1/models/{}", "/v1/Models/{}", "/v1/models/{}/metadata")
    v2 = ("/v2/models/{}", "/v2/models/{}/ready", "/v2/models/{}/versions/1/config", "/v2/models/{}/stats")
    ours, others, gone = ([path.format(name) for path in v1 + v2] for name in ("linear", "mnist", "gone"))
    assert {ask(limited, "GET", path, ANY).status_code for path in ours} == {200}
    assert {ask(limited, "GET", path, ANY).status_code for path in others} == {403}
    assert {ask(limited, "GET", path, ANY).status_code for path in gone} == {404}
    for path in ("/mnist/predict", "/predict", "/predict/batch", "/predictions/mnist", "/v1/models/mnist:predict",
                 "/v1/models/MNIST:Predict", "/v2/models/mnist/infer", "/v2/models/nobody/infer", "/v2/models/mnist/generate"):
        form = {"files" if "batch" in path else "file": (Path(__file__).parent.parent / "docs/images/seven.png").open("rb")}
        answer = ask(limited, "POST", path, ANY, data=form)
        assert answer.status_code == 403, path
    assert ask(limited, "POST", "/predict", ANY, data={"value": "5"}).status_code == 200
    of_routes = re.compile(r'/mnist/[a-z/]*|mnist_predict|tags":\["mnist|name":"mnist","desc')
    for path in ("/v1/models", "/v2/models", "/v2/models/stats", "/openapi.json"):
        assert "mnist" not in of_routes.sub("", ask(limited, "GET", path, ANY).text), path
        assert "mnist" in ask(limited, "GET", path, OWNER).text
    for path in ("/v2/models/gone/infer", "/v1/models/gone:predict", "/predictions/gone"):
        assert "mnist" not in ask(limited, "POST", path, ANY).text


def test_default_models_are_those_that_the_key_sees(limited: Flask, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({"keys": [{"name": "some", "key": ANY, "models": ["linear"]}]}))
    for default, status in {"mnist": 403, "linear": 200, "": 200}.items():
        app = create_app(Settings(model_store=store, keys=str(path), platform="sagemaker", default_model=default))
        body: dict[str, Any] = {"data": b'{"instances": [[5]]}', "content_type": "application/json"}
        assert ask(app, "POST", "/invocations", ANY, **body).status_code == status
        target = {"X-Amzn-SageMaker-Target-Model": "mnist"}
        assert ask(app, "POST", "/invocations", ANY, headers=target, **body).status_code == 403


CHAIN = """
name: "chain" platform: "ensemble" max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [ { model_name: "neg" model_version: -1
    input_map { key: "x" value: "x" } output_map { key: "y" value: "y" } } ] }
"""


def test_a_key_of_an_ensemble_asks_its_members_through_it_only(tmp_path: Path) -> None:
    triton_models.write(tmp_path / "store", "neg", onnx=triton_models.unary())
    triton_models.write(tmp_path / "store", "chain", CHAIN)
    path = tmp_path / "keys.json"
    path.touch(0o600)
    path.write_text(json.dumps({"keys": [{"name": "chain", "key": ANY, "models": ["chain"]}]}))
    app = create_app(Settings(model_store=tmp_path / "store", keys=str(path)))
    row = [1.0, 2.0, 3.0, 4.0]
    sent = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": row}]}
    answer = ask(app, "POST", "/v2/models/chain/infer", ANY, json=sent)
    assert answer.json["outputs"][0]["data"] == [-each for each in row]
    assert ask(app, "POST", "/v2/models/neg/infer", ANY, json=sent).status_code == 403


def test_a_key_of_metrics_reads_them_and_nothing_else(limited: Flask) -> None:
    key = "a-key-of-prometheus"
    assert ask(limited, "GET", "/metrics", key).status_code == 200
    for path in ("/v2/models", "/docs", "/v2/logging", "/v1/models/linear", "/v2/models/stats"):
        assert ask(limited, "GET", path, key).status_code == 403


def test_a_rate_is_that_of_a_key_and_says_when_to_come_back(limited: Flask) -> None:
    key = "a-key-of-few-requests"
    assert [ask(limited, "GET", path, key).status_code for path in ("/v2", "/v2", "/nowhere")] == [200, 200, 404]
    for path in ("/v2", "/v1/models", "/predictions/mnist", "/nowhere"):
        answer = ask(limited, "GET", path, key)
        assert answer.status_code == 429 and 3590 <= int(answer.headers["Retry-After"]) <= 3600
    assert ask(limited, "GET", "/health", key).status_code == 200 and ask(limited, "GET", "/v2", OWNER).status_code == 200
    text = ask(limited, "GET", "/metrics", OWNER).text
    assert re.search(r'servekit_shed_total\{reason="rate"\} [4-9]', text)
    assert 'servekit_refused_keys_total{reason="forbidden"}' in text


# Handlers never see a key.


def test_what_models_are_given_holds_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEKIT_INFERENCE_KEY", ANY)
    monkeypatch.setenv("SERVEKIT_MANAGEMENT_KEY", OWNER)
    monkeypatch.setenv("SERVEKIT_MODEL_STORE", str(tmp_path / "sagemaker"))
    code = (
        "import json, os\ndef model_fn(folder): return 0\n"
        "def transform_fn(model, body, kind, accept, context):\n"
        "    return json.dumps([context.get_all_request_header(0), dict(os.environ)]), 'application/json'\n"
    )
    write_modules(tmp_path / "sagemaker" / "code", inference=code)
    monkeypatch.setenv("SERVEKIT_PLATFORM", "sagemaker")
    said = ask(create_app(), "POST", "/invocations", ANY, headers={"X-Mine": "yes"}).text
    assert "yes" in said and ANY not in said and OWNER not in said and "SERVEKIT_INFERENCE_KEY" in said
    script = (
        "import json, os\nfrom azureml.contrib.services.aml_request import rawhttp\ndef init(): pass\n@rawhttp\n"
        "def run(request): return [dict(request.headers), {n: str(v) for n, v in request.environ.items()}, dict(os.environ)]\n"
    )
    write_modules(tmp_path / "azure", score=script)
    for name, value in {"AML_APP_ROOT": str(tmp_path / "azure"), "AZUREML_ENTRY_SCRIPT": "score.py"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SERVEKIT_PLATFORM", "azure")
    said = ask(create_app(), "POST", "/score", ANY, headers={"X-Mine": "yes"}).text
    assert "yes" in said and ANY not in said and OWNER not in said
    assert os.environ["SERVEKIT_INFERENCE_KEY"].startswith("sha256:")


def test_handlers_of_archives_are_given_no_key(tmp_path: Path) -> None:
    app = torchserve(tmp_path)
    assert ask(app, "POST", "/models", OWNER, "8081", query_string="url=dump&initial_workers=1").status_code == 200
    said = ask(app, "POST", "/predictions/dump", ANY, "8080", headers={"X-Mine": "yes"}).text
    assert "yes" in said and ANY not in said
    answer = ask(app, "POST", "/models", ANY, "8081", query_string="url=dump")
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidKeyException")
    assert ask(app, "DELETE", "/models/dump", OWNER, "8081").status_code == 200


# Management without keys.


@pytest.fixture(scope="module")
def open_to_loopback(store: Path) -> tuple[Flask, Flask]:
    """servekit's own application and TorchServe's, both without keys."""
    properties = f"model_store={store}\ndisable_token_authorization=true\nenable_model_api=true"
    return create_app(Settings(model_store=store, management=True)), create_app(Settings(model_store=store, torchserve=properties))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:5001"}, 404),
        ({"Host": "127.0.0.1:5001", "Origin": "http://127.0.0.1:5001"}, 404),
        ({"Host": "[::1]:5001"}, 404),
        ({"Host": "here.localhost."}, 404),
        ({"Host": "evil.example:5001"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_do_not_manage(open_to_loopback: tuple[Flask, Flask], headers: dict[str, str], status: int) -> None:
    own, archives = open_to_loopback
    for path in ("/v2/repository/models/none/load", "/v2/repository/models/none/unload"):
        assert ask(own, "POST", path, headers=headers).status_code == status
    assert ask(own, "POST", "/predict", headers=headers, data={"value": "5"}).status_code == 200
    expected = (404, "ModelNotFoundException") if status == 404 else (403, "InvalidKeyException")
    answer = ask(archives, "DELETE", "/models/none", port="8081", headers=headers)
    assert (answer.status_code, answer.json["type"]) == expected


def test_who_has_opened_the_server_may_use_its_names(store: Path) -> None:
    app = create_app(Settings(model_store=store, management=True, allow_anonymous=True))
    path = "/v2/repository/models/none/load"
    assert ask(app, "POST", path, headers={"Host": "models.example"}).status_code == 404
    assert ask(app, "POST", path, headers={"Host": "models.example", "Origin": "http://evil.example"}).status_code == 403


def test_keys_cost_nothing_where_there_are_none(store: Path) -> None:
    app = create_app(Settings(model_store=store))
    assert not app.before_request_funcs and not app.extensions[JUDGES]
    with app.test_request_context("/"):
        assert access.visible(app, repository_of(app)) is repository_of(app)
    assert isinstance(repository_of(with_keys(store)), Repository)
