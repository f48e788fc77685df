"""Short twins of the bench's faults that end, stop and replace workers; see bench/faults.

Others stand in test_worker_life, test_gunicorn, test_live and test_limits.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter
from torch import nn

from bench.faults import ledger
from servekit.app import create_app
from servekit.config import Settings
from servekit.crew import follow_number, hand_over
from servekit.engines.torch import TorchEngine
from servekit.errors import ModelLoadError, StartupError
from servekit.ext import repository_of
from servekit.gateway import refusal
from servekit.guardian import AN_ANSWER, Guardian
from servekit.spec import read_spec
from tests.networks import Double
from tests.raw import Client, PlainServer, plain
from tests.server import ROOT, environment, wait_for
from tests.test_bench import answering
from tests.versions import write_regressor

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


# What answers for a dead worker.


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[PlainServer]:
    """Two workers, of which requests end one after the other."""
    with plain(tmp_path, "--workers", "2", "--timeout", "2") as server:
        yield server


def replaced(server: PlainServer, before: set[int]) -> bool:
    """Wait until as many workers run as before, not all of them the same."""
    return bool(wait_for(lambda: len(server.workers()) == len(before) and set(server.workers()) != before, seconds=10))


@pytest.mark.slow
def test_whoever_a_worker_holds_when_it_dies_is_answered(dying: PlainServer) -> None:
    for how, status in ((b"crash", 503), (b"kill", 503), (b"gil", 504)):
        before = set(dying.workers())
        answer = dying.ask(GET % (b"die?" + how))
        assert answer.status == status, how
        assert answer.headers["connection"] == "close"
        assert answer.headers.get("retry-after") == ("1" if status == 503 else None)
        assert list(answer.json()) == ["error"]
        assert replaced(dying, before)
        assert dying.ask(GET % b"").status == 200
    assert "Segmentation fault" in dying.text() and dying.text().count(" in die") >= 2  # where it was
    assert "requests that it held were answered 503" in dying.text()


@pytest.mark.slow
def test_who_has_read_a_long_answer_slowly_and_asked_again_is_answered_when_the_worker_dies(tmp_path: Path) -> None:
    with plain(tmp_path) as server, server.client(receive_buffer=4096) as reader, server.client() as other:
        reader.send(GET % b"big?mb=3")
        time.sleep(0.2)  # it fills the socket, and the rest waits in the worker
        assert len(reader.answer().body) == 3 * 2**20
        other.send(GET % b"busy?ms=5000")
        time.sleep(0.2)  # the worker reads nothing now
        reader.send(GET % b"echo")
        os.kill(server.workers()[0], signal.SIGKILL)
        assert [answer.status for answer in reader.last_answers()] == [503]


GUARDED = """
import os, signal, socket, sys
from servekit.gateway import refusal
from servekit.guardian import *
listener = socket.create_server(("127.0.0.1", 0))
guardian = Guardian()
guardian.start([listener], 5.0) or sys.exit("no guardian")
guardian.learn([listener], refusal)
print(listener.getsockname()[1], flush=True)
held = []
for what in (AN_ANSWER, THE_REST, NOTHING, NOTHING):
    sock = listener.accept()[0]
    held.append(sock)
    guardian.note(sock.fileno(), what)
    sock.recv(1) if what != NOTHING else None
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_connection_of_a_dead_worker_gets_what_can_honestly_be_said() -> None:
    command = [sys.executable, "-c", GUARDED]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes) as worker:
        assert worker.stdin and worker.stdout
        address = ("127.0.0.1", int(worker.stdout.readline()))
        clients = []
        for sends in (b"1", b"2", b"3", b""):
            clients.append(Client(address))
            clients[-1].send(sends)
        worker.stdin.write("die\n")
        worker.stdin.flush()
        waiting, amid_its_answer, not_read, idle = [client.rest() for client in clients]
        for client in clients:
            client.socket.close()
    for answered in (waiting, not_read):
        assert answered.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 1\r\n" in answered
        assert answered.endswith(b'{"error": "The worker that had this request has ended; try again."}')
    assert (amid_its_answer, idle) == (b"", b"")


