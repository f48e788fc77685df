"""The OpenAPI document and its page: valid, true of the running server, and asking no other host."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from onnx import TensorProto
from openapi_spec_validator import OpenAPIV31SpecValidator

from servekit.app import create_app
from servekit.config import Settings
from servekit.ext import repository_of
from servekit.model import Model
from servekit.openapi import Example
from servekit.openapi.document import Group, Loaded, make
from servekit.platforms import AZURE, MLFLOW, NONE, SAGEMAKER, VERTEX
from servekit.stores import folder_entry
from tests.openapi import Send, complaints, misfit_examples
from tests.server import ROOT, Server, environment
from tests.triton_models import SIMPLE, simple, unary, write

MODELS = {"linear", "mnist"}


@pytest.fixture(scope="module")
def app(store: Path) -> Flask:
    return create_app(Settings(model_store=store, platform=NONE))


@pytest.fixture(scope="module")
def document(app: Flask) -> dict[str, Any]:
    return app.test_client().get("/openapi.json").json


def by_client(app: Flask) -> Send:
    """Return what sends a request without a network."""
    client = app.test_client()

    def send(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str, bytes]:
        answer = client.open(path, method=method, data=body, headers=headers)
        return answer.status_code, answer.content_type, answer.data

    return send


def by_network(server: Server) -> Send:
    """Return what sends a request to a real server."""

    def send(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, str, bytes]:
        status, given, answer = server.request(method, path, body, headers)
        return status, given.get("Content-Type", ""), answer if isinstance(answer, bytes) else json.dumps(answer).encode()

    return send


def require_valid(document: dict[str, Any]) -> None:
    errors = [f"{list(error.absolute_path)}: {error.message[:200]}" for error in OpenAPIV31SpecValidator(document).iter_errors()]
    assert not errors
    assert not misfit_examples(document)


def test_the_document_is_valid_and_so_are_its_examples(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["servers"] == [{"url": "/"}]
    require_valid(document)


def test_every_route_of_the_server_is_described(app: Flask, document: dict[str, Any]) -> None:
    rules = {re.sub(r"<(?:[^>]+:)?(\w+)>", r"{\1}", rule.rule): rule for rule in app.url_map.iter_rules()}
    assert set(document["paths"]) <= set(rules)
    for path in set(rules) - set(document["paths"]) - {"/openapi.json", "/docs", "/docs/{asset}"}:
        about = app.view_functions[rules[path].endpoint].__doc__ or ""
        assert about.startswith("Refuse") or "PATCH" in rules[path].methods, path
    assert "/v1/models/{name}:explain" not in document["paths"]
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["summary"], path
            assert operation["responses"]["default"]["$ref"].endswith("Error")


def test_every_example_works_when_it_is_sent_to_the_server(server: Server) -> None:
    send = by_network(server)
    status, _, body = send("GET", "/openapi.json", None, {})
    assert status == 200
    assert not complaints(json.loads(body), send)


@pytest.mark.parametrize("platform", [SAGEMAKER, VERTEX, AZURE, MLFLOW])
def test_every_example_works_on_a_platform(store: Path, platform: str) -> None:
    app = create_app(Settings(model_store=store, platform=platform, default_model="mnist"))
    document = app.test_client().get("/openapi.json").json
    require_valid(document)
    assert not complaints(document, by_client(app))


@pytest.mark.parametrize(
    ("platform", "name"),
    [(NONE, "simple"), (SAGEMAKER, "words"), (VERTEX, "words"), (VERTEX, "unbatched"), (AZURE, "simple"), (MLFLOW, "simple")],
)
def test_every_example_works_with_models_of_tritons_layout(tmp_path: Path, platform: str, name: str) -> None:
    write(tmp_path, "simple", SIMPLE, onnx=simple())
    write(tmp_path, "unbatched", onnx=unary(shape=(3, 4)))
    write(tmp_path, "words", onnx=unary("Identity", TensorProto.STRING, ("rows", 2)))
    write(tmp_path, "large", onnx=unary(shape=("rows", 3, 224, 224)))
    app = create_app(Settings(model_store=tmp_path, platform=platform, default_model=name))
    document = app.test_client().get("/openapi.json").json
    require_valid(document)
    assert not complaints(document, by_client(app))
    path = document["paths"]["/v2/models/{name}/infer"]["post"]
    assert path["parameters"][0]["schema"]["enum"] == ["large", "simple", "unbatched", "words"]
    assert not [key for key in path["requestBody"]["content"]["application/json"]["examples"] if key.startswith("large")]


def test_a_summary_is_the_first_sentence_and_a_contract_is_a_tag(document: dict[str, Any]) -> None:
    operation = document["paths"]["/health"]["get"]
    assert operation["summary"] == "Say whether predictions can be made, and on what; 503 with the reason if not"
    assert operation["tags"] == ["ops"]
    tags = {tag["name"]: tag["description"] for tag in document["tags"]}
    assert tags["mnist"] == "The digit classifier: a picture in, a digit out."


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_a_file_of_an_example_is_served(app: Flask, document: dict[str, Any]) -> None:
    examples = document["paths"]["/mnist/predict"]["post"]["requestBody"]["content"]["image/png"]["examples"]
    answer = app.test_client().get("/" + next(iter(examples.values()))["externalValue"])
    assert (answer.status_code, answer.content_type) == (200, "image/png")
    assert answer.data.startswith(b"\x89PNG")


def test_the_document_follows_the_models_that_are_loaded(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store / "linear", tmp_path / "linear")
    app = create_app(Settings(model_store=tmp_path, platform=NONE))
    client = app.test_client()
    first = client.get("/openapi.json")
    assert client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]}).status_code == 304
    assert names_of_examples(first.json) == {"linear"}
    shutil.copytree(store / "mnist", tmp_path / "mnist")
    repository_of(app).register(folder_entry(tmp_path, "mnist", 1, 1))
    second = client.get("/openapi.json", headers={"If-None-Match": first.headers["ETag"]})
    assert second.status_code == 200
    assert names_of_examples(second.json) == {"linear", "mnist"}
    assert not complaints(second.json, by_client(app))


def names_of_examples(document: dict[str, Any]) -> set[str]:
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    keys = {key for media in content.values() for key in media.get("examples", {})}
    return {key.partition("-")[0] for key in keys}


def test_the_page_asks_no_other_host(app: Flask) -> None:
    answer = app.test_client().get("/docs")
    assert answer.content_type == "text/html; charset=utf-8"
    assert "Date" not in answer.headers  # the worker sets it
    assert "//" not in answer.text
    assert not re.search(r"<script(?![^>]* src=)|<style| on\w+=| style=", answer.text)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    sources = {source for sources in policy.values() for source in sources.split()}
    assert sources == {"'self'", "'none'", "data:"}
    assert policy["img-src"] == "'self' data:" and policy["script-src"] == "'self'"


@pytest.mark.parametrize("path", ["/docs", "/docs/"])
def test_what_the_page_names_is_served_and_kept(app: Flask, path: str) -> None:
    client = app.test_client()
    names = re.findall(r'(?:src|href)="([^"]+)"', client.get(path).text)
    assert len(names) == 4
    for name in names:
        address = "/docs/" + name.removeprefix("docs/")
        answer = client.get(address)
        assert answer.status_code == 200 and answer.data
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = client.get(address, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.data) == (304, b"")
        head = client.head(address)
        assert (head.headers["Content-Length"], head.data) == (str(len(answer.data)), b"")
        assert client.get(address.partition("?")[0]).headers["Cache-Control"] == "no-cache"
        assert client.get(address.partition("?")[0] + "?v=old").headers["Cache-Control"] == "no-cache"


def test_the_page_starts_without_the_validator(app: Flask) -> None:
    script = app.test_client().get("/docs/docs.js").text
    assert "validatorUrl: null" in script and "http" not in script


@pytest.mark.parametrize(
    "name", ["..%2f..%2fsetup.cfg", "../blueprints/docs.py", "docs.html", "index.css", "%2fetc%2fpasswd", "..", "x.png"]
)
def test_no_other_file_can_be_had(app: Flask, name: str) -> None:
    answer = app.test_client().get(f"/docs/{name}")
    assert answer.status_code == 404
    assert "error" in answer.json


def test_nothing_of_the_host_is_in_the_answers(app: Flask) -> None:
    client = app.test_client()
    for path in ("/docs", "/docs/", "/openapi.json", "/docs/docs.js"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert answer.status_code == 200
        assert "evil" not in answer.text + str(answer.headers)


def test_a_name_of_a_model_cannot_break_the_page_or_the_document(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store / "linear", tmp_path / "linear")
    app = create_app(Settings(model_store=tmp_path, platform=NONE))
    name = '<img src=x onerror="alert(1)">'
    entry = folder_entry(tmp_path, "linear", 1, 1)
    repository_of(app).register(type(entry)(name, "1", entry.format, entry.source, entry.folder))
    client = app.test_client()
    assert "alert" not in client.get("/docs").text
    answer = client.get("/openapi.json")
    assert (answer.content_type, answer.headers["X-Content-Type-Options"]) == ("application/json", "nosniff")
    require_valid(answer.json)
    assert not complaints(answer.json, by_client(app))


def test_without_the_extra_there_is_neither(store: Path) -> None:
    code = (
        "import sys; sys.modules['flask_swagger_ui'] = None\n"
        "from servekit.app import create_app\n"
        "print(sorted(rule.rule for rule in create_app().url_map.iter_rules()))"
    )
    variables = environment(SERVEKIT_MODEL_STORE=str(store))
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert "/predict" in ended.stdout
    assert "/openapi.json" not in ended.stdout and "/docs" not in ended.stdout


def test_a_worker_that_is_not_asked_for_the_document_does_not_import_its_packages(store: Path) -> None:
    code = (
        "import sys\n"
        "from servekit.app import create_app\n"
        "create_app(); print({'apispec', 'flask_swagger_ui'} & set(sys.modules))"
    )
    variables = environment(SERVEKIT_MODEL_STORE=str(store))
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_what_is_asked_with_an_example_is_described(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            if any("examples" in media for media in content.values()):
                assert operation["responses"]["200"].get("content"), path
                assert all(media["schema"] for media in content.values()), path


def test_an_example_that_cannot_be_made_or_is_large_leaves_the_rest(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    model = repository_of(app).get("linear")

    def broken(model: Model) -> list[Example]:
        raise ValueError("no example")

    def large(model: Model) -> list[Example]:
        return [Example("linear.predict", {}, {"value": [0.0] * 50_000}), Example("linear.predict", {}, {"value": 1})]

    rules = [rule for rule in app.url_map.iter_rules() if rule.endpoint == "linear.predict"]
    loaded = Loaded([model], model, ["linear"])
    made = json.loads(make([Group("linear", "", rules, broken)], app.view_functions, loaded).body)
    assert "examples" not in json.dumps(made["paths"]).replace('"examples": [5]', "")
    assert "There are no examples of linear" in caplog.text
    made = json.loads(make([Group("linear", "", rules, large)], app.view_functions, loaded).body)
    examples = made["paths"]["/linear/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert [each["value"] for each in examples.values()] == [{"value": 1}]


def test_the_extra_is_named_in_the_setup(app: Flask) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options.extras_require"]["openapi"]
    assert "apispec" in wanted and "flask-swagger-ui" in wanted


def test_the_client_of_the_documentation_works(server: Server) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "openapi.md").read_text(), re.DOTALL)[1]
    code = code.replace("http://localhost:5001", server.url)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.stdout == "5.0\n", ended.stderr


def test_torchserves_addresses_keep_their_own_documents(store: Path) -> None:
    properties = f"model_store={store}\ndisable_token_authorization=true"
    client = create_app(Settings(model_store=store, torchserve=properties, platform=NONE)).test_client()
    for port in (8080, 8081, 8082):
        for path in ("/openapi.json", "/docs", "/docs/docs.js"):
            assert client.get(path, f"http://127.0.0.1:{port}").status_code in (404, 405)
    assert client.options("/", "http://127.0.0.1:8080").json["info"]["title"] == "TorchServe APIs"
    paths = client.get("/openapi.json").json["paths"]
    assert "/predict" in paths and "/wfpredict/{name}" not in paths and "/api-description" not in paths
