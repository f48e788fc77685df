"""Azure ML's routes: a scoring script's, and those of a model of the store. What its own server answers is compared in
tests/clients/test_azure.py.
"""

import base64
import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import url_for
from flask.testing import FlaskClient

from servekit.app import create_app
from servekit.blueprints import azure
from servekit.config import Settings
from servekit.errors import ModelLoadError, SettingError
from servekit.ext import repository_of
from servekit.platforms import platform_of, scoring_script
from tests.test_blueprints import shape_of

GOLDEN = json.loads((Path(__file__).parent / "golden" / "azure" / "answers.json").read_text())
ECHO = "import json\ndef init(): pass\ndef run(data): return json.loads(data)\n"

Serve = Callable[..., FlaskClient]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve a script: `serve(text, VARIABLE="value")`."""

    def start(text: str, settings: dict[str, Any] | None = None, **variables: str) -> FlaskClient:
        (tmp_path / "score.py").write_text(textwrap.dedent(text))
        for name, value in {"AML_APP_ROOT": str(tmp_path), "AZUREML_ENTRY_SCRIPT": "score.py", **variables}.items():
            monkeypatch.setenv(name, value)
        return create_app(Settings(platform="azure", **(settings or {}))).test_client()

    return start


def test_the_script_of_the_page_answers_as_the_page_says(serve: Serve) -> None:
    page = (Path(__file__).parent.parent / "docs" / "azure.md").read_text()
    script = next(block.removeprefix("python\n") for block in page.split("```") if "def init()" in block)
    body = re.search(r"-d '(.*?)' http", page)[1]  # type: ignore[index]
    assert serve(script).post("/score", data=body).json == [6] and "answers `[6]` to" in page


@pytest.fixture(scope="module")
def native(store: Path) -> FlaskClient:
    """The digit classifier, without a script."""
    return create_app(Settings(platform="azure", model_store=store, default_model="mnist")).test_client()


@pytest.fixture(scope="module")
def line(store: Path) -> FlaskClient:
    """The line, without a script."""
    return create_app(Settings(platform="azure", model_store=store, default_model="linear")).test_client()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_answer_has_its_golden_form(line: FlaskClient, name: str) -> None:
    case = GOLDEN[name]
    answer = line.open(case["path"], method=case["method"], data=case.get("body", "").encode(), headers=case.get("headers"))
    assert answer.status_code == case["status"]
    for header, value in case["answer_headers"].items():
        assert answer.headers[header] == value
    if "answer" in case:
        assert answer.json == case["answer"]
    elif "shape" in case:
        assert shape_of(answer.json) == case["shape"]
    else:
        assert answer.text == case["text"]


# Scripts.


def test_a_script_gets_the_body_as_text_and_its_answer_is_written_as_json(serve: Serve) -> None:
    client = serve(
        """
        def init():
            global calls
            calls = 0
        def run(data, request_headers):
            global calls
            calls += 1
            return [data, calls, request_headers["X-Mine"]]
        """
    )
    for count in (1, 2):
        answer = client.post("/score", data="any text", headers={"X-Mine": "here"})
        assert (answer.status_code, answer.json) == (200, ["any text", count, "here"])
        assert answer.headers["x-ms-run-function-failed"] == "False"
        assert float(answer.headers["x-ms-run-fn-exec-ms"]) >= 0


def test_a_script_finds_its_modules_and_its_model(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "below.py").write_text("WORD = 'below'\n")
    client = serve(
        """
        import os, beside, below
        def init(): pass
        def run(data): return [beside.WORD, below.WORD, os.environ["AZUREML_MODEL_DIR"]]
        """,
        AZUREML_SOURCE_DIRECTORY="src",
        AZUREML_MODEL_DIR="/models",
    )
    assert client.post("/score").json == ["beside", "below", "/models"]


def test_what_goes_wrong_in_a_script_is_told_in_the_log_only(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve("def init(): print('The script', 'begins.')\ndef run(data): raise KeyError('secret\\nforged line')\n")
    answer = client.post("/score", data="x")
    assert answer.status_code == 500
    assert answer.json == {"message": "An unexpected error occurred in scoring script. Check the logs for more info."}
    assert answer.headers["x-ms-run-function-failed"] == "True"
    assert "KeyError" in caplog.text and "score.py" in caplog.text and "\nforged" not in caplog.text


def test_print_writes_to_the_log(serve: Serve, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    caplog.set_level("INFO")
    script = "import sys\ndef init(): print('The script', 'begins.', sep='|')\ndef run(data): print(data, file=sys.stderr)\n"
    serve(script).post("/score", data="loud")
    assert "The script|begins." in caplog.text
    assert capsys.readouterr() == ("", "loud\n")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import sys\ndef init(): sys.exit(4)\ndef run(data): pass", "SystemExit: 4 .score.py:2"),
        ("def init(): raise OSError('no model')\ndef run(data): pass", "OSError: no model .score.py:1"),
        ("def run(data): pass", r"does not define init\(\)"),
        ("def init(): pass", r"does not define run\(\)"),
        ("def init(): pass\ndef run(*data): pass", r"cannot accept positional-only arguments, \*args"),
        ("def init(): pass\ndef run(request_headers): pass", r"needs to accept an argument for the input data"),
        ("def init(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
    ],
)
def test_a_script_that_cannot_be_used_ends_the_start_with_a_sentence(serve: Serve, script: str, words: str) -> None:
    with pytest.raises(ModelLoadError, match=words) as failure:
        serve(script)
    assert "\n" not in str(failure.value)


def test_a_script_that_is_not_there_ends_the_start_with_a_sentence(serve: Serve) -> None:
    with pytest.raises(SettingError, match="AZUREML_ENTRY_SCRIPT must name a file of Python"):
        serve(ECHO, AZUREML_ENTRY_SCRIPT="other.py")


def test_main_py_is_the_script_when_none_is_named(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ECHO.replace("json.loads(data)", "'main'"))
    assert serve(ECHO, AZUREML_ENTRY_SCRIPT="").post("/score").json == "main"
    assert scoring_script({"AML_APP_ROOT": str(tmp_path / "none")}) is None


@pytest.mark.slow  # where lines are counted, Python 3.11 delivers no exception from another thread
def test_a_script_that_runs_too_long_is_stopped(serve: Serve) -> None:
    client = serve(
        """
        import time
        def init(): pass
        def run(data):
            try:
                while data == "late":
                    time.sleep(0.01)
            except Exception:
                return "not stopped"
            return data
        """,
        SCORING_TIMEOUT_MS="100",
    )
    answer = client.post("/score", data="late")
    assert (answer.status_code, answer.json) == (500, {"message": "Scoring timeout after 100 ms"})
    assert answer.headers["x-ms-run-function-failed"] == "True"
    assert client.post("/score", data="early").json == "early"


@pytest.mark.parametrize("variable", ["SCORING_TIMEOUT_MS", "WORKER_TIMEOUT"])
@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "9" * 20])
def test_a_time_out_that_is_none_ends_the_start(serve: Serve, variable: str, value: str) -> None:
    with pytest.raises(SettingError, match=f"{variable} must be a whole number above 0"):
        serve(ECHO, **{variable: value})


def test_a_query_becomes_json(serve: Serve) -> None:
    client = serve(ECHO)
    assert client.get("/score?a=1&b=[1,2]&c=x&a=null&d=").json == {"a": [1, None], "b": [1, 2], "c": "x", "d": ""}
    assert client.get("/score?" + "a=1&" * 1001).status_code == 400
    deep = client.get("/score?a=" + "[" * 1000)
    assert (deep.status_code, deep.json["message"][:24]) == (400, "The JSON is nested too d")


def test_a_body_that_is_no_text_is_refused(serve: Serve) -> None:
    answer = serve(ECHO).post("/score", data=b"\xff\xfe")
    assert (answer.status_code, answer.json) == (400, {"message": "Input cannot be decoded as UTF-8."})


def test_a_script_may_take_and_give_what_flask_and_azure_offer(serve: Serve) -> None:
    client = serve(
        """
        from azureml.contrib.services.aml_request import AMLRequest, rawhttp
        from azureml.contrib.services.aml_response import AMLResponse
        from flask import Response, g, jsonify, request as current, stream_with_context
        def init(): pass
        @rawhttp
        def run(request):
            g.seen = request.get_data(as_text=True)
            if g.seen == "json":
                return AMLResponse({"a": 1}, 201, {"X-Two": "a,b", "Content-Length": "9", "X-Bad name": "x"}, json_str=True)
            if g.seen == "stream":
                return Response((part for part in ["a", "b"]), mimetype="text/plain")
            if g.seen == "typed":
                return AMLResponse(b"\\xff", 200, {"Content-Type": "image/jpeg"})
            if g.seen == "none":
                return AMLResponse(None, 502)
            return jsonify(method=request.method, path=current.path, query=request.args["a"], host=request.headers["X-Mine"])
        """
    )
    answer = client.patch("/score?a=b", headers={"X-Mine": "m"})
    assert answer.status_code == 405
    answer = client.get("/score?a=b", headers={"X-Mine": "m"})
    assert answer.json == {"method": "GET", "path": "/score", "query": "b", "host": "m"}
    answer = client.post("/score", data="json")
    assert (answer.status_code, answer.json, answer.headers["X-Two"]) == (201, {"a": 1}, "a, b")
    assert "X-Bad name" not in answer.headers
    assert client.post("/score", data="stream").data == b"ab"
    answer = client.post("/score", data="typed")
    assert (answer.data, answer.content_type) == (b"\xff", "image/jpeg")
    answer = client.post("/score", data="none")
    assert (answer.status_code, answer.json, answer.headers["x-ms-run-function-failed"]) == (502, {}, "True")


def test_what_cannot_be_written_is_the_servers_failure(serve: Serve) -> None:
    answer = serve("def init(): pass\ndef run(data): return {1, 2}").post("/score", data="x")
    assert (answer.status_code, answer.headers["x-ms-run-function-failed"]) == (500, "False")
    assert answer.json == {"message": "An unexpected internal error occurred. Check the logs for more info."}


@pytest.fixture
def schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for inference-schema, which scripts install: `run` is decorated if it has `schema`."""
    util = SimpleNamespace(
        is_schema_decorated=lambda run: hasattr(run, "schema"),
        get_input_schema=lambda run: {"type": "object", "properties": {"value": {"type": "number"}}},
        get_output_schema=lambda run: {"type": "array"},
        get_supported_versions=lambda run: ["3.0", "3.1"],
    )
    monkeypatch.setitem(sys.modules, "inference_schema.schema_util", util)


