"""The life of the server: start, refusal, workers that die, reloads and stops under load. Real processes only."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from servekit.config import usable_cores
from tests import networks
from tests.server import ROOT, Server, environment, launch, running, send, wait_for
from tests.versions import edit, write_regressor

pytestmark = [pytest.mark.slow, pytest.mark.starts]

BOTH_LOADED = b'servekit_models_loaded{model="linear",version="1"} 2.0'
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture
def linear_store(tmp_path: Path) -> Path:
    """A store with the smallest real model."""
    from servekit.config import Settings
    from train.linear import LinearSettings, train

    train(LinearSettings(epochs=100), Settings(model_store=tmp_path / "model_store"))
    return tmp_path / "model_store"


@contextlib.contextmanager
def serving(tmp_path: Path, store: Path, *arguments: str, workers: int = 2, **variables: str) -> Iterator[Server]:
    """Run a server over `store`, its log in `tmp_path`."""
    variables = {"SERVEKIT_MODEL_STORE": str(store), "WEB_CONCURRENCY": str(workers)} | variables
    with running(tmp_path / "log", *arguments, **variables) as server:
        yield server


def test_the_banner_says_what_is_served_and_how_to_try_it(server: Server) -> None:
    banner = server.text().partition("is ready\n")[2].splitlines()[:4]
    assert re.fullmatch(r"  workers  2 \((servekit.worker.Worker|gthread)\), on cpu", banner.pop(2))
    assert banner == [
        f"  address  http://127.0.0.1:{server.port}",
        "  models   linear/1, mnist/1",
        f'  try      curl -X POST -d "value=5" http://127.0.0.1:{server.port}/predict',
    ]
    attempt = subprocess.run(banner[2].removeprefix("  try      "), shell=True, capture_output=True, check=True)
    assert attempt.stdout.startswith(b'{"input":5.0,"prediction":')
    assert server.text().count("is ready\n") == 1


def threads_of(pid: int) -> int:
    return int(re.search(r"Threads:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def libraries_of(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_master_has_one_thread_and_loads_no_heavy_library(server: Server) -> None:
    assert threads_of(server.process.pid) == 1
    assert not re.search("torch|numpy|onnxruntime", libraries_of(server.process.pid))


def test_a_worker_that_serves_by_onnx_never_imports_torch(server: Server, tmp_path: Path, store: Path) -> None:
    assert server.post_form("/predict", "value=5")[0] == 200
    for worker in server.workers():
        assert "onnxruntime" in libraries_of(worker) and "torch" not in libraries_of(worker)
    hook = tmp_path / "conf.py"
    hook.write_text(
        "import sys\n"
        "def worker_exit(server, worker):\n"
        "    print('modules:', [name for name in ('onnxruntime', 'torch') if name in sys.modules], flush=True)\n"
    )
    (tmp_path / "wsgi_conf.py").write_text((ROOT / "gunicorn.conf.py").read_text() + hook.read_text())
    for engine, modules in (("onnx", "['onnxruntime']"), ("torch", "['torch']")):
        arguments = ("--config", str(tmp_path / "wsgi_conf.py"))
        with serving(tmp_path, store, *arguments, workers=1, SERVEKIT_ENGINE=engine) as other:
            assert other.post_form("/predict", "value=5")[2]["prediction"] == pytest.approx(9, abs=0.1)
        assert f"modules: {modules}" in other.text()


def test_a_worker_computes_on_one_thread(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.ThreadCounter())
    with serving(tmp_path, tmp_path / "store", workers=1) as server:
        assert server.post_form("/predict", "value=5")[2]["prediction"] == 1


def test_heartbeats_live_in_memory_and_there_is_no_control_socket(tmp_path: Path, linear_store: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with serving(tmp_path, linear_store, HOME=str(home), XDG_RUNTIME_DIR=str(home)) as server:
        files = [os.readlink(link) for link in Path(f"/proc/{server.workers()[0]}/fd").iterdir()]
        assert any(file.startswith("/dev/shm/wgunicorn-") for file in files)
        assert list(home.rglob("*.ctl")) == []


def test_the_number_of_workers_follows_the_cores_and_gunicorns_own_switches(tmp_path: Path, linear_store: Path) -> None:
    variables = {"SERVEKIT_MODEL_STORE": str(linear_store)}
    with running(tmp_path / "log", **variables) as server:
        assert len(server.workers()) == usable_cores()
    arguments = {"GUNICORN_CMD_ARGS": "--workers 3 --worker-class sync --threads 1", "WEB_CONCURRENCY": "2"}
    with running(tmp_path / "log", **variables, **arguments) as server:
        assert len(server.workers()) == 3
        assert "3 (sync)" in server.text()
        assert server.post_form("/predict", "value=5")[0] == 200


ANSWERED = 'predictions_total{model="linear",outcome="ok"'


def test_a_killed_worker_is_replaced_and_taken_out_of_the_metrics(tmp_path: Path, linear_store: Path) -> None:
    metrics = tmp_path / "metrics"

    def count(sample: str) -> float:
        page = server.get("/metrics")[2].decode()
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(sample))

    def predict(times: int) -> None:
        for _ in range(times):
            assert server.post_form("/predict", "value=5")[0] == 200

    with serving(tmp_path, linear_store, PROMETHEUS_MULTIPROC_DIR=str(metrics)) as server:
        predict(20)
        files = {file.name for file in metrics.iterdir()}
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: "A new worker is ready: linear/1" in server.text())
        after = server.workers()
        assert len(after) == 2 and before[0] not in after and before[1] in after
        predict(20)
        os.kill(before[1], signal.SIGKILL)
        assert wait_for(lambda: server.text().count("A new worker is ready: linear/1") == 2)
        assert wait_for(lambda: len(server.workers()) == 2)
        predict(20)
        assert wait_for(lambda: BOTH_LOADED in server.get("/metrics")[2])
        assert {file.stem.rpartition("_")[2] for file in metrics.glob("gauge_*.db")} == {"slot0", "slot1"}
        # Nothing is lost with those who have counted it, and those who come after them count in the same files.
        for counter in ('requests_total{method="POST"', 'rows_total{model="linear"', 'batch_rows_sum{model="linear"', ANSWERED):
            assert count(f"servekit_{counter}") == 60, counter
        assert count('servekit_worker_restarts_total{reason="killed"}') == count("servekit_worker_restarts_total") == 2
        assert count("servekit_workers") == 2
        assert {file.name for file in metrics.iterdir()} == files
        server.process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: server.text().count("A new worker is ready: linear/1") == 4)
        assert wait_for(lambda: len(server.workers()) == 2)
        assert count("servekit_worker_restarts_total") == 2  # a reload is none
        assert count(f"servekit_{ANSWERED}") == 60


class Load:
    """Clients that send one request after the other, on kept-alive connections, and count what happened.

    While the server `stops`, the first request on a connection may still lie in the accept queue, taken by no worker;
    all others have been accepted. While it goes on, every request counts.
    """

    def __init__(self, server: Server, clients: int, stops: bool = False) -> None:
        self.answered = 0
        self.lost: list[str] = []
        self._stops = stops
        self._server = server
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self) -> None:
        while not self._stop.is_set():
            connection = self._server.connect()
            try:
                connection.connect()
            except OSError:
                return  # the server takes no connections any more: nothing was accepted
            with contextlib.closing(connection):
                self._requests_on(connection)

    def _requests_on(self, connection: http.client.HTTPConnection) -> None:
        first = True
        while not self._stop.is_set():
            try:
                status, headers, answer = send(connection, "POST", "/predict", "value=5", FORM)
            except (OSError, http.client.HTTPException) as error:
                if not (first and self._stops):
                    self.lost.append(repr(error))
                return
            first = False
            if (status, answer["input"]) != (200, 5.0):
                self.lost.append(f"{status} {answer}")
            self.answered += 1
            if headers.get("Connection", "").lower() == "close":
                return


def test_a_reload_under_load_loses_no_request(tmp_path: Path, linear_store: Path) -> None:
    with serving(tmp_path, linear_store) as server:
        before = server.workers()
        with Load(server, clients=8) as load:
            time.sleep(0.5)
            server.process.send_signal(signal.SIGHUP)
            assert wait_for(lambda: len(server.workers()) == 2 and not set(before) & set(server.workers()))
            answered = load.answered
            assert wait_for(lambda: load.answered > answered + 100)
        assert load.lost == []
        assert not set(before) & set(server.workers())
        assert wait_for(lambda: BOTH_LOADED in server.get("/metrics")[2])


def test_a_reload_that_could_not_serve_is_refused_and_changes_nothing(tmp_path: Path, linear_store: Path) -> None:
    with serving(tmp_path, linear_store) as server:
        before = server.workers()
        (linear_store / "linear" / "1" / "model.onnx").write_bytes(b"damaged while serving")
        with Load(server, clients=2) as load:
            server.process.send_signal(signal.SIGHUP)
            refusal = "Not reloaded, the old workers go on: servekit cannot start: "
            assert wait_for(lambda: refusal in server.text())
        assert load.lost == []
        assert server.workers() == before
        assert server.post_form("/predict", "value=5")[0] == 200


def test_a_stop_under_load_answers_all_that_was_accepted(tmp_path: Path, linear_store: Path) -> None:
    with serving(tmp_path, linear_store) as server:
        with Load(server, clients=8, stops=True) as load:
            assert wait_for(lambda: load.answered > 100)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(timeout=30) == 0
        assert load.lost == []
        assert "Traceback" not in server.text()


def test_a_request_that_runs_when_the_server_stops_is_finished(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_regressor(store, networks.Slow())
    with serving(tmp_path, store, workers=1) as server:
        replies: list[int] = []
        client = threading.Thread(target=lambda: replies.append(server.post_form("/predict", "value=5")[0]))
        client.start()
        assert wait_for(lambda: networks.IN_PASS in server.text())
        server.process.send_signal(signal.SIGTERM)
        client.join()
        assert replies == [200]
        assert server.process.wait(timeout=30) == 0


def test_the_metrics_folder_is_emptied_at_start_and_removed_at_the_end(tmp_path: Path, linear_store: Path) -> None:
    given = tmp_path / "metrics"
    given.mkdir()
    (given / "counter_1.db").write_bytes(b"of an earlier run")
    (given / "notes.txt").write_text("not ours")
    with serving(tmp_path, linear_store, PROMETHEUS_MULTIPROC_DIR=str(given)) as server:
        assert b"servekit_models_loaded" in server.get("/metrics")[2]
        assert not (given / "counter_1.db").exists() and (given / "notes.txt").exists()
    with serving(tmp_path, linear_store) as server:
        assert len(metrics_folders(server)) == 1
    assert metrics_folders(server) == []


def metrics_folders(server: Server) -> list[Path]:
    """Return the folders in memory that the master of `server` has made."""
    return list(Path("/dev/shm").glob(f"servekit-metrics-{server.process.pid}-*"))


def refuses(tmp_path: Path, store: Path, *words: str, **variables: str) -> None:
    """Assert that the server ends by itself, not with 0, after one sentence that holds all of `words`."""
    server = launch(tmp_path / "log", SERVEKIT_MODEL_STORE=str(store), WEB_CONCURRENCY="3", **variables)
    assert server.process.wait(timeout=60) != 0
    sentences = [line for line in server.text().splitlines() if "servekit cannot start: " in line]
    assert len(sentences) == 1, server.text()
    assert all(word in sentences[0] for word in words), sentences[0]
    assert "Traceback" not in server.text()


def test_a_damaged_model_is_refused_in_one_sentence(tmp_path: Path, linear_store: Path) -> None:
    folder = linear_store / "linear" / "1"
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[:1000])
    refuses(tmp_path, linear_store, f"{folder}/model.onnx", "SHA-256", "train the model again")


def test_a_model_that_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, linear_store: Path) -> None:
    folder = linear_store / "linear" / "1"
    edit(folder, network="models.mnist:MnistCNN")
    sentence = f"{folder}/model.pth does not fit the network models.mnist:MnistCNN"
    refuses(tmp_path, linear_store, sentence, SERVEKIT_ENGINE="torch")


def test_an_empty_store_is_refused_in_one_sentence(tmp_path: Path) -> None:
    refuses(tmp_path, tmp_path / "nowhere", "no model in", "make train")


def test_a_worker_that_cannot_load_later_does_not_stop_the_others(tmp_path: Path, linear_store: Path) -> None:
    folder = linear_store / "linear" / "1"
    content = (folder / "model.onnx").read_bytes()
    with serving(tmp_path, linear_store) as server:
        (folder / "model.onnx").write_bytes(b"damaged while serving")
        os.kill(server.workers()[0], signal.SIGKILL)
        assert wait_for(lambda: "A new worker cannot serve: " in server.text())
        assert server.post_form("/predict", "value=5")[0] == 200
        (folder / "model.onnx").write_bytes(content)
        assert wait_for(lambda: "A new worker is ready" in server.text())
        assert len(server.workers()) == 2


@pytest.mark.parametrize(
    ("variables", "arguments", "words"),
    [
        ({"SERVEKIT_MODLE_STORE": "x"}, [], "Unknown setting SERVEKIT_MODLE_STORE; did you mean SERVEKIT_MODEL_STORE?"),
        ({"SERVEKIT_DEADLINE_SECONDS": "soon"}, [], "SERVEKIT_DEADLINE_SECONDS must be a number."),
        ({}, ["--preload"], "preload_app cannot be used"),
        ({}, ["--workers", "0"], "A server needs at least one worker"),
        ({"PROMETHEUS_MULTIPROC_DIR": "/dev/null"}, [], "PROMETHEUS_MULTIPROC_DIR=/dev/null cannot be used as a folder"),
    ],
)
def test_an_impossible_setting_is_refused(
    tmp_path: Path, linear_store: Path, variables: dict[str, str], arguments: list[str], words: str
) -> None:
    server = launch(tmp_path / "log", *arguments, SERVEKIT_MODEL_STORE=str(linear_store), **variables)
    assert server.process.wait(timeout=60) == 1
    assert words in server.text()
    assert "Traceback" not in server.text()


def test_a_server_that_cannot_listen_leaves_nothing_behind(tmp_path: Path, linear_store: Path, server: Server) -> None:
    address = f"127.0.0.1:{server.port}"
    second = launch(tmp_path / "log", "--bind", address, SERVEKIT_MODEL_STORE=str(linear_store))
    assert second.process.wait(timeout=60) == 1
    assert metrics_folders(second) == []


@pytest.mark.parametrize("address", ["[::1]:0", "unix:{folder}/socket"])
def test_an_address_of_another_family_is_announced_with_a_line_that_works(
    tmp_path: Path, linear_store: Path, address: str
) -> None:
    address = address.format(folder=tmp_path)
    server = launch(tmp_path / "log", "--bind", address, SERVEKIT_MODEL_STORE=str(linear_store), WEB_CONCURRENCY="1")
    try:
        assert wait_for(lambda: "is ready" in server.text() and "  try  " in server.text(), server.process)
        line = re.search(r"  try      (.*)", server.text())[1]
        attempt = subprocess.run(line, shell=True, capture_output=True, check=True, timeout=60)
        assert attempt.stdout.startswith(b'{"input":5.0'), line
    finally:
        server.process.terminate()
        server.process.wait(timeout=40)


def test_the_development_server_works_too(tmp_path: Path, linear_store: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "run", "--port", "0"]
    log = tmp_path / "log"
    variables = environment(SERVEKIT_MODEL_STORE=str(linear_store))
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
    server = Server(process, log)
    try:
        found = wait_for(lambda: re.search(r"Running on http://127\.0\.0\.1:(\d+)", server.text()), process)
        server.port = int(found[1])
        assert server.post_form("/predict", "value=5")[0] == 200
        assert b'servekit_models_loaded{model="linear",version="1"} 1.0' in server.get("/metrics")[2]
        assert b"servekit_rows_total" in server.get("/metrics?name[]=servekit_rows_total")[2]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=40)


def test_the_development_server_refuses_in_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "wsgi", "run"]
    variables = environment(SERVEKIT_MODEL_STORE=str(tmp_path))
    ended = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith("servekit cannot start: There is no model in")
    assert "Traceback" not in ended.stderr
