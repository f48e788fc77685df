"""Where metrics are kept: exact after any death, bounded on the disk, and harmless when that is full."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from servekit.metrics.cells import Cells
from servekit.metrics.folder import remove_left_over
from tests.server import ROOT, environment

# Workers of two slots that are killed while they count, at any moment. After each count they say so.
KILLED = """
import json, os, random, signal, sys, threading
from prometheus_client import REGISTRY
from servekit import metrics

random.seed(7)
folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]
metrics.use_slot(None)
failures, stop = [], threading.Event()

def scrape():
    while not stop.is_set():
        try:
            metrics.render(None, None, REGISTRY)
            metrics.statistics("m", "1")
        except Exception as error:
            failures.append(repr(error))

def start(slot):
    said = os.pipe()
    pid = os.fork()
    if pid == 0:
        metrics.use_slot(slot)
        meter = metrics.ModelMeter("m", "1")
        meter.set_loaded()
        while True:
            meter.observe(3, 0.5, [0.25])
            meter.observe_prediction(1.0, 0.25, 0.25)
            os.write(said[1], b".")
    os.close(said[1])
    return pid, said[0]

counted, sizes = 0, []
for round in range(30):
    workers = [start(slot) for slot in (0, 1)]
    if round == 0:
        thread = threading.Thread(target=scrape)  # not before the first fork: what it holds would stay held there
    for slot, (pid, said) in enumerate(workers):
        for _ in range(random.randrange(1, 40)):
            counted += len(os.read(said, 1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while said_late := os.read(said, 4096):
            counted += len(said_late)
        os.close(said)
        metrics.mark_worker_dead(metrics.slot_name(slot))
    if round == 0:
        thread.start()
    sizes.append([len(os.listdir(folder)), sum(os.stat(os.path.join(folder, name)).st_blocks for name in os.listdir(folder))])
stop.set()
thread.join()
sums = metrics.statistics("m", "1")
print(json.dumps([counted, sizes, failures, sums.requests, metrics.render(None, None, REGISTRY)[0]]))
"""


def run(code: str, folder: Path) -> str:
    """Return what `code` prints in a process of its own whose metrics are in `folder`."""
    variables = environment(PROMETHEUS_MULTIPROC_DIR=str(folder))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def samples(page: str) -> dict[str, float]:
    """Return the samples of a page by name and labels."""
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith("servekit")]
    return {name: float(value) for name, _, value in lines}


def test_counts_are_exact_and_files_bounded_however_often_workers_are_killed(tmp_path: Path) -> None:
    counted, sizes, failures, requests, page = json.loads(run(KILLED, tmp_path))
    found = samples(page)
    version = '{model="m",version="1"}'
    # A kill may come between a count and its word, and between two of the counts.
    assert counted > 500
    assert counted <= found[f"servekit_prediction_duration_seconds_count{version}"] <= counted + 60
    assert 3 * counted <= found[f"servekit_rows_total{version}"] <= 3 * (counted + 60)
    assert found[f"servekit_rows_total{version}"] / 3 % 1 == 0
    assert counted <= requests <= counted + 60
    passes = found[f"servekit_inference_duration_seconds_count{version}"]
    assert found[f"servekit_inference_duration_seconds_sum{version}"] == pytest.approx(0.5 * passes, abs=0.5 * 60)
    assert f"servekit_models_loaded{version}" not in found  # no worker lives
    assert not failures
    assert sizes[-1] == sizes[0]


def test_a_file_that_grows_keeps_what_it_has(tmp_path: Path) -> None:
    path = str(tmp_path / "counter_slot0.db")
    first = Cells(path)
    early, at = first.cell("early é")
    for number in range(3000):
        numbers, place = first.cell(json.dumps([f"name {number}", "x" * (number % 9)]))
        numbers[place] = number
    early[at] = 42
    assert os.stat(path).st_size > 2**16
    second = Cells(path)
    for number in range(3000):
        numbers, place = second.cell(json.dumps([f"name {number}", "x" * (number % 9)]))
        assert numbers[place] == number
    numbers, place = second.cell("early é")
    assert numbers[place] == 42


# No file may be longer than so many bytes: what the system says then is what it says of a full disk, in other words.
FULL = """
import logging, resource, sys
from prometheus_client import REGISTRY
from servekit import metrics
logging.basicConfig(stream=sys.stdout, format="LOG %(message)s")
metrics.use_slot(0)
early = metrics.ModelMeter("early", "1")
resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, 2**15))
for number in range(40):  # the files would have to grow
    meter = metrics.ModelMeter(f"model{number}", "1")
    meter.set_loaded()
    meter.observe(1, 0.1, [0.1])
    meter.observe_prediction(0.1, 0.1, 0.1)
early.observe(5, 0.1, [0.1])
print(metrics.render(None, None, REGISTRY)[0])
"""


def test_on_a_full_disk_counting_goes_on_with_one_sentence_in_the_log(tmp_path: Path) -> None:
    printed = run(FULL, tmp_path)
    assert [line for line in printed.splitlines() if line.startswith("LOG")] == [
        f"LOG Some of what this worker counts is missing from /metrics: File too large; make room in {tmp_path}."
    ]
    found = samples(printed)
    assert found['servekit_rows_total{model="early",version="1"}'] == 5
    assert found['servekit_rows_total{model="model0",version="1"}'] == 1
    assert 'servekit_batch_rows_count{model="model39",version="1"}' not in found


def test_a_disk_that_is_full_from_the_start_costs_the_page_only(tmp_path: Path) -> None:
    code = FULL.replace("early = metrics", "resource.setrlimit(resource.RLIMIT_FSIZE, (9, 9)); early = metrics")
    printed = run(code.replace("(2**15, 2**15)", "(9, 9)"), tmp_path)
    assert printed.count("LOG") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_a_worker_forks_does_not_write_into_its_files(tmp_path: Path) -> None:
    code = """
import os
from prometheus_client import REGISTRY
from servekit import metrics
metrics.use_slot(0)
meter = metrics.ModelMeter("m", "1")
meter.observe(1, 0.1, [0.1])
if os.fork() == 0:
    meter.observe(10, 0.1, [0.1])
    os._exit(0)
os.wait()
meter.observe(1, 0.1, [0.1])
print(metrics.render(None, None, REGISTRY)[0])
"""
    assert samples(run(code, tmp_path))['servekit_rows_total{model="m",version="1"}'] == 12
    assert len(list(tmp_path.glob("counter_*.db"))) == 2


def test_what_killed_servers_have_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("left", "new", "used"):
        lock = tmp_path / f"servekit-metrics-{name}" / "lock"
        lock.parent.mkdir()
        lock.touch()
        (lock.parent / "counter_slot0.db").touch()
        if name != "new":
            os.utime(lock, (0, 0))
    (tmp_path / "servekit-metrics-other").mkdir()
    with (tmp_path / "servekit-metrics-used" / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        remove_left_over(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"servekit-metrics-{name}" for name in ("new", "used", "other")}