DECORATED = "def init(): pass\ndef run(value, factor=2): return value * factor\nrun.schema = 1\n"


@pytest.mark.usefixtures("schemas")
def test_a_decorated_script_gets_members_by_their_names(serve: Serve) -> None:
    client = serve(DECORATED)
    assert client.post("/score", json={"value": 3}).json == 6
    assert client.post("/score", json={"value": 3, "factor": 5, "more": 1}).json == 15
    assert client.get("/score?value=4").json == 8
    refused = {
        b"{}": "A value is not provided for the 'value' parameter.",
        b"[1]": "POST body should be a JSON dictionary.",
        b"": "POST body is empty. Expecting a JSON dictionary.",
        b"{": "POST body could not be decoded as JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        b"\xff": "POST body could not be decoded as JSON.",
        b"[" * 1000: "The JSON is nested too deep; at most 100 levels are read.",
    }
    for body, message in refused.items():
        answer = client.post("/score", data=body, content_type="application/json")
        assert (answer.status_code, answer.json) == (400, {"message": message})
    answer = client.post("/score", data=b"{}", content_type="text/plain")
    assert (answer.status_code, answer.json) == (415, {"message": "Expects Content-Type to be application/json"})


@pytest.mark.usefixtures("schemas")
def test_a_decorated_script_describes_itself_in_the_versions_that_it_can(serve: Serve) -> None:
    client = serve(DECORATED)
    found = client.get("/swagger.json?version=3").json
    assert found["components"]["schemas"]["ServiceInput"]["properties"] == {"value": {"type": "number"}}
    assert client.get("/swagger.json?version=3.1").json["openapi"] == "3.1.0"
    answer = client.get("/swagger.json")
    assert (answer.status_code, answer.json["message"][-8:]) == (404, "[3, 3.1]."[-8:])


