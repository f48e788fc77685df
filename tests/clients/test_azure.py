"""servekit beside azureml-inference-server-http with the same scoring scripts: every difference left is listed here and in
docs/azure.md.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import ROOT, Server, environment, free_port

PLAIN = """
    import json
    import sys

    def init():
        print("The script is loaded.")

    def run(data):
        print("something", "else", file=sys.stderr)
        value = json.loads(data)
        if value == "fail":
            raise ValueError("a secret")
        if value == "exit":
            raise KeyError(value)
        if value == "unwritable":
            return {1, 2}
        if value == "nothing":
            return None
        if value == "nan":
            return [float("nan"), 1]
        return {"got": value, "text": data}
    """
HEADERS = """
    from flask import Response, jsonify, request

    def init():
        pass

    def run(data, request_headers):
        if data == "flask":
            return jsonify(mine=request.headers["X-Mine"], path=request.path)
        if data == "broken":
            return Response("broken", status=503, headers={"X-Why": "it is"})
        return {name: request_headers.get(name) for name in ("X-Mine", "Content-Type", "X-Request-Id", "Authorization")}
    """
SCHEMAS = """
    import numpy as np
    from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType
    from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
    from inference_schema.schema_decorators import input_schema, output_schema

    def init():
        pass

    @input_schema("data", NumpyParameterType(np.array([[1.0, 2.0]])))
    @input_schema("factor", StandardPythonParameterType(2.0))
    @output_schema(StandardPythonParameterType([1.0]))
    def run(data, factor=3.0):
        return (data.sum(axis=1) * factor).tolist()
    """
RAW = """
    from azureml.contrib.services.aml_request import AMLRequest, rawhttp
    from azureml.contrib.services.aml_response import AMLResponse

    def init():
        assert AMLRequest

    @rawhttp
    def run(request):
        if request.method != "POST":
            return AMLResponse(f"{request.method} {request.full_path}", 200)
        body = request.get_data()
        if body == b"json":
            return AMLResponse({"a": 1}, 201, {"X-Two": "a,b"}, json_str=True)
        if body == b"nothing":
            return AMLResponse(None, 200)
        if body == b"typed":
            return AMLResponse(bytes(range(256)), 200, {"Content-Type": "image/jpeg"})
        if body == b"plain":
            return {"plain": 1}
        if body == b"failed":
            return AMLResponse("bad", 502)
        if body == b"form":
            return AMLResponse(request.form.get("none", "no form"), 200)
        return AMLResponse(body, 200)
    """
LATE = """
    import time

    def init():
        pass

    def run(data):
        while data == "late":
            time.sleep(0.01)
        return data
    """
SCRIPTS = {"plain": PLAIN, "headers": HEADERS, "schemas": SCHEMAS, "raw": RAW, "late": LATE}
VARIABLES = {
    "headers": {"AML_CORS_ORIGINS": "https://a.example, https://b.example", "SERVICE_NAME": "digits", "SERVICE_VERSION": "7"},
    "late": {"SCORING_TIMEOUT_MS": "300"},
}
JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}
LONG = "x" * 101

Case = tuple[str, str, str, bytes, Mapping[str, str]]  # script, method, target, body, headers


def cases() -> Iterator[Case]:
    """Give every request that both servers are asked."""
    for body in (b'"x"', b'[1, 2.5, {"a": null}]', b"no json", b"", b'"fail"', b'"exit"', b'"unwritable"', b'"nothing"', b'"nan"'):
        yield "plain", "POST", "/score", body, JSON
    yield "plain", "POST", "/score", "\"\u00e4\"".encode(), TEXT
    yield "plain", "POST", "/score", b"[" * 5000 + b"]" * 5000, TEXT
    yield "plain", "POST", "/score", b"\xff", TEXT
    for query in ("", "?a=1&b=[1,2]&c=x&a=null&d=%22q%22&e=", "?a=%5B1%2C", "?" + "&".join(f"x={n}" for n in range(300))):
        yield "plain", "GET", f"/score{query}", b"", {}
    for method in ("OPTIONS", "HEAD", "PUT", "DELETE", "PATCH"):
        yield "plain", method, "/score", b"", {}
    yield "plain", "POST", "/", b"", {}
    for target in ("/", "/nothing", "/swagger.json", "/swagger.json?version=2.0", "/swagger.json?version=3"):
        yield "plain", "GET", target, b"", {}
    for version in ("3.0", "3.1", "9", ""):
        yield "plain", "GET", f"/swagger.json?version={version}", b"", {}
    yield from id_cases()
    for body in (b"flask", b"broken", b"other"):
        yield "headers", "POST", "/score", body, {**TEXT, "X-Mine": "1", "x-request-id": "r", "Authorization": "Bearer key"}
    for origin in ("https://a.example", "https://B.example", "https://c.example"):
        yield "headers", "POST", "/score", b"other", {**TEXT, "Origin": origin}
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        yield "headers", "OPTIONS", "/score", b"", {"Origin": origin, **asked}
        yield "headers", "OPTIONS", "/score", b"", {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
    yield "headers", "GET", "/swagger.json", b"", {}
    bodies = (b'{"data": [[1, 2]], "factor": 1}', b'{"data": [[1, 2]]}', b"{}", b"[1]", b"{", b"", b'{"data": "x"}', b"\xff")
    for body in (*bodies, b'{"data": [[1, 2]], "other": 1}'):
        yield "schemas", "POST", "/score", body, JSON
    yield "schemas", "POST", "/score", bodies[0], TEXT
    yield "schemas", "POST", "/score", bodies[0], {"Content-Type": "application/json; charset=utf-8"}
    yield "schemas", "POST", "/score", bodies[0], {"Content-Type": "application/ld+json"}
    for target in ("/score?data=[[1,2]]&factor=4", "/score?factor=4", "/swagger.json", "/swagger.json?version=3"):
        yield "schemas", "GET", target, b"", {}
    for body in (b"json", b"nothing", b"typed", b"plain", b"failed", b"form", b"\x00\xff", b""):
        yield "raw", "POST", "/score", body, {"Content-Type": "application/octet-stream"}
    for method in ("GET", "OPTIONS", "HEAD"):
        yield "raw", method, "/score?a=1&b=%20", b"", {}
    for body in (b"late", b"early"):
        yield "late", "POST", "/score", body, TEXT


def id_cases() -> Iterator[Case]:
    """Give every combination of the three ids, and those that are too long."""
    names = ("x-request-id", "x-ms-request-id", "x-ms-client-request-id")
    for chosen in range(8):
        ids = {name: f"id-{bit}" for bit, name in enumerate(names) if chosen >> bit & 1}
        yield "plain", "POST", "/score", b"1", {**TEXT, **ids, "TraceId": "a trace"}
        yield "plain", "GET", "/", b"", ids
    for name in names:
        yield "plain", "POST", "/score", b"1", {**TEXT, name: "x" * 100}
        yield "plain", "POST", "/score", b"1", {**TEXT, name: LONG}


# What differs on purpose, and what is then not compared; see docs/azure.md.
ACCEPTED: Mapping[str, tuple[Callable[[Case], bool], tuple[str, ...]]] = {
    "an answer does not repeat what was sent": (
        lambda case: case[2].endswith(("?version=9", "?version=")) or case[3] == b"\xff" and case[0] == "plain",
        ("body",),
    ),
    "a body that is no UTF-8 is the client's mistake": (
        lambda case: case[3] == b"\xff" and case[0] == "schemas",
        ("status", "body"),
    ),
}
OURS = {"server", "date", "connection", "content-length", "x-ms-server-version", "x-ms-run-fn-exec-ms", "keep-alive", "allow"}
ECHOED = ("x-request-id", "x-ms-request-id", "x-ms-client-request-id")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scripts."""
    made = tmp_path_factory.mktemp("scripts")
    for name, text in SCRIPTS.items():
        lines = [line.removeprefix("    ") for line in text.splitlines()]
        (made / f"{name}.py").write_text("\n".join(lines))
    return made


