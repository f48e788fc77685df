"""What changes the models of a server: each operation of the repository, and what others make of it."""

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from servekit.config import Settings
from servekit.desired import Entry
from servekit.engines.torchserve import HandlerRequest
from servekit.errors import (
    DefaultVersionInUse,
    HandlerFailed,
    ModelLoadError,
    ModelNotFound,
    ModelNotLoaded,
    VersionExists,
    VersionNotFound,
    WorkersFailed,
)
from servekit.repository import Repository
from servekit.state import State

SOON = 10.0
HANDLER = """
{first}

class Handler:
    def initialize(self, context):
        self.itself = self  # only the garbage collector can free it
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        {then}
        return [self.version + {word!r} for _ in data]
"""
# Loads once on this machine, whichever process it is.
ONCE = """
import os
os.close(os.open({lock!r}, os.O_CREAT | os.O_EXCL))
"""
# Loads when a file is there, and counts how often that is tried.
TRIES = """
import pathlib
with open({tries!r}, "a") as tries:
    tries.write("x")
pathlib.Path({there!r}).read_text()
"""


def archive(
    folder: Path, version: str = "1.0", first: str = "", then: str = "", word: str = "", workers: int = 1
) -> Entry:
    """Return the entry of an archive that is unpacked in `folder`; its handler begins with `first`."""
    folder.mkdir(parents=True)
    (folder / "handler.py").write_text(HANDLER.format(first=first, then=then or "pass", word=word))
    options = {"model_name": "v", "model_version": version, "handler": "handler.py", "batch_size": 1}
    options |= {"max_batch_delay": 0, "job_queue_size": 10, "response_timeout": 10, "startup_timeout": 60}
    return Entry("v", version, "torchserve", folder.name, str(folder), workers, workers, options)


def alone(*entries: Entry, most: int = 4) -> Repository:
    """Return the repository of a server that is this process."""
    return Repository(State.private(list(entries)), Settings(max_workers=most))


def said_by(repository: Repository, version: str | None = None) -> str:
    """Return what a version of `v` answers."""
    rows = np.empty(1, object)
    rows[0] = HandlerRequest("1", {}, ())
    answers = repository.get("v", version).predict({"request": rows}, time.monotonic() + SOON)
    return str(answers["response"][0].body.decode())


def versions_of(repository: Repository) -> list[str]:
    return [model.version for model in repository.models]


def test_a_version_is_registered_once(tmp_path: Path) -> None:
    repository = alone()
    assert repository.register(archive(tmp_path / "a")) == 1
    assert said_by(repository) == "1.0"
    with pytest.raises(VersionExists):
        repository.register(archive(tmp_path / "b", word=" other"))
    assert said_by(repository) == "1.0"
    repository.register(archive(tmp_path / "c", "2.0"))
    assert said_by(repository) == "1.0" and said_by(repository, "2.0") == "2.0"


def test_what_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    repository = alone(archive(tmp_path / "a"))
    before = repository.desired()
    with pytest.raises(ModelLoadError, match="no such luck"):
        repository.register(archive(tmp_path / "b", "2.0", first="raise OSError('no such luck')"))
    with pytest.raises(ModelLoadError):
        repository.register(Entry("v", "3.0", "torchserve", "c", str(tmp_path / "not there"), options={"batch_size": 1}))
    assert repository.desired() == before and versions_of(repository) == ["1.0"]


def test_a_version_that_could_not_be_loaded_at_the_start_holds_up_no_change_and_can_be_tried_again(tmp_path: Path) -> None:
    count = TRIES.format(tries=str(tmp_path / "tries"), there=str(tmp_path / "there"))
    broken = dataclasses.replace(archive(tmp_path / "a", first=count), is_required=False)
    repository = alone(broken)
    repository.register(archive(tmp_path / "b", "2.0"))
    repository.set_default("v", "2.0")
    assert said_by(repository) == "2.0"
    assert (tmp_path / "tries").read_text() == "x"
    assert "there" in repository.workers()[0].errors["v/1.0"]
    with pytest.raises(ModelLoadError):
        repository.scale("v", "1.0", 1, 1)
    (tmp_path / "there").touch()
    repository.scale("v", "1.0", 1, 1)
    assert said_by(repository, "1.0") == "1.0"
    assert repository.workers()[0].errors == {}


def test_a_version_can_take_the_place_of_the_default_one(tmp_path: Path) -> None:
    repository = alone(archive(tmp_path / "a"))
    repository.replace(archive(tmp_path / "b", "2.0"))
    assert said_by(repository) == "2.0" and versions_of(repository) == ["2.0"]
    with pytest.raises(VersionNotFound):
        repository.get("v", "1.0")
    repository.replace(archive(tmp_path / "c", "2.0", word=" again"))
    assert said_by(repository) == "2.0 again"
    with pytest.raises(ModelLoadError):
        repository.replace(archive(tmp_path / "d", "3.0", first="raise ValueError"))
    assert said_by(repository) == "2.0 again"