@pytest.mark.usefixtures("schemas")
def test_a_script_is_decorated_with_one_of_both(serve: Serve) -> None:
    head = "from azureml.contrib.services.aml_request import rawhttp\n"
    with pytest.raises(ModelLoadError, match="cannot be decorated with both"):
        serve(head + DECORATED + "run = rawhttp(run)\n")


def test_a_driver_hands_the_request_to_the_script_behind_it(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "behind.py").write_text("def run(data): return 'behind'\n")
    client = serve("import behind as driver_module\ndef init(): pass\ndef run(data): return 'driver'\n")
    assert client.post("/score").json == "behind"


# Descriptions.


def test_the_users_own_description_goes_before_ours(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "swagger2.json").write_text('{"mine": "second"}')
    (tmp_path / "swagger3.1.json").write_text('{"mine": 3.1}')
    client = serve(ECHO, SERVICE_NAME="digits", SERVICE_PATH_PREFIX="/a/")
    assert client.get("/swagger.json").json == {"mine": "second"}
    assert client.get("/swagger.json?version=3.1").json == {"mine": 3.1}
    made = client.get("/swagger.json?version=3").json
    assert made["info"]["title"] == "digits" and set(made["paths"]) == {"/a/", "/a/score", "/a/swagger.json"}
    (tmp_path / "swagger.json").write_text('{"mine": "first"}')
    assert serve(ECHO).get("/swagger.json?version=2.0").json == {"mine": "first"}
    (tmp_path / "swagger3.json").write_text("{")
    with pytest.raises(SettingError, match="swagger3.json cannot be read as JSON"):
        serve(ECHO)