def test_a_guardian_that_was_not_started_takes_notes_and_does_nothing() -> None:
    guardian = Guardian()
    guardian.begin(time.monotonic())
    for descriptor in (-1, 0, 5, 10**6):
        guardian.note(descriptor, AN_ANSWER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        guardian.learn([listener], refusal)


# A reload.


class FakeArbiter:
    """Gunicorn's master without processes: its own rules of who is started and stopped, for workers that are numbers."""

    manage_workers = Arbiter.manage_workers

    def __init__(self, workers: int) -> None:
        self.num_workers, self.worker_age = workers, 0
        self.WORKERS: dict[int, Any] = {}
        self.stopped: list[int] = []
        self.fails = False
        self.is_readable = True
        self.cfg = SimpleNamespace(graceful_timeout=25, workers=workers, enable_backlog_metric=False, env={}, chdir=".")
        self.cfg.set = lambda name, value: setattr(self.cfg, name, value)
        self.app = SimpleNamespace(cfg=self.cfg, reload=self.read)
        self._last_logged_active_worker_count = None
        self.log = SimpleNamespace(debug=lambda *_, **__: None)

    def spawn_worker(self) -> None:
        if self.fails:
            raise OSError(12, "Cannot allocate memory")
        self.worker_age += 1
        self.WORKERS[self.worker_age] = SimpleNamespace(age=self.worker_age)

    def spawn_workers(self) -> None:
        for _ in range(self.num_workers - len(self.WORKERS)):
            self.spawn_worker()

    def kill_worker(self, pid: int, number: int) -> None:
        assert number == signal.SIGTERM
        self.stopped.append(pid)

    @property
    def staying(self) -> list[int]:
        return sorted(set(self.WORKERS) - set(self.stopped))

    def read(self) -> None:
        self.app.cfg = SimpleNamespace()
        if not self.is_readable:
            sys.exit(1)

    def reload(self) -> None:
        last = self.worker_age
        for _ in range(self.cfg.workers):
            self.spawn_worker()
        self.manage_workers()
        deadline = time.monotonic() + self.cfg.graceful_timeout
        while time.monotonic() < deadline and min(self.WORKERS) <= last:
            time.sleep(0.01)


class FakeState:
    """Which of the workers are ready; those that are told to stop have left, and never end."""

    def __init__(self, server: FakeArbiter) -> None:
        self.server = server
        self.workers = server.num_workers
        self.known: set[int] = set()
        self.slots = 9
        self.is_heard = True

    def note_extra(self, workers: int) -> None:
        assert workers == 0

    def ready(self) -> set[int]:
        return self.known

    def leaving(self) -> set[int]:
        return set(self.server.stopped) if self.is_heard else set()

    def room(self) -> int:
        return self.slots


def master(workers: int, take: Callable[[Any], object] = lambda cfg: None) -> tuple[Any, FakeState]:
    """Return a master whose workers are all ready."""
    server: Any = FakeArbiter(workers)
    state: Any = FakeState(server)
    follow_number(server, state)
    hand_over(server, state, take)
    server.manage_workers()
    state.known = set(server.WORKERS)
    return server, state


def test_a_reload_stops_an_old_worker_only_when_a_new_one_is_ready() -> None:
    server, state = master(3)
    server.reload()
    server.manage_workers()
    for number in (4, 5, 6):
        assert server.staying == list(range(number - 3, number + 1))  # three, and one that starts
        server.manage_workers()
        assert number + 1 not in server.WORKERS
        state.known = state.known | {number}
        server.manage_workers()
    assert (server.staying, server.stopped) == ([4, 5, 6], [1, 2, 3])
    server.manage_workers()
    assert (server.staying, server.cfg.graceful_timeout) == ([4, 5, 6], 25)


def test_a_configuration_that_cannot_be_read_ends_nobody(caplog: pytest.LogCaptureFixture) -> None:
    server, _ = master(2)
    server.is_readable = False
    server.reload()
    server.manage_workers()
    assert (server.staying, server.stopped, server.app.cfg) == ([1, 2], [], server.cfg)
    assert "Not reloaded, the old workers go on: Gunicorn's configuration cannot be read." in caplog.text
    server.is_readable = True
    server.reload()
    server.manage_workers()
    assert server.staying == [1, 2, 3]


def test_a_reload_starts_no_worker_for_one_that_has_not_heard_yet_that_it_is_to_stop() -> None:
    server, state = master(2)
    server.reload()
    for _ in range(3):
        state.is_heard = False
        server.manage_workers()
        state.is_heard = True
        server.manage_workers()
        state.known = set(server.WORKERS)
    assert (sorted(server.WORKERS), server.staying) == ([1, 2, 3, 4], [3, 4])


def test_many_workers_are_replaced_a_quarter_at_a_time_and_never_more_than_there_is_room_for() -> None:
    server, state = master(8)
    server.reload()
    server.manage_workers()
    assert server.staying == list(range(1, 11))
    state.slots = 0
    state.known = set(server.WORKERS)
    server.manage_workers()
    assert server.staying == list(range(3, 11))


def test_a_reload_amid_a_reload_replaces_what_has_started_too() -> None:
    server, state = master(3)
    for _ in range(2):
        server.reload()
        server.manage_workers()
    assert server.staying == [1, 2, 3, 4]
    for _ in range(10):
        state.known = set(server.WORKERS)
        server.manage_workers()
    assert len(server.staying) == 3 and min(server.staying) > 4


def test_a_reload_that_is_refused_starts_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(cfg: Any) -> None:
        os.environ["SET_BY_THE_CONFIGURATION"] = "x"
        raise StartupError("the disk is on fire")

    server, _ = master(3, refuse)
    server.reload()
    server.manage_workers()
    assert (server.staying, server.stopped, server.app.cfg) == ([1, 2, 3], [], server.cfg)
    assert "SET_BY_THE_CONFIGURATION" not in os.environ
    assert "Not reloaded, the old workers go on: the disk is on fire" in caplog.text


def test_a_master_that_cannot_start_a_worker_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    server, state = master(2)
    del server.WORKERS[1]
    server.fails = True
    server.manage_workers()
    assert "A worker cannot be started for now: Cannot allocate memory." in caplog.text
    server.fails = False
    server.manage_workers()
    assert sorted(server.WORKERS) == [2, 3]


# A stop.


def test_a_server_that_stops_is_alive_and_not_ready_and_still_answers(tmp_path: Path) -> None:
    write_regressor(tmp_path, Double())
    app = create_app(Settings(model_store=tmp_path, engine="torch"))
    client = app.test_client()
    assert client.get("/health/ready").status_code == 200
    repository_of(app)._state.stop()
    for path in ("/health", "/health/ready", "/v2/health/ready"):
        assert client.get(path).status_code in (400, 503), path
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json["error"]) == (503, "The server is stopping.")
    assert client.get("/health/live").status_code == client.get("/v2/health/live").status_code == 200
    assert client.post("/linear/predict", data={"value": "5"}).json == {"input": 5.0, "prediction": 10.0}


