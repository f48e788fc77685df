import datetime
import json
import logging
import re
from pathlib import Path

import pytest

from servekit.logs import (
    JsonFormatter,
    Sparingly,
    TextFormatter,
    configure_handler,
    is_worth_a_line,
    tell_failure,
)
from servekit.record import Record
from servekit.record import record as current
from tests.server import Server, running, wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_json_lines_hold_one_object_each(tmp_path: Path, store: Path) -> None:
    variables = {"SERVEKIT_MODEL_STORE": str(store), "SERVEKIT_LOG_FORMAT": "json", "WEB_CONCURRENCY": "1"}
    with running(tmp_path / "log", **variables) as server:
        body = "value=5"
        headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Request-Id": "json-1"}
        assert server.get("/health")[0] == 200
        server.request("POST", "/predict?a=%22%0a", body, headers)
        server.request("GET", "/nothing", headers={"X-Request-Id": "json-2", "Traceparent": f"00-{TRACE}-{SPAN}-01"})
        assert wait_for(lambda: '"json-1"' in server.text() and '"json-2"' in server.text())
    assert "GET /health" not in server.text()
    lines = [json.loads(line) for line in server.text().splitlines()]
    assert all({"ts", "level", "logger", "pid", "request_id", "msg"} <= set(line) for line in lines)
    assert any("is ready" in line["msg"] for line in lines)
    access = next(line for line in lines if line["request_id"] == "json-1")
    assert access["logger"] == "gunicorn.access"
    expected = {"client": "127.0.0.1", "method": "POST", "path": "/predict", "route": "/predict", "status": 200}
    expected |= {"bytes_in": len(body), "model": "linear", "version": "1", "rows": 1, "batch_size": 1}
    assert expected.items() <= access.items()
    parts = ("preprocess_ms", "queue_ms", "infer_ms", "postprocess_ms")
    assert access["bytes_out"] > 0 and 0 < sum(access[part] for part in parts) < access["duration_ms"]
    assert "error.type" not in access and "trace_id" not in access
    moment = datetime.datetime.fromisoformat(access["ts"])
    assert abs((datetime.datetime.now(datetime.UTC) - moment).total_seconds()) < 600
    failed = next(line for line in lines if line["request_id"] == "json-2")
    assert failed["route"] is None and failed["error.type"] == "404" and "model" not in failed
    assert failed["trace_id"] == TRACE and len(failed["span_id"]) == 16 and failed["span_id"] != SPAN


def test_a_request_without_an_id_has_that_of_its_trace(server: Server) -> None:
    headers = {"Traceparent": f"00-{TRACE}-{SPAN}-01"}
    assert server.request("GET", "/nothing", headers=headers)[1]["X-Request-Id"] == TRACE
    server.request("GET", "/nothing", headers=headers | {"X-Request-Id": "mine-too"})
    assert wait_for(lambda: f"[mine-too trace {TRACE}] " in server.text())
    assert f"[{TRACE}] " in server.text()


def test_a_slow_request_says_where_its_time_went(tmp_path: Path, store: Path) -> None:
    variables = {"SERVEKIT_MODEL_STORE": str(store), "SERVEKIT_SLOW_SECONDS": "0.000001", "WEB_CONCURRENCY": "1"}
    with running(tmp_path / "log", **variables) as server:
        server.request("POST", "/predict", "value=5", {"Content-Type": "application/x-www-form-urlencoded"})
        assert wait_for(lambda: "Slow: " in server.text())
    (line,) = [line for line in server.text().splitlines() if "Slow: " in line]
    number = r"[0-9.]+ s"
    parts = f"preprocess {number}, queue {number}, pass of 1 row {number}, postprocess {number}"
    assert re.search(f"WARNING .* Slow: POST /predict took {number} and got 200; linear/1, 1 row: {parts}$", line), line


def test_what_happens_too_often_is_written_once_a_second() -> None:
    sparingly = Sparingly()
    moments = (10.0, 10.2, 10.9, 11.1, 11.2, 15.0)
    assert [sparingly.skipped(moment) for moment in moments] == [0, None, None, 2, None, 1]


def test_text_lines_hold_the_request_id_and_nothing_that_breaks_a_line(server: Server) -> None:
    headers = {"X-Request-Id": "text-1"}
    server.request("GET", "/a%0aFORGED", headers=headers)
    assert wait_for(lambda: "text-1" in server.text())
    line = next(line for line in server.text().splitlines() if "text-1" in line)
    assert '[text-1] 127.0.0.1 "GET /a%0aFORGED HTTP/1.1" 404 ' in line


def record(message: str = "hello", **extra: object) -> logging.LogRecord:
    return logging.LogRecord("servekit", logging.ERROR, "path", 1, message, None, extra.get("exc_info"))


def test_a_line_of_a_request_holds_its_id() -> None:
    taken = Record()
    taken.identity = "mine"
    token = current.set(taken)
    try:
        assert " ERROR [" in TextFormatter().format(record()) and "] [mine] hello" in TextFormatter().format(record())
        assert json.loads(JsonFormatter().format(record()))["request_id"] == "mine"
    finally:
        current.reset(token)
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


def test_a_failed_pass_is_told_once_with_its_model_and_where_the_time_went(caplog: pytest.LogCaptureFixture) -> None:
    taken = Record()
    taken.model, taken.version, taken.rows, taken.error = "mnist", "3", 2, "RuntimeError"
    taken.add_pass(8, 0.25, 0.5)
    token = current.set(taken)
    try:
        tell_failure(logging.getLogger("servekit.test"), RuntimeError("boom"))
    finally:
        current.reset(token)
    (line,) = caplog.records
    times = "preprocess 0.000 s, queue 0.250 s, pass of 8 rows 0.500 s, postprocess 0.000 s"
    assert line.getMessage().endswith(f"; mnist/3, 2 rows: {times}, failed with RuntimeError")
    members = json.loads(JsonFormatter().format(line))
    expected = {"model": "mnist", "version": "3", "rows": 2, "batch_size": 8, "queue_ms": 250, "infer_ms": 500}
    assert (expected | {"error.type": "RuntimeError"}).items() <= members.items()
    assert members["traceback"] == "RuntimeError: boom"
