"""Models that change while they are served, by real servers with several workers: what clients see, and what remains."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import live, swaps
from bench.live import Live, Watch
from servekit.state import read_desired
from tests import networks
from tests.server import ROOT, Server, environment, running, wait_for
from tests.versions import edit, write_regressor

pytestmark = [pytest.mark.slow, pytest.mark.starts]

SOON = 10.0  # for what must not take a deadline
FRESH = 20  # connections, which land on different workers

# The first process to load it goes on at once, or not: the others do the contrary.
SLOW = """
import os, pathlib, time

class Slow:
    def initialize(self, context):
        folder = pathlib.Path({folder!r})
        with (folder / "loads").open("a") as loads:
            loads.write(str(os.getpid()) + "\\n")
        number = len((folder / "loads").read_text().split())
        until = time.monotonic() + 60
        while number in {slow} and not (folder / "go").exists() and time.monotonic() < until:
            time.sleep(0.01)

    def handle(self, data, context):
        return ["slow" for _ in data]
"""


# Folders that appear in a model store.


@contextlib.contextmanager
def polling(tmp_path: Path, *arguments: str) -> Iterator[Server]:
    """Serve the store in `tmp_path` by two workers that look for new versions five times a second."""
    variables = {"SERVEKIT_MODEL_STORE": str(tmp_path / "store"), "WEB_CONCURRENCY": "2", "SERVEKIT_POLL_SECONDS": "0.2"}
    with running(tmp_path / "log", *arguments, **variables) as server:
        yield server


def loaded(server: Server, version: int) -> float:
    """Return how many workers hold a version, as the metrics say."""
    found = re.search(rb'servekit_models_loaded\{model="linear",version="%d"\} (\S+)' % version, server.get("/metrics")[2])
    return float(found[1]) if found else -1.0


def prediction(server: Server) -> float:
    status, _, answer = server.post_form("/predict", "value=5")
    assert status == 200, answer
    return float(answer["prediction"])


def asking(server: Server, answers: "Counter[Any]", stop: threading.Event) -> None:
    """Ask for a prediction again and again."""
    while not stop.is_set():
        status, _, answer = server.post_form("/predict", "value=5")
        answers[answer["prediction"] if status == 200 else status] += 1


def test_a_version_that_appears_is_served_and_the_old_one_goes(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    answers: Counter[Any] = Counter()
    stop = threading.Event()
    with polling(tmp_path) as server:
        clients = [threading.Thread(target=asking, args=(server, answers, stop)) for _ in range(4)]
        for client in clients:
            client.start()
        time.sleep(0.3)
        write_regressor(tmp_path / "store", networks.ThreadCounter())
        (tmp_path / "store" / "linear" / "2").rename(tmp_path / "store" / "linear" / "30")
        assert wait_for(lambda: loaded(server, 30) == 2.0, seconds=SOON)
        assert loaded(server, 1) == 0.0
        after = Counter(answers)
        assert wait_for(lambda: answers[1.0] > after[1.0] + 20, seconds=SOON)
        stop.set()
        for client in clients:
            client.join()
        assert set(answers) == {10.0, 1.0} and answers[10.0] == after[10.0]
        assert wait_for(lambda: "Serving linear/30 now" in server.text(), seconds=SOON)


def damage_weights(folder: Path) -> None:
    (folder / "model.pth").write_bytes(b"damaged")


def damage_description(folder: Path) -> None:
    (folder / "model.json").write_text("{")


def damage_network(folder: Path) -> None:
    edit(folder, network="tests.networks:NoSuchNetwork")


def test_folders_that_cannot_be_served_are_refused_with_the_reason_until_they_are_whole(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    reasons = {
        damage_description: "model.json cannot be used",
        damage_network: "NoSuchNetwork",
        damage_weights: "SHA-256 differs",
    }
    with polling(tmp_path) as server:
        for version, (damage, reason) in enumerate(reasons.items(), start=2):
            written = write_regressor(tmp_path / "written", networks.Infinite())
            damage(written)
            written.rename(tmp_path / "store" / "linear" / str(version))
            line = re.compile(rf"ERROR .*linear/{version} is not served, what was served goes on: .*{re.escape(reason)}")
            assert wait_for(lambda line=line: line.search(server.text()), seconds=SOON), server.text()
            assert prediction(server) == 10.0
            failures = b'servekit_model_loads_total{model="linear",result="failed",version="%d"} 1.0' % version
            assert failures in server.get("/metrics")[2]
        table = subprocess.run(
            [sys.executable, "-m", "servekit", "models", "--model-store", "store"],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        assert re.search(r"linear +1 +yes +ready", table)
        assert re.search(r"linear +4 +refused .*SHA-256 differs", table), table
        assert server.text().count("linear/2 is not served") == 1  # it is not tried again and again
        complete(server, tmp_path / "store" / "linear" / "4", write_regressor(tmp_path / "written", networks.ThreadCounter()))


def complete(server: Server, folder: Path, whole: Path) -> None:
    """Let `folder` become what `whole` is, file by file, with a pause; assert that it is served then, and not before."""
    refusals = server.text().count("linear/4 is not served")
    (folder / "model.json").write_bytes((whole / "model.json").read_bytes())
    assert wait_for(lambda: server.text().count("linear/4 is not served") > refusals, seconds=SOON)
    assert prediction(server) == 10.0
    (folder / "model.pth").write_bytes((whole / "model.pth").read_bytes())
    assert wait_for(lambda: loaded(server, 4) == 2.0, seconds=SOON), server.text()
    assert loaded(server, 1) == 0.0 and prediction(server) == 1.0


def test_a_reload_takes_the_newest_versions(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    variables = {"SERVEKIT_MODEL_STORE": str(tmp_path / "store"), "WEB_CONCURRENCY": "2"}
    with running(tmp_path / "log", **variables) as server:
        write_regressor(tmp_path / "store", networks.Infinite())
        server.process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: server.text().count("A new worker is ready: linear/2") == 2)
        assert wait_for(lambda: loaded(server, 2) == 2.0 and len(server.workers()) == 2)


# Archives that are registered, swapped, scaled and removed.


@contextlib.contextmanager
def versions(tmp_path: Path, workers: int = 2, registered: bool = True, **variables: str) -> Iterator[Live]:
    """Serve `v` 1.0, the default, and 2.0."""
    files = [live.write_versioned(tmp_path / "store", "v", version, 0.002) for version in ("1.0", "2.0", "3.0")]
    with live.serving(tmp_path, files[0], workers, **variables) as server:
        if registered:
            swaps.require(server, "POST", f"/models?url={files[1]}&initial_workers={workers}")
        yield server


def said_by(server: Live, path: str = "v") -> set[str]:
    """Return what predictions over fresh connections say: versions, or statuses that are not 200."""
    answers = [server.predict(path) for _ in range(FRESH)]
    return {answer["first"] if status == 200 else str(status) for status, answer in answers}


def pids_of(server: Live, name: str = "v") -> set[int]:
    """Return the workers that the description of a model names."""
    return {worker["pid"] for worker in server.manage("GET", f"/models/{name}")[1][0]["workers"]}


def unpacked(tmp_path: Path) -> int:
    """Return how many unpacked archives the server over `tmp_path` keeps."""
    return len(list((tmp_path / "store" / ".servekit" / "archives").iterdir()))


def test_swaps_under_load_fail_no_request_and_mix_no_answer(tmp_path: Path) -> None:
    with versions(tmp_path) as server:
        seen = swaps.swap(server, 10, pause=0.1)
        assert seen.failures == [] and seen.mixed == []
        assert len(seen.seconds) > 100
        assert swaps.disagreements(server) == []
        assert unpacked(tmp_path) == 2


def test_many_clients_that_change_and_ask_at_once_are_all_answered_and_the_workers_agree(tmp_path: Path) -> None:
    with versions(tmp_path, SERVEKIT_MAX_WORKERS="3") as server:
        tally = swaps.storm(server, 3.0, clients=8)
        assert swaps.faults(tally) == [], tally
        assert swaps.disagreements(server) == []
        assert "Traceback" not in server.log.read_text()


def test_who_asks_after_a_change_meets_only_what_it_made(tmp_path: Path) -> None:
    with versions(tmp_path, workers=3, registered=False) as server:
        assert said_by(server) == {"1.0"} and said_by(server, "v/2.0") == {"404"}
        swaps.require(server, "POST", "/models?url=v-2.0.mar&initial_workers=3")
        assert said_by(server, "v/2.0") == {"2.0"}
        for version in ("2.0", "1.0", "2.0"):
            swaps.require(server, "PUT", f"/models/v/{version}/set-default")
            assert said_by(server) == {version}
        swaps.require(server, "PUT", "/models/v/2.0?min_worker=0&synchronous=true")
        assert said_by(server) == {"503"} and said_by(server, "v/1.0") == {"1.0"}
        swaps.require(server, "PUT", "/models/v/2.0?min_worker=1&synchronous=true")
        assert said_by(server) == {"2.0"}
        swaps.require(server, "DELETE", "/models/v/1.0")
        assert said_by(server, "v/1.0") == {"404"}
        assert swaps.disagreements(server) == []


def test_workers_come_and_go_with_what_is_asked_for_and_no_request_fails(tmp_path: Path) -> None:
    with versions(tmp_path, workers=1, registered=False, SERVEKIT_MAX_WORKERS="3") as server:
        with Watch(server.inference, "/predictions/v", 100, 6, live.is_whole) as seen:
            for asked, granted in ((3, 3), (2, 2), (9, 3), (1, 1)):
                answer = swaps.require(server, "PUT", f"/models/v?min_worker={asked}&max_worker=9&synchronous=true")
                assert answer["status"] == f"Workers scaled to {granted} for model: v"
                assert len(pids_of(server)) == granted
                assert wait_for(lambda n=granted: len(server.workers()) == n, seconds=SOON)
                assert pids_of(server) == set(server.workers())
            answer = swaps.require(server, "POST", "/models?url=v-2.0.mar&initial_workers=9")
            assert answer["status"] == 'Model "v" Version: 2.0 registered with 3 initial workers'
            swaps.require(server, "DELETE", "/models/v/2.0")
            assert wait_for(lambda: len(server.workers()) == 1, seconds=SOON)
        assert seen.failures == [] and seen.mixed == [] and len(seen.seconds) > 50


def test_a_reload_and_workers_that_end_keep_what_was_registered(tmp_path: Path) -> None:
    arguments = {"GUNICORN_CMD_ARGS": "--max-requests 60"}
    with versions(tmp_path, workers=1, **arguments) as server:
        swaps.require(server, "PUT", "/models/v/2.0/set-default")
        swaps.require(server, "PUT", "/models/v/2.0?min_worker=2&synchronous=true")
        first = server.workers()
        with Watch(server.inference, "/predictions/v", 100, 4, lambda answer: answer["first"] == "2.0") as seen:
            assert wait_for(lambda: not set(first) & set(server.workers()), seconds=SOON)
        assert seen.failures == [] and seen.mixed == []
        os.kill(server.workers()[0], signal.SIGKILL)
        assert wait_for(lambda: len(server.workers()) == 2, seconds=SOON)
        before = server.workers()
        server.process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: not set(before) & set(server.workers()) and len(server.workers()) == 2, seconds=SOON)
        assert said_by(server) == {"2.0"} and said_by(server, "v/1.0") == {"1.0"}
        swaps.require(server, "DELETE", "/models/v/1.0")
        assert swaps.disagreements(server) == []


def test_changes_go_on_whatever_number_of_workers_signals_and_settings_ask_for(tmp_path: Path) -> None:
    with live.serving(tmp_path, "none", workers=3, WEB_CONCURRENCY="3") as server:
        live.write_versioned(tmp_path / "store", "v", "1.0")
        began = time.monotonic()
        swaps.require(server, "POST", "/models?url=v-1.0.mar&initial_workers=1")
        server.process.send_signal(signal.SIGTTIN)
        assert wait_for(lambda: len(server.workers()) == 2, seconds=SOON)
        swaps.require(server, "PUT", "/models/v?min_worker=0&synchronous=true")
        swaps.require(server, "PUT", "/models/v?min_worker=1&synchronous=true")
        assert said_by(server) == {"1.0"}
        swaps.require(server, "PUT", "/models/v?min_worker=3&synchronous=true")
        assert len(server.workers()) == 3
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("worker_class", ["gthread", "sync"])
def test_other_worker_classes_follow_changes_too(tmp_path: Path, worker_class: str) -> None:
    with versions(tmp_path, GUNICORN_CMD_ARGS=f"--worker-class {worker_class}") as server:
        began = time.monotonic()
        for workers in (3, 1):
            swaps.require(server, "PUT", f"/models/v/2.0?min_worker={workers}&synchronous=true")
            swaps.require(server, "PUT", f"/models/v/1.0?min_worker={workers}&synchronous=true")
        swaps.require(server, "PUT", "/models/v/2.0/set-default")
        assert said_by(server) == {"2.0"}
        swaps.require(server, "DELETE", "/models/v/1.0")
        assert time.monotonic() - began < SOON
        assert swaps.disagreements(server) == []


# Processes that are killed in the middle of a change.


def write_slow(tmp_path: Path, slow: tuple[int, ...]) -> Callable[[], list[int]]:
    """Write an archive whose loads numbered in `slow` wait for a file `go`; return what tells which processes load it."""
    files = {"slow.py": SLOW.format(folder=str(tmp_path), slow=slow).encode()}
    model = {"modelName": "slow", "modelVersion": "1.0", "handler": "slow.py"}
    live.write_archive(tmp_path / "store", "slow.mar", model, files)
    loads = tmp_path / "loads"
    return lambda: [int(line) for line in loads.read_text().split()] if loads.exists() else []


class Asked:
    """A change that a client asks for in a thread: its answer, or that the connection was closed."""

    def __init__(self, server: Live, method: str, path: str) -> None:
        self.answer: Any = None
        self._ask = (server, method, path)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait(self) -> Any:
        """Return the answer; fail if there is none soon."""
        self._thread.join(SOON)
        assert not self._thread.is_alive()
        return self.answer

    def _run(self) -> None:
        server, method, path = self._ask
        try:
            self.answer = server.manage(method, path)
        except (OSError, ValueError) as error:
            self.answer = error


def test_a_worker_that_is_killed_while_it_loads_changes_nothing(tmp_path: Path) -> None:
    loading = write_slow(tmp_path, slow=(1,))
    with versions(tmp_path) as server:
        asked = Asked(server, "POST", "/models?url=slow.mar&initial_workers=2")
        assert wait_for(loading, seconds=SOON)
        os.kill(loading()[0], signal.SIGKILL)
        assert asked.wait()[0] == 500  # TorchServe's answer for a worker that has died
        assert server.manage("GET", "/models/slow")[0] == 404
        assert wait_for(lambda: len(server.workers()) == 2 and unpacked(tmp_path) == 2, seconds=SOON)
        assert swaps.disagreements(server) == []
        swaps.require(server, "POST", "/models?url=slow.mar&initial_workers=2")
        assert server.predict("slow") == (200, "slow")


def test_a_worker_that_is_killed_while_it_waits_for_others_leaves_the_change_whole(tmp_path: Path) -> None:
    loading = write_slow(tmp_path, slow=(2,))
    with versions(tmp_path) as server:
        asked = Asked(server, "POST", "/models?url=slow.mar&initial_workers=2")
        assert wait_for(lambda: len(loading()) == 2, seconds=SOON)
        os.kill(loading()[0], signal.SIGKILL)
        assert asked.wait()[0] == 500  # TorchServe's answer for a worker that has died
        (tmp_path / "go").touch()
        assert wait_for(lambda: len(server.workers()) == 2, seconds=SOON)
        assert swaps.disagreements(server) == []
        assert {server.predict("slow") for _ in range(FRESH)} == {(200, "slow")}
        swaps.require(server, "DELETE", "/models/slow")
        assert swaps.disagreements(server) == []


def test_a_worker_that_is_killed_while_others_wait_for_it_is_replaced_and_they_are_answered(tmp_path: Path) -> None:
    loading = write_slow(tmp_path, slow=(2,))
    with versions(tmp_path) as server:
        asked = Asked(server, "POST", "/models?url=slow.mar&initial_workers=2")
        assert wait_for(lambda: len(loading()) == 2, seconds=SOON)
        os.kill(loading()[1], signal.SIGKILL)
        assert asked.wait()[0] == 200
        assert swaps.disagreements(server) == []
        assert {server.predict("slow") for _ in range(FRESH)} == {(200, "slow")}


def test_a_change_goes_on_when_its_client_does_not_wait_and_many_at_once_are_answered(tmp_path: Path) -> None:
    loading = write_slow(tmp_path, slow=(1,))
    with versions(tmp_path) as server:
        connection = http.client.HTTPConnection(live.HOST, server.management, timeout=60)
        connection.request("POST", "/models?url=slow.mar&initial_workers=2")
        assert wait_for(loading, seconds=SOON)
        connection.close()
        paths = [f"/models/v/{version}.0/set-default" for version in (1, 2)] * 75
        changes = [Asked(server, "PUT", path) for path in paths]
        assert server.predict("v") == (200, {"first": "1.0", "second": "1.0"})
        (tmp_path / "go").touch()
        statuses = {change.wait()[0] for change in changes}
        assert statuses in ({200}, {200, 503}), statuses
        assert server.predict("slow") == (200, "slow")
        assert swaps.disagreements(server) == []


def test_workers_end_with_a_master_that_is_killed_and_the_next_start_is_clean(tmp_path: Path) -> None:
    with versions(tmp_path) as server:
        workers = server.workers()
        server.process.kill()
        server.process.wait(timeout=SOON)
        assert wait_for(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers), seconds=SOON)
    with live.serving(tmp_path, "v-1.0.mar", workers=2) as server:
        assert [entry.key for entry in read_desired(tmp_path / "store" / ".servekit").entries()] == [("v", "1.0")]
        assert said_by(server) == {"1.0"} and unpacked(tmp_path) == 1


def test_a_batch_that_never_comes_back_is_told_of_in_the_description_of_its_model(tmp_path: Path) -> None:
    code = "import time\n\ndef handle(data, context):\n    while data:\n        time.sleep(0.1)\n"
    model = {"modelName": "stuck", "handler": "handler.py"}
    archive = live.write_archive(tmp_path / "store", "stuck.mar", model, {"handler.py": code.encode()})
    with live.serving(tmp_path) as server:
        before = server.workers()
        swaps.require(server, "POST", f"/models?url={archive}&initial_workers=1&response_timeout=1")
        status, answer = server.predict("stuck")
        assert (status, answer["message"]) == (500, "Worker died.")
        assert wait_for(lambda: len(server.workers()) == 1 and server.workers() != before, seconds=SOON)
        (description,) = swaps.require(server, "GET", "/models/stuck")
        assert "handler.py" in description["lastError"] and "Nothing has come back" in description["lastError"]
