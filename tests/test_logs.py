import datetime
import json
import logging
from pathlib import Path

from servekit.logs import JsonFormatter, TextFormatter, configure_handler, is_worth_a_line, request_id
from tests.server import Server, running, wait_for


def test_json_lines_hold_one_object_each(tmp_path: Path, store: Path) -> None:
    variables = {"SERVEKIT_MODEL_STORE": str(store), "SERVEKIT_LOG_FORMAT": "json", "WEB_CONCURRENCY": "1"}
    with running(tmp_path / "log", **variables) as server:
        body = "value=5"
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Request-Id": "json-1"}
        assert server.get("/health")[0] == 200
        server.request("POST", "/predict?a=%22%0a", body, headers)
        assert wait_for(lambda: '"json-1"' in server.text())
    assert "GET /health" not in server.text()
    lines = [json.loads(line) for line in server.text().splitlines()]
    assert all({"time", "level", "logger", "pid", "request_id", "message"} <= set(line) for line in lines)
    assert any("is ready" in line["message"] for line in lines)
    access = next(line for line in lines if line["request_id"] == "json-1")
    assert access["logger"] == "gunicorn.access"
    expected = {"client": "127.0.0.1", "method": "POST", "path": "/predict", "status": 200}
    assert expected.items() <= access.items()
    assert access["duration_us"] > 0 and access["bytes"] > 0
    moment = datetime.datetime.fromisoformat(access["time"])
    assert abs((datetime.datetime.now(datetime.UTC) - moment).total_seconds()) < 600


def test_text_lines_hold_the_request_id_and_nothing_that_breaks_a_line(server: Server) -> None:
    headers = {"X-Request-Id": "text-1"}
    server.request("GET", "/a%0aFORGED", headers=headers)
    assert wait_for(lambda: "text-1" in server.text())
    line = next(line for line in server.text().splitlines() if "text-1" in line)
    assert '[text-1] 127.0.0.1 "GET /a%0aFORGED HTTP/1.1" 404 ' in line


def record(message: str = "hello", **extra: object) -> logging.LogRecord:
    return logging.LogRecord("servekit", logging.ERROR, "path", 1, message, None, extra.get("exc_info"))


def test_a_line_of_a_request_holds_its_id() -> None:
    token = request_id.set("mine")
    try:
        assert " ERROR [" in TextFormatter().format(record()) and "] [mine] hello" in TextFormatter().format(record())
        assert json.loads(JsonFormatter().format(record()))["request_id"] == "mine"
    finally:
        request_id.reset(token)
    assert "[-] hello" in TextFormatter().format(record())


def test_a_traceback_is_a_member_of_its_json_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        line = JsonFormatter().format(record(exc_info=(type(error), error, error.__traceback__)))
    assert "\n" not in line
    assert "ValueError: two\nlines" in json.loads(line)["traceback"]


def test_a_handler_is_dressed_in_the_format_that_was_asked_for() -> None:
    handler = logging.StreamHandler()
    configure_handler(handler, "json")
    assert isinstance(handler.formatter, JsonFormatter)
    configure_handler(handler, "text")
    assert isinstance(handler.formatter, TextFormatter)


def test_probes_that_go_well_are_left_out() -> None:
    assert not is_worth_a_line("/health", "200 OK")
    assert is_worth_a_line("/health", "503 SERVICE UNAVAILABLE")
    assert is_worth_a_line("/predict", "200 OK")


def test_every_atom_of_gunicorns_format_can_be_asked_for(tmp_path: Path, store: Path) -> None:
    names = "h l u t r s m U q H b B f a T D M L p {host}i {content-type}o {wsgi.url_scheme}e {nothing}i".split()
    form = "ATOMS " + " ".join(f"%({name})s" for name in names)
    for worker_class in ("servekit.worker.Worker", "gthread"):
        arguments = ("--access-logformat", form, "--worker-class", worker_class)
        with running(tmp_path / "log", *arguments, SERVEKIT_MODEL_STORE=str(store), WEB_CONCURRENCY="1") as server:
            server.request("GET", '/nothing?q="1"', headers={"Referer": 'a"b', "User-Agent": "me", "Host": "here"})
            assert wait_for(lambda: "ATOMS" in server.text())
        line = server.text().partition("ATOMS ")[2].partition("\n")[0]
        assert line.startswith("127.0.0.1 - - [") and line.endswith(" here application/json http -"), line
        assert '] GET /nothing?q=\\"1\\" HTTP/1.1 404 GET /nothing q=\\"1\\" HTTP/1.1 ' in line, line
        assert ' a\\"b me 0 ' in line, line
