import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from servekit.blueprints import torchserve_metrics
from servekit.torchserve import exposition
from servekit.torchserve.catalogue import STANDARD
from servekit.torchserve.properties import Properties
from tests.exposition import REQUESTS, samples
from tests.server import ROOT

KINDS = ("Requests2XX", "Requests4XX", "Requests5XX")


def properties(metrics_mode: str = "prometheus", disable_system_metrics: bool = True, **others: Any) -> Properties:
    return Properties(metrics_mode=metrics_mode, disable_system_metrics=disable_system_metrics, **others)


Page = Callable[..., str]


@pytest.fixture
def page() -> Any:
    """What gives the page under some properties and a query, as a client sees it."""

    def get(query: str = "", **given: Any) -> str:
        names = parse_qs(query.removeprefix("?"), keep_blank_values=True).get("name[]", [])
        text, content_type = exposition.render(names, properties(**given))
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        return text

    exposition.configure(properties())
    yield get
    exposition.configure(properties())


def alone(code: str, chosen: Properties) -> subprocess.CompletedProcess[str]:
    """Run `code`, then print the page, in a process of its own that has counted nothing before."""
    lines = ["from servekit.torchserve import exposition", "from servekit.torchserve.properties import Properties"]
    lines += [f"properties = Properties.parse({chosen.to_text()!r})", "exposition.configure(properties)", code]
    lines += ["print(exposition.render([], properties)[0], end='')"]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def lines_of(text: str, name: str) -> list[str]:
    """Return what stands on the page of one model."""
    return [line for line in text.splitlines() if f'"{name}"' in line]


def test_the_text_is_torchserves(page: Page) -> None:
    exposition.observe_answer(200)
    exposition.observe_inference("text", "default", 1500.5, 500)
    exposition.observe_inference("text", "1.0", 20_000_000, 0)
    exposition.set_load_time("W-9000-text_1.0", 2957)
    text = page()
    assert re.search(REQUESTS, text)
    start = text.index("# HELP Requests2XX")
    assert text[start:].startswith(
        "# HELP Requests2XX Torchserve prometheus counter metric with unit: Count\n# TYPE Requests2XX counter\nRequests2XX{"
    )
    assert lines_of(re.sub(r'ostname="[^"]+"', 'ostname="h"', text), "text") == [
        'ts_inference_requests_total{model_name="text",model_version="1.0",hostname="h",} 1.0',
        'ts_inference_requests_total{model_name="text",model_version="default",hostname="h",} 1.0',
        'ts_inference_latency_microseconds{model_name="text",model_version="1.0",hostname="h",} 2.0E7',
        'ts_inference_latency_microseconds{model_name="text",model_version="default",hostname="h",} 1500.5',
        'ts_queue_latency_microseconds{model_name="text",model_version="1.0",hostname="h",} 0.0',
        'ts_queue_latency_microseconds{model_name="text",model_version="default",hostname="h",} 500.0',
    ]
    assert samples(text)['QueueTime{Level="Host",}'] == 0.5
    assert samples(text)['WorkerLoadTime{WorkerName="W-9000-text_1.0",Level="Host",}'] == 2957
    assert "_total_total" not in text and "_created" not in text and text.endswith("\n")


def test_prometheus_reads_the_text(page: Page) -> None:
    exposition.observe_answer(200)
    exposition.configure(properties(model_metrics_auto_detect=True))
    exposition.observe_model_metric("Read", "histogram", 3, "ms", {"ModelName": 'a"\\\n{},b', "Level": "Model"})
    families = {family.name: family for family in text_string_to_metric_families(page(disable_system_metrics=False))}
    assert families["Requests2XX"].type == "counter" and families["ts_inference_requests"].type == "counter"
    assert families["MemoryUsed"].type == "gauge" and families["MemoryUsed"].samples[0].value > 0
    assert families["Read"].type == "histogram"
    assert families["Read"].samples[0].labels["ModelName"] == 'a"\\\n{},b'


def test_every_metric_is_described_before_it_has_a_value() -> None:
    text = alone("", properties("prometheus")).stdout
    assert not samples(text)
    names = [*STANDARD.server, *STANDARD.model]
    assert re.findall(r"# TYPE (\w+) ", text) == re.findall(r"# HELP (\w+) ", text) == names
    assert len(names) == 21


