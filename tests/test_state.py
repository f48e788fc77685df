"""The desired state: files, locks and slots, with real processes."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from servekit.desired import Desired, Entry
from servekit.errors import Overloaded
from servekit.state import Report, State, is_served, read_desired, read_reports

SOON = 10.0


def entry(name: str = "linear", version: str = "1", **changes: object) -> Entry:
    return Entry(name, version, "servekit", f"{name}/{version}", **{"folder": f"/store/{name}/{version}", **changes})


def test_the_first_version_is_the_default_until_another_is_named() -> None:
    desired = Desired.of([entry(), entry(version="2"), entry("mnist", "7", workers=3)])
    assert desired.defaults == {"linear": "1", "mnist": "7"}
    assert desired.find("linear").version == "1"
    assert desired.with_default("linear", "2").find("linear").version == "2"
    assert desired.find("linear", "3") is None and desired.find("nobody") is None
    assert desired.workers == 3
    assert Desired.from_json(desired.to_json()) == desired


def test_a_model_goes_with_its_last_version() -> None:
    desired = Desired.of([entry(), entry(version="2")]).without("linear", "2")
    assert list(desired.models["linear"]) == ["1"]
    assert desired.without("linear", "1") == Desired()


def test_the_state_lies_beside_the_models_and_goes_with_the_server(tmp_path: Path) -> None:
    state = State.create(tmp_path, 2)
    assert state.folder == tmp_path / ".servekit"
    assert state.folder.stat().st_mode & 0o777 == 0o700
    assert is_served(tmp_path)
    state.close()
    assert list(tmp_path.iterdir()) == []
    assert not is_served(tmp_path)


def test_a_second_server_of_a_store_and_one_that_cannot_write_keep_their_state_elsewhere(tmp_path: Path) -> None:
    first, second, nowhere = State.create(tmp_path, 2), State.create(tmp_path, 2), State.create(tmp_path / "none", 2)
    assert first.folder.parent == tmp_path
    assert tmp_path not in second.folder.parents and tmp_path not in nowhere.folder.parents
    first.write(Desired.of([entry()]))
    assert second.read() == Desired(second.read().generation)


def test_what_a_killed_server_left_is_not_taken_over(tmp_path: Path) -> None:
    if not (child := os.fork()):
        State.create(tmp_path, 2).write(Desired.of([entry()]))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".servekit" / "desired.json").exists()
    assert State.create(tmp_path, 2).read().models == {}


def test_a_change_reaches_the_other_processes(tmp_path: Path) -> None:
    state = State.create(tmp_path, 2)
    if not (child := os.fork()):
        state.join()
        state.note(state.read().generation, Report(os.getpid(), 1.0))
        while not state.read().models:
            state.sleep(SOON)
        state.note(state.read().generation, Report(os.getpid(), 1.0, (("linear", "1"),), {"linear/1": "odd"}))
        os._exit(0)
    while not state.reports():
        time.sleep(0.01)
    with state.change() as desired:
        generation = state.write(desired.with_entry(entry()))
    assert state.wait(generation, SOON) == 0
    assert [(report.loaded, report.errors) for report in state.reports()] == [((("linear", "1"),), {"linear/1": "odd"})]
    os.waitpid(child, 0)
    state.forget(child)
    assert state.reports() == []


def test_a_worker_that_does_not_follow_is_counted_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    state = State.create(tmp_path, 3)
    if not (child := os.fork()):
        state.join()
        signal.pause()
    while not any(state._pids):
        time.sleep(0.01)
    generation = state.write(Desired.of([entry()]))
    assert state.wait(generation, 0.1) == 1
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state.forget(child)
    state.join()
    state.note(generation, Report(os.getpid(), 1.0))
    assert state.wait(generation, SOON) == 0


def test_changes_wait_for_one_another(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    order = []

    def change() -> None:
        with state.change() as desired:
            order.append("second")
            state.write(desired.with_entry(entry(version="2")))

    with state.change() as desired:
        other = threading.Thread(target=change)
        other.start()
        time.sleep(0.1)
        order.append("first")
        state.write(desired.with_entry(entry()))
    other.join()
    assert order == ["first", "second"]
    assert list(state.read().models["linear"]) == ["1", "2"]


def test_a_process_that_dies_in_the_middle_of_a_change_leaves_the_state_valid(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.write(Desired.of([entry()]))
    if not (child := os.fork()):
        with state.change():
            (state.folder / f"desired.json.{os.getpid()}").write_text('{"generation": 9, "mod')
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with state.change() as desired:  # its lock went with it
        assert list(desired.models) == ["linear"]


def test_what_was_written_but_not_made_known_becomes_known_when_its_writer_has_died(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.join()
    generation = state.write(Desired.of([entry()]))
    state.sleep(0)
    later = json.loads((state.folder / "desired.json").read_text()) | {"generation": generation + 1, "defaults": {}}
    (state.folder / "desired.json").write_text(json.dumps(later))
    state.forget(os.getpid())
    state.join()
    started = time.monotonic()
    state.sleep(SOON)
    assert time.monotonic() - started < SOON  # it is woken
    assert state.read().defaults == {}


def test_only_what_was_unpacked_for_the_state_is_removed(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    folder, mine = state.archive_folder(), tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    for each in (folder, mine):
        state.drop_archive(str(each))
    assert not folder.parent.exists() and mine.exists()


def test_only_one_process_claims_a_duty_and_another_may_when_it_is_gone(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    if not (child := os.fork()):
        state.claim("poll")
        (tmp_path / "claimed").touch()
        signal.pause()
    while not (tmp_path / "claimed").exists():
        time.sleep(0.01)
    assert not state.claim("poll")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert state.claim("poll") and state.claim("poll")


def test_there_is_a_bound_on_the_workers(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.join()
    with pytest.raises(RuntimeError, match="more workers than slots"):
        state.join()


def test_people_can_read_what_runs(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.write(Desired.of([entry()]))
    state.join()
    state.note(1, Report(os.getpid(), 5.0, (("linear", "1"),)))
    assert list(read_desired(state.folder).models) == ["linear"]
    assert [report.pid for report in read_reports(state.folder)] == [os.getpid()]


def test_a_process_that_a_worker_forks_keeps_no_lock(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    with state.change():
        if not (child := os.fork()):
            signal.pause()
    try:
        with state.change(patience=0.0):
            pass
        assert state.claim("poll")
        if not (second := os.fork()):
            signal.pause()
        os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
        assert state.claim("poll")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_who_waits_too_long_for_a_change_is_told(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    with state.change(), pytest.raises(Overloaded, match="still under way"), state.change(patience=0.05):
        pass


def test_nobody_waits_for_a_worker_that_has_left_and_another_takes_another_slot(tmp_path: Path) -> None:
    state = State.create(tmp_path, 2)
    if not (child := os.fork()):
        state.join()
        state.leave()
        assert not state.sleep(None)
        (tmp_path / "left").touch()
        signal.pause()
    while not (tmp_path / "left").exists():
        time.sleep(0.01)
    assert state.leaving() == {child}
    state.join()
    generation = state.write(Desired.of([entry()]))
    state.note(generation, Report(os.getpid(), 1.0))
    assert state.wait(generation, SOON) == 0
    with pytest.raises(RuntimeError, match="more workers than slots"):
        state.join()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    state.forget(child)
    assert state.leaving() == set()
    state.join()


def test_a_follower_ends_when_its_worker_leaves_and_takes_no_wake_up_of_another(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.join()
    state.sleep(0.0)  # what rang before
    woken: list[bool] = []
    follower = threading.Thread(target=lambda: woken.append(state.sleep(SOON)))
    follower.start()
    state.leave()
    state.wake()
    follower.join()
    assert woken == [False]
    state.forget(os.getpid())
    state.join()
    assert state.sleep(0.0)


def test_a_master_tells_of_workers_beyond_what_is_desired(tmp_path: Path) -> None:
    state = State.create(tmp_path, 3)
    state.join()
    generation = state.write(Desired.of([entry()]))
    state.note(generation, Report(os.getpid(), 1.0))
    state.note_extra(1)
    assert state.wait(generation, 0.05) == 1
    state.note_extra(0)
    assert state.wait(generation, 0.05) == 0


def test_what_a_worker_had_unpacked_and_not_registered_goes_with_it(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    served, left_over = state.archive_folder(), state.archive_folder()
    state.write(Desired.of([entry(folder=str(served))]))
    state.forget(os.getpid())
    assert served.parent.exists() and not left_over.parent.exists()


def test_the_server_outlives_the_folder_of_its_state(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    state.write(Desired.of([entry()]))
    shutil.rmtree(state.folder)
    state.forget(os.getpid())
    assert list(state.read().models) == ["linear"]


def test_what_the_state_folder_points_to_is_left_alone(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (victim / "folder").mkdir(parents=True)
    (victim / "file").write_text("kept")
    store = tmp_path / "store"
    store.mkdir()
    (store / ".servekit").symlink_to(victim)
    assert victim not in State.create(store, 1).folder.parents
    (store / ".servekit").unlink()
    (store / ".servekit").mkdir(mode=0o777)
    (store / ".servekit").chmod(0o777)
    (store / ".servekit" / "link").symlink_to(victim)
    state = State.create(store, 1)
    assert state.folder.parent == store and state.folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in victim.iterdir()} == {"folder", "file"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.folder.iterdir())


def test_a_worker_inherits_what_went_wrong_in_the_one_before(tmp_path: Path) -> None:
    state = State.create(tmp_path, 1)
    if not (child := os.fork()):
        state.join()
        state.note(1, Report(os.getpid(), 1.0, (), {"linear/1": "it never came back"}))
        os._exit(1)
    os.waitpid(child, 0)
    state.forget(child)
    state.join()
    assert state.inherited == {"linear/1": "it never came back"}
