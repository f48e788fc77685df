import json
import re
import subprocess
import sys

import pytest

from tests.exposition import REQUESTS, samples
from tests.server import ROOT, environment

# Two workers count, one ends; what the page shows while both live and afterwards, and what servekit's own page shows.
WORKERS = """
import json, os, sys
from prometheus_client import REGISTRY
from servekit import metrics
from servekit.torchserve import exposition
from servekit.torchserve.properties import Properties

options = Properties(model_metrics_auto_detect=True, disable_system_metrics=True)
exposition.configure(options)
dimensions = {"ModelName": "m", "Level": "Model"}

def work(number):
    metrics.ModelMeter("m", "1").observe(1, 0.1, [0.1])
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