def test_the_default_version_goes_last(tmp_path: Path) -> None:
    repository = alone(archive(tmp_path / "a"), archive(tmp_path / "b", "2.0"))
    for version in (None, "1.0"):
        with pytest.raises(DefaultVersionInUse):
            repository.unregister("v", version)
    with pytest.raises(VersionNotFound):
        repository.unregister("v", "3.0")
    with pytest.raises(VersionNotFound):
        repository.set_default("v", "3.0")
    repository.set_default("v", "2.0")
    assert said_by(repository) == "2.0"
    repository.unregister("v", "1.0")
    repository.unregister("v")
    with pytest.raises(ModelNotFound):
        repository.unregister("v")
    assert repository.models == []


def test_there_is_a_ceiling_for_workers_and_none_unloads(tmp_path: Path) -> None:
    repository = alone(most=3)
    assert repository.register(archive(tmp_path / "a", workers=50)) == 3
    assert repository.scale("v", None, 7, 9) == 3
    entry = repository.find("v")
    assert (entry.workers, entry.max_workers, repository.desired().workers) == (3, 3, 3)
    assert repository.scale("v", "1.0", 0, 2) == 0
    with pytest.raises(ModelNotLoaded):
        repository.get("v")
    assert repository.scale("v", "1.0", 1, 2) == 1
    assert said_by(repository) == "1.0"


def test_what_is_dropped_is_freed_and_so_are_its_modules(tmp_path: Path) -> None:
    state = State.private([])
    repository = Repository(state, Settings())
    folder = state.archive_folder()
    repository.register(archive(folder))
    gc.freeze()  # as a worker does when it begins to serve
    try:
        engine = weakref.ref(repository.get("v")._engine)
        before = len([name for name in sys.modules if name.startswith("_servekit_")])
        repository.unregister("v")
    finally:
        gc.unfreeze()
    assert engine() is None
    assert len([name for name in sys.modules if name.startswith("_servekit_")]) < before
    assert not folder.parent.exists()


@contextlib.contextmanager
def another_worker(state: State) -> Iterator[int]:
    """Let a second process follow `state`; give its process id."""
    if not (child := os.fork()):
        try:
            state.join()
            Repository(state, Settings()).follow()
        finally:
            os._exit(1)
    try:
        until = time.monotonic() + SOON
        while child not in {report.pid for report in state.reports()}:
            assert time.monotonic() < until
            time.sleep(0.01)
        state.join()
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state.forget(child)


def test_a_change_that_another_worker_cannot_follow_is_undone_and_its_reason_told(tmp_path: Path) -> None:
    state = State.create(tmp_path, 4)
    with another_worker(state) as other:
        repository = Repository(state, Settings())
        repository.register(archive(tmp_path / "a", workers=2))
        loads_once = ONCE.format(lock=str(tmp_path / "lock"))
        with pytest.raises(WorkersFailed, match=f"Worker {other} could not load it: .*FileExistsError"):
            repository.register(archive(tmp_path / "b", "2.0", first=loads_once, workers=2))
        assert versions_of(repository) == ["1.0"]
        assert {worker.loaded for worker in repository.workers()} == {(("v", "1.0"),)}
        (tmp_path / "lock").unlink()
        with pytest.raises(WorkersFailed):
            repository.replace(archive(tmp_path / "c", "2.0", first=loads_once, workers=2))
        assert said_by(repository) == "1.0"
        repository.register(archive(tmp_path / "d", "2.0", workers=2))
        assert repository.desired().defaults == {"v": "1.0"}
        assert {worker.loaded for worker in repository.workers()} == {(("v", "1.0"), ("v", "2.0"))}


def test_the_last_failure_of_a_handler_is_told_to_all_and_forgotten_with_its_model(tmp_path: Path) -> None:
    state = State.create(tmp_path, 4)
    with another_worker(state):
        repository = Repository(state, Settings())
        repository.register(archive(tmp_path / "a", workers=2))
        repository.register(archive(tmp_path / "b", "2.0", then="raise LookupError('of the handler')", workers=2))
        with pytest.raises(HandlerFailed, match="Prediction failed"):
            said_by(repository, "2.0")
        assert any("of the handler" in worker.errors.get("v/2.0", "") for worker in repository.workers())
        repository.unregister("v", "2.0")
        assert all(worker.errors == {} for worker in repository.workers())


def test_a_worker_that_reports_while_models_change_does_not_report_what_was(tmp_path: Path) -> None:
    repository = alone(archive(tmp_path / "a"))
    stop = threading.Event()

    def complain() -> None:
        while not stop.is_set():
            repository.note_failure("v", "1.0", "again")

    threads = [threading.Thread(target=complain) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            repository.register(archive(tmp_path / f"b{number}", "2.0"))
            assert ("v", "2.0") in repository.workers()[0].loaded
            repository.unregister("v", "2.0")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
