import json
import re
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from models.linear import LinearRegressor
from servekit.spec import read_file, read_spec, sha256
from tests.server import ROOT
from tests.versions import PREDICTION, VALUE
from train import store as store_module
from train.store import provenance, write_version

FIELDS = {"handler": "servekit.handlers.base:Handler", "inputs": (VALUE,), "outputs": (PREDICTION,)}


def test_a_version_folder_explains_itself(tmp_path: Path) -> None:
    network = LinearRegressor()
    folder = write_version(tmp_path, "linear", network, {"curve.png": b"png"}, labels=("a",), **FIELDS)
    assert folder == tmp_path / "linear" / "1"
    spec = read_spec(folder)
    assert spec.network == "models.linear:LinearRegressor"
    assert (spec.inputs, spec.outputs, spec.labels) == ((VALUE,), (PREDICTION,), ("a",))
    assert sorted(path.name for path in folder.iterdir()) == ["curve.png", "model.json", "model.pth"]
    for name in spec.files:
        assert sha256(read_file(folder, spec, name)) == spec.files[name]
    state = torch.load(folder / "model.pth", weights_only=True)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())


def test_versions_are_numbered_and_never_edited(tmp_path: Path) -> None:
    first = write_version(tmp_path, "linear", LinearRegressor(), {}, **FIELDS)
    before = (first / "model.pth").read_bytes()
    (tmp_path / "linear" / "7").mkdir()
    assert write_version(tmp_path, "linear", LinearRegressor(), {}, **FIELDS).name == "8"
    assert (first / "model.pth").read_bytes() == before


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_a_run_that_ends_early_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    class Interrupting(dict):
        def items(self) -> None:
            assert list((tmp_path / "linear").iterdir())  # in the middle of writing
            raise failure

    fields = FIELDS | {"training": Interrupting(made="so")}
    with pytest.raises(failure):
        write_version(tmp_path, "linear", LinearRegressor(), {}, **fields)
    assert list((tmp_path / "linear").iterdir()) == []


def test_runs_at_the_same_time_get_different_numbers(tmp_path: Path) -> None:
    names: list[str] = []
    write = lambda: names.append(write_version(tmp_path, "linear", LinearRegressor(), {}, **FIELDS).name)  # noqa: E731
    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in (tmp_path / "linear").iterdir()) == sorted("123456")
    assert sorted(names) == sorted("123456")


def test_a_file_in_the_way_of_a_number_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "linear").mkdir()
    (tmp_path / "linear" / "1").write_text("a file")
    assert write_version(tmp_path, "linear", LinearRegressor(), {}, **FIELDS).name == "2"


def test_a_store_that_cannot_be_written_fails_and_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="read-only"):
        write_version(tmp_path, "linear", LinearRegressor(), {}, **FIELDS)


def test_origin_says_when_from_what_and_with_what() -> None:
    made = json.loads(json.dumps(provenance(1.234)))
    assert made["seconds"] == 1.2
    assert set(made["versions"]) == {"python", "torch", "numpy"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["finished"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert made["commit"] is None or made["commit"].removesuffix("+changes") == head


def test_code_outside_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert store_module.provenance(0)["commit"] is None
