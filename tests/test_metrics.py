import re
import subprocess
import sys
import threading

from servekit import metrics
from tests.server import ROOT, Server, environment, wait_for

LINE = re.compile(r'^(servekit_\w+)(?:\{(.*)\})? (\S+)$', re.MULTILINE)


def series(server: Server, path: str = "/metrics") -> dict[str, float]:
    """Return every sample of servekit's, by its name and labels."""
    text = server.get(path)[2].decode()
    return {f"{name}{{{labels}}}": float(value) for name, labels, value in LINE.findall(text)}


def test_requests_and_rows_are_counted_over_all_workers(server: Server, digit: bytes) -> None:
    def total(samples: dict[str, float], name: str) -> float:
        return samples.get(name, 0.0)

    requests = 'servekit_requests_total{method="POST",route="/predict/batch",status="200"}'
    rows = 'servekit_rows_total{model="mnist",version="1"}'
    seconds = 'servekit_request_duration_seconds_count{method="POST",route="/predict/batch"}'
    before = series(server)
    for _ in range(10):  # enough for both workers to have some
        server.post_files("/predict/batch", [("files", "a.png", digit)] * 3)
    after = series(server)
    grown = {name: total(after, name) - total(before, name) for name in (requests, rows, seconds)}
    assert grown == {requests: 10, rows: 30, seconds: 10}
    assert after['servekit_models_loaded{model="mnist",version="1"}'] == 2


def test_buckets_start_at_a_quarter_of_a_millisecond(server: Server) -> None:
    server.get("/health")
    bounds = [float(bound) for name in series(server) if '"/health"' in name for bound in re.findall(r'le="([\d.]+)"', name)]
    assert min(bounds) == 0.00025 and max(bounds) == 30


def test_nothing_from_the_wire_becomes_a_label(server: Server) -> None:
    for number in range(5):
        server.get(f"/invented/{number}")
        server.get(f"/health?{number}")
        server.request(f"INVENTED{number}", "/predict")
        server.post_form("/predict", f"value={number}&model=invented")
    text = server.get("/metrics")[2].decode()
    assert "invented" not in text.lower()
    samples = series(server)
    assert samples['servekit_requests_total{method="GET",route="unmatched",status="404"}'] >= 5
    others = 'servekit_requests_total{method="other",route="unmatched"'
    assert sum(count for name, count in samples.items() if name.startswith(others)) >= 5


def test_names_select_metrics(server: Server) -> None:
    server.post_form("/predict", "value=5")
    found = {name.partition("{")[0] for name in series(server, "/metrics?name[]=servekit_rows_total")}
    assert found == {"servekit_rows_total"}
    assert server.get("/metrics?name[]=nothing")[0] == 200


def test_openmetrics_is_given_to_those_who_ask(server: Server) -> None:
    _, headers, body = server.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
    accept = {"Accept": "application/openmetrics-text; version=abc"}
    status, headers, _ = server.request("GET", "/metrics", headers=accept)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")


def test_the_text_is_what_prometheus_reads(server: Server) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    status, headers, body = server.get("/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["servekit_request_duration_seconds"].type == "histogram"
    assert families["servekit_requests"].type == "counter"
    assert families["servekit_models_loaded"].type == "gauge"


def test_without_gunicorn_the_page_is_that_of_one_process() -> None:
    code = (
        "from flask import Flask; from servekit import metrics; app = Flask('x'); metrics.init_app(app);"
        "metrics.ModelMeter('m', '1').observe(3, 0.1, [0.01]); print(app.test_client().get('/metrics').text)"
    )
    variables = environment()
    variables.pop("PROMETHEUS_MULTIPROC_DIR", None)
    page = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    assert 'servekit_rows_total{model="m",version="1"} 3.0' in page.stdout


def test_health_checks_and_scrapes_leave_no_line_in_the_access_log(server: Server) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/health?verbose=1"):
        assert server.get(path)[0] == 200
    assert server.get("/nothing")[0] == 404
    assert server.request("POST", "/health")[0] == 405
    assert wait_for(lambda: "POST /health" in server.text())  # a probe that fails is worth a line
    assert "GET /nothing" in server.text()
    assert "GET /health" not in server.text() and "GET /metrics" not in server.text()


def test_of_two_kinds_of_one_name_the_first_counts() -> None:
    page = metrics.page("two kinds")
    for kind in ("counter", "gauge"):
        update = page.series(kind, "Both", 'a="b",', "text")
        assert update is not None
        update(5)
        update(5)
    assert page.families() == {"Both": metrics.Family("counter", "text", {'a="b",': {None: 10}})}
    assert metrics.page("another").families() == {}


def test_threads_lose_no_count() -> None:
    page = metrics.page("threads")

    def count() -> None:
        for number in range(2000):
            update = page.series("counter", f"Name{number % 50}", "", "text")
            assert update is not None
            update(1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {family.series[""][None] for family in page.families().values()} == {320}