@pytest.fixture(scope="module")
def schema_package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with inference-schema and what it needs, which is the scripts' own affair to install."""
    made = tmp_path_factory.mktemp("packages")
    site = Path(httpx.__file__).parent.parent
    for name in ("inference_schema", "wrapt", "dateutil", "pytz", "six.py"):
        (made / name).symlink_to(site / name)
    return str(made)


@contextlib.contextmanager
def azmlinfsrv(script: Path, **variables: str) -> Iterator[str]:
    """Run Azure ML's own server; its address."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "azmlinfsrv"), "--entry_script", str(script), "--port", str(port)]
    with (script.parent / f"{script.stem}.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=script.parent, env=environment(AML_APP_ROOT=str(script.parent), **variables), stdout=log, stderr=log
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(address)
                break
            time.sleep(0.1)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def both(serve: Callable[..., Server], folder: Path, schema_package: str) -> Iterator[Callable[[str], tuple[str, str]]]:
    """The addresses of both servers with a script: Azure ML's, then ours."""
    started: dict[str, tuple[str, str]] = {}
    with contextlib.ExitStack() as stack:

        def start(name: str) -> tuple[str, str]:
            if name not in started:
                variables = VARIABLES.get(name, {})
                ours = serve(
                    "azure",
                    AZUREML_ENTRY_SCRIPT=f"{name}.py",
                    AML_APP_ROOT=str(folder),
                    PYTHONPATH=os.pathsep.join([str(ROOT), schema_package]),
                    **variables,
                )
                started[name] = (stack.enter_context(azmlinfsrv(folder / f"{name}.py", **variables)), ours.url)
            return started[name]

        yield start