# What is refused.


class NotANumber(nn.Module):
    """One weight that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(1, 1)
        nn.init.constant_(self.dense.weight, float("nan"))

    def forward(self, value: Any) -> Any:
        return self.dense(value)


def test_weights_that_are_not_a_number_are_refused(tmp_path: Path) -> None:
    folder = write_regressor(tmp_path, NotANumber())
    with pytest.raises(ModelLoadError, match="not a number"):
        TorchEngine(folder, read_spec(folder))


@pytest.mark.parametrize("number", ["abc", "-3", "2.5"])
def test_a_number_of_workers_that_is_none_is_one_sentence(number: str) -> None:
    command = [sys.executable, "-m", "servekit", "serve", "--bind", "127.0.0.1:0"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(WEB_CONCURRENCY=number), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("WEB_CONCURRENCY must be a whole number above 0.")
    assert len(ended.stderr.strip().splitlines()) == 1


# The bench's own ledger.


def test_the_ledger_knows_what_is_lost_wrong_and_right() -> None:
    said = iter([b'{"input": 1000.0}', b'{"input": 7.0}', b"nonsense", b"", b"503"])

    def answer(number: int) -> bytes:
        body = next(said, b"503")
        status = b"503 Busy" if body == b"503" else b"200 OK"
        head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        return head % (status, len(body)) + body if body else b""

    with answering(answer) as port, ledger.Load(port, 100.0, new=1.0, timeout=2.0) as seen:
        assert wait_for(lambda: len(seen.sent) >= 5)
    assert [each.status for each in seen.sent[:5]] == [200, 200, 200, 0, 503]
    assert [each.is_right for each in seen.sent[:3]] == [True, False, False]
    assert [each.nonce for each in seen.wrong()] == [1001, 1002]
    assert (seen.lost()[0].nonce, seen.lost()[0].fault) == (1003, "closed")
    assert seen.statuses()["closed"] == 1