def test_names_select_samples(page: Page) -> None:
    exposition.observe_answer(200)
    exposition.observe_inference("chosen", "default", 10, 1)
    text = page("?name[]=Requests2XX&name[]=ts_queue_latency_microseconds&name[]=nothing")
    assert set(re.findall(r"# TYPE (\w+)", text)) == {"Requests2XX", "ts_queue_latency_microseconds"}
    assert page("?name[]=GPUUtilization") == ""  # which has no sample
    assert page("?name[]=nothing") == page("?name[]=&") == ""
    assert page("?name=nothing") == page()


def test_the_page_is_filled_unless_another_mode_is_asked_for(page: Page) -> None:
    exposition.observe_answer(200)
    assert re.search(REQUESTS, page())


def test_legacy_has_the_three_metrics_of_predictions_only(page: Page) -> None:
    exposition.configure(properties("legacy", model_metrics_auto_detect=True))
    exposition.observe_answer(200)
    exposition.observe_inference("old", "default", 10, 1)
    exposition.observe_model_metric("HandlerTime", "gauge", 1, "ms", {"ModelName": "old", "Level": "Model"})
    text = page(metrics_mode="legacy", disable_system_metrics=False)
    assert set(re.findall(r"# TYPE (\w+)", text)) == {
        "ts_inference_requests_total",
        "ts_inference_latency_microseconds",
        "ts_queue_latency_microseconds",
    }
    assert len(lines_of(text, "old")) == 3