# Headers.


@pytest.mark.parametrize(
    ("given", "legacy", "client"),
    [("", "A", ""), ("A", "A", ""), ("B", "B", "B"), ("C", "C", "C"), ("AB", "B", "B"), ("BC", "B", "C"), ("AC", "C", "C")]
    + [("ABC", "B", "C")],
)
def test_ids_come_back_as_azure_ml_gives_them(line: FlaskClient, given: str, legacy: str, client: str) -> None:
    names = {"A": "x-request-id", "B": "x-ms-request-id", "C": "x-ms-client-request-id"}
    answer = line.get("/", headers={names[letter]: letter for letter in given})
    own = "A" if "A" in given else answer.headers["X-Request-Id"]
    assert answer.headers.getlist("X-Request-Id") == [own]
    assert answer.headers["x-ms-request-id"] == (own if legacy == "A" else legacy)
    assert answer.headers.get("x-ms-client-request-id", "") == client


def test_ids_that_are_too_long_are_refused(line: FlaskClient) -> None:
    for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id"):
        answer = line.post("/score", json=[5], headers={name: "x" * 101})
        assert answer.status_code == 431 and "must not exceed 100 characters" in answer.json["message"]
        assert line.post("/score", json=[5], headers={name: "x" * 100}).status_code == 200


def test_no_id_can_add_a_header(line: FlaskClient) -> None:
    forged = {"HTTP_X_MS_REQUEST_ID": "a\r\nX-Forged: 1", "HTTP_TRACEID": "b\nX-Forged: 2", "HTTP_X_REQUEST_ID": "c\r\nd"}
    answer = line.get("/", environ_overrides=forged)
    assert answer.status_code == 200 and "X-Forged" not in answer.headers
    assert "x-ms-request-id" not in answer.headers and "TraceId" not in answer.headers


def test_the_version_can_be_hidden_and_the_trace_comes_back(serve: Serve) -> None:
    answer = serve(ECHO).get("/", headers={"TraceId": "t" * 5000})
    assert answer.headers["x-ms-server-version"].startswith("servekit/")
    assert answer.headers["TraceId"] == "t" * 5000
    assert "x-ms-server-version" not in serve(ECHO, SERVER_VERSION_LOG_RESPONSE_ENABLED="false").get("/").headers


def test_pages_of_the_origins_that_are_named_may_read_answers(serve: Serve) -> None:
    client = serve(ECHO, AML_CORS_ORIGINS="https://a.example, https://b.example")
    answer = client.post("/score", data="1", headers={"Origin": "https://b.example"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://b.example"
    assert "Origin" in answer.vary
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-one"}
    answer = client.options("/score", headers={"Origin": "https://a.example", **asked})
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
    assert answer.headers["Access-Control-Allow-Headers"] == "x-one"
    answer = client.options("/score", headers={"Origin": "https://c.example", **asked})
    assert answer.status_code == 200 and "Access-Control-Allow-Origin" not in answer.headers
    everyone = serve(ECHO, AML_CORS_ORIGINS="*").get("/", headers={"Origin": "https://c.example"})
    assert everyone.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Origin" not in serve(ECHO, AML_CORS_ORIGINS="").get("/", headers={"Origin": "x"}).headers


# Models of the store.


def test_a_digit_may_be_sent_in_any_form(native: FlaskClient, digit: bytes) -> None:
    encoded = {"b64": base64.b64encode(digit).decode()}
    expected = native.post("/score", data=digit, content_type="image/png").json
    assert len(expected) == 1 and expected[0]["confidence"] == max(expected[0]["probabilities"])
    for body in (
        {"data": [encoded]},
        {"instances": [{"image": encoded}]},
        {"input_data": [encoded]},
        {"input_data": {"columns": ["image"], "data": [[encoded]], "index": [0]}},
        {"input_data": {"image": [encoded]}},
        [encoded],
    ):
        assert native.post("/score", json=body).json == expected
    assert native.get("/score", query_string={"data": json.dumps([encoded])}).json == expected


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"5", b"{}", b'{"data": 5}', b'{"data": []}', b'{"data": ["x"]}', b'{"data": [1], "instances": [1]}']
    + [b'{"input_data": {"columns": ["value"], "data": [1]}}', b'{"input_data": {"columns": "value", "data": []}}']
    + [b'{"input_data": {"columns": ["value"], "data": [[1, 2]]}}', b'{"data": [1e999]}', b"[" * 1000, b"\xff"],
)
def test_bad_input_is_refused_with_a_sentence(line: FlaskClient, body: bytes) -> None:
    answer = line.post("/score", data=body)
    assert answer.status_code == 400
    assert set(answer.json) == {"message"} and answer.json["message"].endswith(".")


