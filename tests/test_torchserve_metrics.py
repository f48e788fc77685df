import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from servekit import metrics
from servekit.blueprints import torchserve_metrics
from servekit.errors import SettingError
from servekit.torchserve import exposition
from servekit.torchserve.catalogue import STANDARD, read_catalogue
from servekit.torchserve.host import MIN_SECONDS, Processors, gpus, readings
from tests.server import ROOT, environment

REQUESTS = r'Requests2XX\{Level="Host",Hostname=".*",\} \d+\.\d+'  # as TorchServe's own tests look for it
KINDS = ("Requests2XX", "Requests4XX", "Requests5XX")


@dataclass(frozen=True)
class Options:
    metrics_mode: str | None = None
    metrics_config: str | None = None
    model_metrics_auto_detect: bool = False
    disable_system_metrics: bool = True


@dataclass(frozen=True)
class Extension:
    properties: Options


Page = Callable[..., str]


@pytest.fixture
def page() -> Any:
    """What gives the page under some options and a query, as a client sees it."""

    def get(query: str = "", **options: Any) -> str:
        app = Flask("page")
        app.register_blueprint(torchserve_metrics.bp)
        app.extensions["torchserve"] = Extension(Options(**options))
        reply = app.test_client().get(f"/metrics{query}")
        assert (reply.status_code, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return reply.text

    exposition.configure(Options())
    yield get
    exposition.configure(Options())


def samples(text: str) -> dict[str, float]:
    """Return the samples of a page by what stands before their value, without the host's name."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {re.sub(r',[Hh]ostname="[^"]*"', "", name): float(value) for name, _, value in lines}


def alone(code: str, options: Options) -> subprocess.CompletedProcess[str]:
    """Run `code`, then print the page, in a process of its own that has counted nothing before."""
    setting = ", ".join(f"{name}={value!r}" for name, value in dataclasses.asdict(options).items())
    lines = ["from types import SimpleNamespace", "from servekit.torchserve import exposition"]
    lines += [f"options = SimpleNamespace({setting})", "exposition.configure(options)", code]
    lines += ["print(exposition.render([], options)[0], end='')"]
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
    exposition.configure(Options(model_metrics_auto_detect=True))
    exposition.observe_model_metric("Read", "histogram", 3, "ms", {"ModelName": 'a"\\\n{},b', "Level": "Model"})
    families = {family.name: family for family in text_string_to_metric_families(page(disable_system_metrics=False))}
    assert families["Requests2XX"].type == "counter" and families["ts_inference_requests"].type == "counter"
    assert families["MemoryUsed"].type == "gauge" and families["MemoryUsed"].samples[0].value > 0
    assert families["Read"].type == "histogram"
    assert families["Read"].samples[0].labels["ModelName"] == 'a"\\\n{},b'


def test_every_metric_is_described_before_it_has_a_value() -> None:
    text = alone("", Options("prometheus")).stdout
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
    assert page("?name[]=nothing") == page("?name[]=") == ""
    assert page("?name=nothing") == page("/") == page()


@pytest.mark.parametrize("mode", [None, "", "prometheus", "PROMETHEUS"])
def test_the_page_is_filled_unless_another_mode_is_asked_for(page: Page, mode: str | None) -> None:
    exposition.configure(Options(mode))
    exposition.observe_answer(200)
    assert re.search(REQUESTS, page(metrics_mode=mode))


def test_legacy_has_the_three_metrics_of_predictions_only(page: Page) -> None:
    exposition.configure(Options("legacy", model_metrics_auto_detect=True))
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


def test_log_answers_with_an_empty_page(page: Page) -> None:
    exposition.configure(Options("log"))
    exposition.observe_answer(200)
    exposition.observe_inference("logged", "default", 10, 1)
    assert page(metrics_mode="log", disable_system_metrics=False) == ""
    exposition.configure(Options())
    assert not lines_of(page(), "logged")


def test_a_mode_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingError, match="metrics_mode must be one of: prometheus, legacy, log"):
        exposition.configure(Options("statsd"))


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
    exposition.configure(Options(model_metrics_auto_detect=True))
    dimensions = {"ModelName": "found", "Level": "Model"}
    for kind, name, unit in [("counter", "Seen", "count"), ("gauge", "Size", "kB"), ("histogram", "Wait", "ms")]:
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
    exposition.configure(Options(model_metrics_auto_detect=True))
    before = page()
    with caplog.at_level(logging.WARNING, "servekit"):
        for _ in range(3):
            exposition.observe_model_metric(name, kind, value, "count", dimensions)
    assert page() == before
    assert [reason in record.getMessage() for record in caplog.records] == [True]


def test_no_value_of_a_handlers_spoils_the_page(page: Page) -> None:
    exposition.configure(Options(model_metrics_auto_detect=True))
    for value in ("\ud800", ["a", "list"], 7, None):
        exposition.observe_model_metric("Odd_values", "counter", 1, "a\nb\ud800", {"Value": value})
    text = page()
    assert "with unit: a b?\n" in text
    found = {name for name in samples(text) if name.startswith("Odd_values")}
    assert found == {f'Odd_values{{Value="{shown}",}}' for shown in ("?", "['a', 'list']", "7", "None")}
    assert len(list(text_string_to_metric_families(text))) > 20


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


def test_dimensions_without_end_are_cut_off() -> None:
    code = """for number in range(1500):
    exposition.observe_model_metric("Users", "counter", 1, "count", {"User": f"{number}"})
    exposition.observe_inference(f"endless{number}", "default", 1, 1)
exposition.observe_model_metric("Long", "counter", 1, "count", {"User": "x" * 100_000})
exposition.observe_model_metric("Users", "counter", 1, "count", {"User": "7"})"""
    done = alone(code, Options(model_metrics_auto_detect=True))
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
    done = alone(code, Options(model_metrics_auto_detect=True))
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
    text = alone(code, Options(metrics_config=str(file), disable_system_metrics=False)).stdout
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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: [", "is not YAML"),
        ("!!python/object/apply:os.system ['touch broken']", "is not YAML"),
        ("- a", "no mapping with ts_metrics"),
        ("", "no mapping with ts_metrics"),
        ("ts_metrics: [a]", "ts_metrics is no mapping"),
        ("model_metrics: {summary: []}", "none of counter, gauge and histogram"),
        ("model_metrics: {gauge: {a: 1}}", "gauge in model_metrics is no list"),
        ("model_metrics: {gauge: [{unit: ms}]}", "None is no name"),
        ("model_metrics: {gauge: [HandlerTime]}", "None is no name"),
        ("model_metrics: {gauge: [{name: a-b}]}", "'a-b' is no name"),
        ("model_metrics: {gauge: [{name: a, dimensions: b}]}", "dimensions of a"),
        ("model_metrics: {gauge: [{name: a, dimensions: ['b-c']}]}", "dimensions of a"),
        ("model_metrics: {gauge: [{name: a, dimensions: [b, b]}]}", "a dimension of a is there twice"),
        ("model_metrics: {gauge: [{name: a}], counter: [{name: a}]}", "a is there twice"),
        ("model_metrics: {gauge: [{name: a}]}\nts_metrics: {gauge: [{name: a}]}", "both"),
        ("ts_metrics: {gauge: [{name: Requests2XX, dimensions: [a, b]}]}", "Requests2XX is a counter"),
        ("ts_metrics: {counter: [{name: Requests2XX}]}", "Requests2XX has 2 dimensions: Level, Hostname"),
    ],
)
def test_a_metrics_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path: Path, content: str, reason: str) -> None:
    file = tmp_path / "metrics.yaml"
    file.write_text(content)
    with pytest.raises(SettingError) as caught:
        read_catalogue(file)
    assert reason in str(caught.value) and "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_a_metrics_file_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match="metrics_config=/nowhere/metrics.yaml cannot be read: No such file"):
        exposition.configure(Options(metrics_config="/nowhere/metrics.yaml"))


def test_the_machine_is_measured_when_the_page_is_asked_for(page: Page) -> None:
    found = samples(page(disable_system_metrics=False))
    host = {name.partition("{")[0]: value for name, value in found.items() if name.endswith('{Level="Host",}')}
    for name in ("CPUUtilization", "MemoryUtilization", "DiskUtilization"):
        assert 0 <= host[name] <= 100
    disk = os.statvfs("/")
    assert host["DiskAvailable"] == pytest.approx(disk.f_bavail * disk.f_frsize / 2**30, rel=0.05)
    assert min(host[name] for name in ("MemoryUsed", "MemoryAvailable", "DiskUsage")) > 0
    assert not any(name.startswith("MemoryUsed") for name in samples(page(disable_system_metrics=True)))


def test_processors_and_memory_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat, memory = tmp_path / "proc/stat", tmp_path / "proc/meminfo"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1\n")
    memory.write_text("MemTotal:  4096 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n\n")
    processors = Processors(tmp_path)
    stat.write_text("cpu  120 0 110 760 110 0 0 0 70 0\n")  # 30 of 100 ticks; a guest's are within the user's
    time.sleep(MIN_SECONDS)
    found = {name: value for name, _, value in readings(processors, tmp_path)}
    assert found["CPUUtilization"] == 30
    stat.write_text("cpu  130 0 110 760 110 0 0 0 70 0\n")
    assert processors.percent() == 30  # too soon to say
    assert (found["MemoryUsed"], found["MemoryAvailable"], found["MemoryUtilization"]) == (3, 1, 75)


def test_a_system_that_does_not_say_is_left_out(tmp_path: Path) -> None:
    found = {name for name, device, _ in readings(Processors(tmp_path), tmp_path) if device is None}
    assert found == {"DiskUsage", "DiskAvailable", "DiskUtilization"}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    assert not any(name == "MemoryUsed" for name, _, _ in readings(Processors(tmp_path), tmp_path))


class TwoGpus:
    """NVIDIA's library as it answers on a machine whose second of three GPUs is broken, and third one cut up."""

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = index.value + 1
        return 15 if index.value == 1 else 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 80 * 2**30, 20 * 2**30
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, use: Any) -> int:
        use._obj.gpu = 60
        return 3 if device.value == 3 else 0