def test_a_scrape_is_answered_and_counted(page: Page) -> None:
    exposition.observe_answer(200)
    app = Flask("page")
    app.register_blueprint(torchserve_metrics.bp)
    app.extensions["torchserve"] = SimpleNamespace(properties=properties(), headers=[])
    client = app.test_client()
    pages = []
    for _ in range(2):
        reply = client.get("/metrics?name[]=Requests2XX")
        assert (reply.status_code, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert reply.headers["Pragma"] == "no-cache"
        pages.append(float(reply.text.split()[-1]))
    assert pages[1] == pages[0] + 1


def test_log_answers_with_an_empty_page(page: Page) -> None:
    exposition.configure(properties("log"))
    exposition.observe_answer(200)
    exposition.observe_inference("logged", "default", 10, 1)
    assert page(metrics_mode="log", disable_system_metrics=False) == ""
    exposition.configure(properties())
    assert not lines_of(page(), "logged")


def test_answers_are_counted_by_class(page: Page) -> None:
    before = samples(page())
    for status in (200, 202, 206, 301, 302, 400, 404, 429, 500, 503, 507, 599, 600):
        exposition.observe_answer(status)
    after = samples(page())
    names = [f'{name}{{Level="Host",}}' for name in KINDS]
    assert [after[name] - before.get(name, 0) for name in names] == [3, 3, 5]


def test_a_request_that_failed_is_counted_and_not_timed(page: Page) -> None:
    exposition.observe_inference("failing", "2.0")
    assert len(lines_of(page(), "failing")) == 1
    exposition.observe_inference("failing", "2.0", 40, 10)
    assert samples(page())['ts_inference_requests_total{model_name="failing",model_version="2.0",}'] == 2
    assert samples(page())['ts_inference_latency_microseconds{model_name="failing",model_version="2.0",}'] == 40


def test_the_workers_own_time_is_what_the_handler_did_not_take(page: Page) -> None:
    exposition.observe_model_metric("PredictionTime", "gauge", 3, "ms", {"ModelName": "timed", "Level": "Model"})
    exposition.observe_inference("timed", "default", 6000, 1000)
    found = samples(page())
    assert found['WorkerThreadTime{Level="Host",}'] == 2
    assert found['PredictionTime{ModelName="timed",Level="Model",}'] == 3


def test_handlers_metrics_are_those_listed(page: Page) -> None:
    dimensions = {"ModelName": "listed", "Level": "Model"}
    exposition.observe_model_metric("HandlerTime", "counter", 1.5, "ms", dimensions)  # listed as a gauge
    exposition.observe_model_metric("HandlerTime", "gauge", 2.5, "ms", dimensions | {"Unlisted": "x"})
    exposition.observe_model_metric("Invented", "counter", 1, "count", dimensions)
    exposition.observe_answer(200)
    host = re.search(r'Requests2XX\{Level="Host",(Hostname=".*",)\}', page())
    assert host
    assert lines_of(page(), "listed") == [f'HandlerTime{{ModelName="listed",Level="Model",{host[1]}}} 2.5']


def test_other_metrics_of_handlers_are_detected_if_asked_for(page: Page) -> None:
    exposition.configure(properties(model_metrics_auto_detect=True))
    dimensions = {"ModelName": "found", "Level": "Model"}
    for kind, name, unit in [("counter", "Seen", "count"), ("gauge", "Size", "Kilobytes"), ("histogram", "Wait", "ms")]:
        for value in (1, 7):
            exposition.observe_model_metric(name, kind, value, unit, dimensions)
    exposition.observe_model_metric("Odd", "gauge", 1, "", {"Level": "Error"})
    text = page()
    assert "# HELP Size Torchserve prometheus gauge metric with unit: Kilobytes\n# TYPE Size gauge\n" in text
    assert "# HELP Odd Torchserve prometheus gauge metric with unit: unit\n" in text
    found = samples("\n".join(lines_of(text, "found")))
    assert found['Seen{ModelName="found",Level="Model",}'] == 8
    assert found['Size{ModelName="found",Level="Model",}'] == 7
    waits = [(name[4:], value) for name, value in found.items() if name.startswith("Wait")]
    bounds = "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 +Inf".split()
    labels = 'ModelName="found",Level="Model",'
    assert waits == [
        *((f'_bucket{{{labels}le="{bound}",}}', 2 if float(bound) >= 7 else 1 if float(bound) >= 1 else 0) for bound in bounds),
        (f"_count{{{labels}}}", 2),
        (f"_sum{{{labels}}}", 8),
    ]
    selected = samples(page("?name[]=Wait_sum&name[]=Wait_count"))
    assert set(selected) == {f"Wait_sum{{{labels}}}", f"Wait_count{{{labels}}}"}


@pytest.mark.parametrize(
    ("name", "kind", "value", "dimensions", "reason"),
    [
        ("Bad-Name", "counter", 1, {}, "none that Prometheus takes"),
        ("Kindless", "summary", 1, {}, "none that Prometheus takes"),
        ("Requests2XX", "counter", 1, {}, "one of the server's"),
        ("Texts", "gauge", "many", {}, "no number"),
        ("Shrinks", "counter", -1, {}, "only grows"),
        ("Endless", "histogram", float("inf"), {}, "infinities"),
        ("Labels", "gauge", 1, {"my-label": "x"}, "dimension's name"),
        ("HandlerTime", "gauge", 1, {"Level": "Model"}, "without the dimension ModelName"),
    ],
)
def test_what_cannot_be_counted_is_dropped_with_one_warning(
    page: Page, caplog: pytest.LogCaptureFixture, name: str, kind: str, value: Any, dimensions: Any, reason: str
) -> None:
    exposition.configure(properties(model_metrics_auto_detect=True))
    before = page()
    with caplog.at_level(logging.WARNING, "servekit"):
        for _ in range(3):
            exposition.observe_model_metric(name, kind, value, "count", dimensions)
    assert page() == before
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_no_value_of_a_handlers_spoils_the_page(page: Page) -> None:
    exposition.configure(properties(model_metrics_auto_detect=True))
    for value in ("\ud800", ["a", "list"], 7, None):
        exposition.observe_model_metric("Odd_values", "counter", 1, "a\nb\ud800", {"Value": value})
    text = page()
    assert "with unit: a b?\n" in text
    found = {name for name in samples(text) if name.startswith("Odd_values")}
    assert found == {f'Odd_values{{Value="{shown}",}}' for shown in ("?", "['a', 'list']", "7", "None")}
    assert len(list(text_string_to_metric_families(text))) > 20


def test_dimensions_without_end_are_cut_off() -> None:
    code = """for number in range(1500):
    exposition.observe_model_metric("Users", "counter", 1, "count", {"User": f"{number}"})
    exposition.observe_inference(f"endless{number}", "default", 1, 1)
exposition.observe_model_metric("Long", "counter", 1, "count", {"User": "x" * 100_000})
exposition.observe_model_metric("Users", "counter", 1, "count", {"User": "7"})"""
    done = alone(code, properties(model_metrics_auto_detect=True))
    found = samples(done.stdout)
    assert sum(name.startswith("Users{") for name in found) == 1000
    assert found['Users{User="7",}'] == 2  # what came first goes on being counted
    assert sum(name.startswith("ts_inference_requests_total{") for name in found) == 1000
    assert max(map(len, found)) < 400
    assert [line.count("1000 combinations") for line in done.stderr.splitlines()] == [1] * 4


def test_names_without_end_are_cut_off() -> None:
    code = """exposition.observe_answer(200)
for number in range(1200):
    exposition.observe_model_metric(f"Name{number}", "counter", 1, "count", {})"""
    done = alone(code, properties(model_metrics_auto_detect=True))
    assert len(re.findall("^Name", done.stdout, re.MULTILINE)) == 999  # and Requests2XX
    assert 'Name7{Hostname="' in done.stdout
    assert len(done.stderr.splitlines()) == 2


YAML = """
dimensions: [&model ModelName, &level Level, &host Hostname]
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Number, dimensions: [Where, Machine]}
    - {name: ts_inference_requests_total, unit: Count, dimensions: [model, version, host]}
  gauge:
    - {name: Unknown, unit: Count, dimensions: [*level, *host]}
model_metrics:
  counter:
    - {name: Listed, unit: things, dimensions: [who, *model]}
  histogram:
    - {name: Spread, unit: ms, dimensions: [*model, *level, *host]}
  gauge:
"""


def test_a_metrics_file_says_what_the_page_has(tmp_path: Path) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(YAML)
    code = """exposition.observe_answer(200)
exposition.observe_answer(404)
exposition.observe_inference("filed", "1", 5, 1)
for name in ("Listed", "Spread", "HandlerTime"):
    dimensions = {"ModelName": "filed", "Level": "Model", "who": "me"}
    exposition.observe_model_metric(name, "counter", 2, "count", dimensions)"""
    text = alone(code, properties(metrics_config=file, disable_system_metrics=False)).stdout
    described = re.findall(r"# HELP (\w+) Torchserve prometheus (\w+) metric with unit: (\w+)", text)
    assert described == [
        ("Requests2XX", "counter", "Number"),
        ("ts_inference_requests_total", "counter", "Count"),
        ("Unknown", "gauge", "Count"),
        ("Listed", "counter", "things"),
        ("Spread", "histogram", "ms"),
    ]
    assert re.search(r'Requests2XX\{Where="Host",Machine="[^"]+",\} 1\.0', text)
    lines = re.sub(r'="[^"]*",\} ', '="h",} ', text)
    assert 'ts_inference_requests_total{model="filed",version="1",host="h",} 1.0' in lines
    assert 'Listed{who="me",ModelName="filed",Hostname="h",} 2.0' in lines
    assert 'Spread_sum{ModelName="filed",Level="Model",Hostname="h",} 2.0' in lines


def test_the_machine_is_measured_when_the_page_is_asked_for(page: Page) -> None:
    found = samples(page(disable_system_metrics=False))
    host = {name.partition("{")[0]: value for name, value in found.items() if name.endswith('{Level="Host",}')}
    for name in ("CPUUtilization", "MemoryUtilization", "DiskUtilization"):
        assert 0 <= host[name] <= 100
    disk = os.statvfs("/")
    assert host["DiskAvailable"] == pytest.approx(disk.f_bavail * disk.f_frsize / 2**30, rel=0.05)
    assert min(host[name] for name in ("MemoryUsed", "MemoryAvailable", "DiskUsage")) > 0
    assert not any(name.startswith("MemoryUsed") for name in samples(page(disable_system_metrics=True)))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0.0"),
        (8, "8.0"),
        (0.001, "0.001"),
        (0.00012, "1.2E-4"),
        (9999999.5, "9999999.5"),
        (10_000_000, "1.0E7"),
        (-12345678.25, "-1.234567825E7"),
        (1e300, "1.0E300"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
    ],
)
def test_numbers_are_written_as_java_writes_them(number: float, text: str) -> None:
    assert exposition.number_text(number) == text
    assert float(text) == number or text == "NaN"