def test_without_a_default_the_model_must_be_the_only_one(store: Path) -> None:
    answer = create_app(Settings(platform="azure", model_store=store)).test_client().post("/score", json=[5])
    assert answer.status_code == 404 and "SERVEKIT_DEFAULT_MODEL" in answer.json["message"]


def test_the_probe_fails_until_predictions_can_be_made(store: Path) -> None:
    app = create_app(Settings(platform="azure", model_store=store))
    client = app.test_client()
    assert client.get("/").text == "Healthy"
    for name in ("linear", "mnist"):
        repository_of(app).unregister(name)
    answer = client.get("/")
    assert (answer.status_code, answer.json, answer.headers["Retry-After"]) == (503, {"message": "No model is loaded."}, "1")


def test_overload_and_lateness_are_told(store: Path) -> None:
    busy = create_app(Settings(platform="azure", model_store=store, default_model="linear", max_waiting=1))
    repository_of(busy).get("linear")._backlog.enter(1)
    answer = busy.test_client().post("/score", json=[5])
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    late = create_app(Settings(platform="azure", model_store=store, default_model="linear", deadline_seconds=1e-9))
    assert late.test_client().post("/score", json=[5]).status_code == 504


def test_a_body_over_the_limit_is_refused(store: Path) -> None:
    app = create_app(Settings(platform="azure", model_store=store, default_model="linear", max_body_bytes=10))
    answer = app.test_client().post("/score", data=b" " * 20)
    assert answer.status_code == 413 and set(answer.json) == {"message"}


def test_what_fails_unexpectedly_is_told_in_the_log_only(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(Settings(platform="azure", model_store=store, default_model="linear"))
    client, model = app.test_client(), repository_of(app).get("linear")
    for error, status in ((ValueError("secret"), 500), (MemoryError("secret"), 503)):

        def fail(*arguments: Any, error: Exception = error) -> Any:
            raise error

        model._batcher.engine = fail
        answer = client.post("/score", json=[5])
        assert answer.status_code == status and "secret" not in answer.text
    assert caplog.text.count("secret") >= 2


def test_examples_work(store: Path) -> None:
    for name in ("linear", "mnist"):
        app = create_app(Settings(platform="azure", model_store=store, default_model=name))
        for example in azure.examples(repository_of(app).get(name)):
            with app.test_request_context():
                path = url_for(example.endpoint, **example.values)
            method = "GET" if example.body is None else "POST"
            assert app.test_client().open(path, method=method, json=example.body).status_code == 200


# The platform.


def test_the_platforms_variables_are_read(tmp_path: Path) -> None:
    (tmp_path / "store" / "linear" / "1").mkdir(parents=True)
    found = platform_of({"AZUREML_MODEL_DIR": str(tmp_path)})
    assert (found.bind, found.models, found.workers) == ("0.0.0.0:5001", tmp_path / "store", None)
    assert platform_of({"AZUREML_MODEL_DIR": str(tmp_path / "store")}).models == tmp_path / "store"
    with pytest.raises(SettingError, match=f"AZUREML_MODEL_DIR must .*: there is no folder {tmp_path}/none."):
        platform_of({"AZUREML_MODEL_DIR": f"{tmp_path}/none"})
    assert platform_of({"AZUREML_MODEL_DIR": f"{tmp_path}/none", "SERVEKIT_MODEL_STORE": "/models"}).models is None
    (tmp_path / "score.py").write_text("")
    script = {"AML_APP_ROOT": str(tmp_path), "AZUREML_ENTRY_SCRIPT": "score.py", "SERVER_PORT": "5002"}
    assert (platform_of(script).workers, platform_of(script).bind) == (1, "0.0.0.0:5002")
    assert platform_of({**script, "WORKER_COUNT": "3"}).workers == 3
    with pytest.raises(SettingError, match="WORKER_COUNT must be a whole number above 0"):
        platform_of({**script, "WORKER_COUNT": "many"})