def test_gpus_are_measured_one_by_one() -> None:
    memory = [("GPUMemoryUtilization", 25.0), ("GPUMemoryUsed", 20 * 1024.0)]
    first = [(name, "0", value) for name, value in [*memory, ("GPUUtilization", 60.0)]]
    assert list(gpus(TwoGpus())) == [*first, *((name, "2", value) for name, value in memory)]


NVML = """
struct memory { unsigned long long total, free, used; };
struct use { unsigned int gpu, memory; };
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)0x7fffdeadbeef; return index; }
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    memory->total = 80ull << 30; memory->free = 60ull << 30; memory->used = 20ull << 30;
    return device != (void *)0x7fffdeadbeef;
}
int nvmlDeviceGetUtilizationRates(void *device, struct use *use) {
    use->gpu = 60; use->memory = 5;
    return device != (void *)0x7fffdeadbeef;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nvidias_library_is_called_as_its_header_says(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    code = "from servekit.torchserve.host import gpus; print(list(gpus()))"
    variables = environment(LD_LIBRARY_PATH=str(tmp_path))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    readings = [("GPUMemoryUtilization", "0", 25.0), ("GPUMemoryUsed", "0", 20480.0), ("GPUUtilization", "0", 60.0)]
    assert done.stdout.strip() == str(readings)


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


# Two workers count, one ends; what the page shows while both live and afterwards, and what servekit's own page shows.
WORKERS = """
import json, os, sys
from types import SimpleNamespace
from prometheus_client import REGISTRY
from servekit import metrics
from servekit.torchserve import exposition