def ask(address: str, case: Case) -> httpx.Response:
    """Send `case` to a server."""
    _, method, target, body, headers = case
    return httpx.request(method, address + target, content=body, headers=headers, timeout=60)


def shape(value: Any) -> Any:
    """Return a description of a service without its prose."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items() if name != "description"}
    return [shape(item) for item in value] if isinstance(value, list) else value


def comparable(case: Case, answer: httpx.Response) -> dict[str, Any]:
    """Return what must be the same in both answers to `case`."""
    headers = {name: ", ".join(answer.headers.get_list(name)) for name in answer.headers if name not in OURS}
    for name in ECHOED:
        headers[name] = _UUID.sub("<new>", headers.get(name, ""))
    if answer.status_code in (404, 405, 431):
        headers["x-request-id"] = ""  # ours has an id on every answer
    if "AML_CORS_ORIGINS" in VARIABLES.get(case[0], {}):
        headers["vary"] = ""  # ours says it where the answer does not depend on the origin, too
        if "Origin" not in case[4]:
            headers.pop("access-control-allow-origin", None)  # ours is for browsers that say where they are
    body: Any = answer.content
    if "swagger" in case[2] and answer.status_code == 200:
        body = shape(answer.json())
    return {"status": answer.status_code, "headers": headers, "body": body}


@pytest.mark.parametrize("script", SCRIPTS)
def test_answers_are_those_of_azure_mls_own_server(script: str, both: Callable[[str], tuple[str, str]]) -> None:
    theirs, ours = both(script)
    different = []
    for case in (each for each in cases() if each[0] == script):
        expected, found = comparable(case, ask(theirs, case)), comparable(case, ask(ours, case))
        for part in (part for applies, parts in ACCEPTED.values() if applies(case) for part in parts):
            del expected[part], found[part]
        if expected != found:
            different.append(f"{case[1]} {case[2][:80]} {case[3][:40]!r} {dict(case[4])}\n  {expected}\n  {found}")
    assert not different, "\n".join(different)


def test_of_a_form_the_script_gets_the_body(both: Callable[[str], tuple[str, str]]) -> None:
    case = ("plain", "POST", "/score", b'"x"', {"Content-Type": "application/x-www-form-urlencoded"})
    theirs, ours = (ask(address, case) for address in both("plain"))
    assert theirs.status_code == 500  # there it is lost: Flask has parsed it
    assert ours.json() == {"got": "x", "text": '"x"'}


def test_the_snippet_of_the_documentation_works(serve: Callable[..., Server], digit: bytes, digit_class: int) -> None:
    page = (ROOT / "docs" / "azure.md").read_text()
    [code] = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    server = serve("azure", SERVEKIT_DEFAULT_MODEL="mnist")
    found: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:5001", server.url).replace('open("digit.png", "rb").read()', repr(digit)), found)
    assert found["answer"][0]["predicted_class"] == digit_class
    assert json.dumps(found["answer"])
