"""Spans as a collector receives them, over OTLP, from a server that runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.server import running, wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """Give the address of a collector, and the list to which it adds the groups of spans that it gets."""
    groups: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            groups.extend(ExportTraceServiceRequest.FromString(body).resource_spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", groups
        server.shutdown()


def spans_of(groups: list[Any]) -> list[Any]:
    return [span for group in groups for scope in group.scope_spans for span in scope.spans]


def attributes(span: Any) -> dict[str, Any]:
    kinds = {each.key: each.value.WhichOneof("value") for each in span.attributes}
    return {each.key: getattr(each.value, kinds[each.key]) for each in span.attributes}


@pytest.mark.parametrize("worker_class", ["servekit.worker.Worker", "gthread"])
def test_a_collector_sees_a_request_and_its_parts(tmp_path: Path, store: Path, worker_class: str) -> None:
    with collector() as (address, groups):
        variables = {"SERVEKIT_MODEL_STORE": str(store), "SERVEKIT_TRACING": "true", "WEB_CONCURRENCY": "1"}
        variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with running(tmp_path / "log", "--worker-class", worker_class, **variables) as server:
            headers = FORM | {"Traceparent": f"00-{TRACE}-{SPAN}-01", "Tracestate": "else=1"}
            assert server.request("POST", "/predict", "value=5", headers)[0] == 200
            assert server.get("/health")[0] == 200
            identity = server.request("POST", "/predict", "value=x", FORM | {"X-Request-Id": "bad"})[1]["X-Request-Id"]
            assert wait_for(lambda: sum(span.name == "POST /predict" for span in spans_of(groups)) == 2)
    spans = spans_of(groups)
    assert identity == "bad" and "GET /health" not in {span.name for span in spans}
    good, bad = [span for span in spans if span.name == "POST /predict"]
    assert good.trace_id.hex() == TRACE and good.parent_span_id.hex() == SPAN and good.trace_state == "else=1"
    expected = {"http.request.method": "POST", "http.route": "/predict", "http.response.status_code": 200}
    expected |= {"servekit.model": "linear", "servekit.model.version": "1", "servekit.rows": 1}
    assert expected.items() <= attributes(good).items() and "error.type" not in attributes(good)
    parts = {span.name: span for span in spans if span.parent_span_id == good.span_id}
    assert {"preprocess", "inference", "postprocess"} <= parts.keys()
    for part in parts.values():
        assert good.start_time_unix_nano <= part.start_time_unix_nano < part.end_time_unix_nano
        assert part.end_time_unix_nano <= good.end_time_unix_nano + 1_000_000
    assert bad.trace_id.hex() != TRACE and bad.status.code == 0  # a client's mistake is no failure of the server
    assert attributes(bad)["http.response.status_code"] == 400
    (names,) = {attributes(group.resource)["service.name"] for group in groups}
    assert names == "servekit" and f"trace {bad.trace_id.hex()}]" in server.text()


def test_a_collector_that_is_not_there_costs_no_answer(tmp_path: Path, store: Path) -> None:
    variables = {"SERVEKIT_MODEL_STORE": str(store), "SERVEKIT_TRACING": "true", "WEB_CONCURRENCY": "1"}
    variables |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY": "50"}
    variables |= {"OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with running(tmp_path / "log", **variables) as server:
        for _ in range(20):
            assert server.request("POST", "/predict", "value=5", FORM)[0] == 200
        assert wait_for(lambda: "spans" in server.text())
    assert "Traceback" not in server.text()