options = SimpleNamespace(
    metrics_mode=None, metrics_config=None, model_metrics_auto_detect=True, disable_system_metrics=True
)
exposition.configure(options)
dimensions = {"ModelName": "m", "Level": "Model"}

def work(number):
    metrics.ModelMeter("m", "1").observe(1, 0.1, 0.1)
    for _ in range(1000):
        exposition.observe_answer(200)
        exposition.observe_inference("m", "default", 10.5, 2)
    exposition.observe_model_metric("HandlerTime", "gauge", number, "ms", dimensions)
    exposition.observe_model_metric("Wait", "histogram", number, "ms", dimensions)
    exposition.set_load_time(f"W-900{number}-m_1.0", 10 + number)

def start(number):
    done, told = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        work(number)
        os.write(done[1], b".")
        os.read(told[0], 1)
        os._exit(0)
    os.read(done[0], 1)
    return pid, told[1]

def end(pid, told):
    os.write(told, b".")
    os.waitpid(pid, 0)
    metrics.mark_worker_dead(pid)

before = exposition.render([], options)[0]
first, second = start(1), start(2)
own = metrics.render(None, None, REGISTRY)[0]
chosen = metrics.render(None, ["servekit_rows_total", "Requests2XX"], REGISTRY)[0]
both = exposition.render([], options)[0]
end(*second)
one = exposition.render([], options)[0]
third = start(3)
end(*first)
end(*third)
print(json.dumps([before, both, one, exposition.render([], options)[0], own, chosen]))
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The pages that WORKERS prints."""
    variables = environment(PROMETHEUS_MULTIPROC_DIR=str(tmp_path_factory.mktemp("metrics")))
    command = [sys.executable, "-c", WORKERS]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_all_workers_are_counted_and_their_counters_outlive_them(pages: list[str]) -> None:
    before, both, one, none = map(samples, pages[:4])
    requests = 'ts_inference_requests_total{model_name="m",model_version="default",}'
    latency = 'ts_inference_latency_microseconds{model_name="m",model_version="default",}'
    buckets = [f'Wait_bucket{{ModelName="m",Level="Model",le="{bound}",}}' for bound in ("0.75", "1.0", "2.5", "+Inf")]
    assert not before
    for page, workers in ((both, 2), (one, 2), (none, 3)):
        assert page['Requests2XX{Level="Host",}'] == page[requests] == 1000 * workers
        assert page[latency] == 10_500 * workers
    assert [one[name] for name in buckets] == [0, 1, 2, 2]
    assert re.search(REQUESTS, pages[3])


def test_gauges_go_with_their_workers(pages: list[str]) -> None:
    before, both, one, none = map(samples, pages[:4])
    handler = 'HandlerTime{ModelName="m",Level="Model",}'
    loads = [f'WorkerLoadTime{{WorkerName="W-900{number}-m_1.0",Level="Host",}}' for number in (1, 2, 3)]
    assert both[handler] == 2  # the last one
    assert one[handler] == 1
    assert handler not in none and "# TYPE HandlerTime gauge" in pages[3]
    assert [name in both for name in loads] == [True, True, False]
    assert [name in one for name in loads] == [True, False, False]
    assert [name in none for name in loads] == [False] * 3


def test_neither_page_shows_the_others_metrics(pages: list[str]) -> None:
    *ours, own, chosen = pages
    assert 'servekit_rows_total{model="m",version="1"} 2.0' in own
    assert re.findall(r"^servekit_\w+", chosen, re.MULTILINE) == ["servekit_rows_total"]
    for text in (own, chosen):
        assert not re.search("Requests|HandlerTime|apart|ts_inference", text)
    assert not any("servekit" in text or "apart" in text for text in ours)
