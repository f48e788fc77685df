import logging
from pathlib import Path

import pytest

from servekit.config import Settings
from servekit.errors import ModelLoadError, ModelNotFound, NotReady
from servekit.repository import Repository
from servekit.spec import scan
from servekit.state import State
from tests.versions import write_regressor


def test_the_newest_version_is_loaded(tmp_path: Path) -> None:
    for _ in range(11):
        write_regressor(tmp_path)
    write_regressor(tmp_path, name="other")
    repository = Repository.load(Settings(model_store=tmp_path))
    assert [(model.name, model.version) for model in repository.models] == [("linear", "11"), ("other", "1")]
    assert repository.get("linear").version == "11"
    repository.require_ready()


def test_an_unknown_model_is_not_found(tmp_path: Path) -> None:
    write_regressor(tmp_path)
    with pytest.raises(ModelNotFound, match="the loaded ones: linear"):
        Repository.load(Settings(model_store=tmp_path)).get("../linear")


@pytest.mark.parametrize("make", [True, False])
def test_a_store_without_a_model_names_the_remedy(tmp_path: Path, make: bool) -> None:
    store = tmp_path / "store"
    if make:
        (store / "empty").mkdir(parents=True)
    with pytest.raises(ModelLoadError, match=f"no model in {store}; run `make train`"):
        Repository.load(Settings(model_store=store))


def test_what_is_no_version_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_regressor(tmp_path)
    for stray in (".git/1", "linear/.writing-x", "linear/v2", "linear/0", "linear/01"):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "linear" / "7").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert scan(tmp_path) == {"linear": [1]}
    assert {Path(record.args[0]).name for record in caplog.records} == {"v2", "0", "01", "1"}


def test_a_repository_without_models_is_not_ready() -> None:
    with pytest.raises(NotReady, match="No model is loaded"):
        Repository(State.private([]), Settings()).require_ready()
