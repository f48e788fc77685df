import dataclasses
from pathlib import Path

import pytest

from servekit.config import Settings
from servekit.errors import SettingError
from train.data import DataError
from train.settings import exit_on_error, parse_settings, run, setting


@dataclasses.dataclass(frozen=True)
class Example:
    """Two settings."""

    epochs: int = setting(3, "passes")
    learning_rate: float = setting(0.1, "size of a step")


def test_options_are_the_fields() -> None:
    assert parse_settings(Example, [], None) == Example()
    assert parse_settings(Example, ["--epochs", "5", "--learning-rate=0.5"], None) == Example(5, 0.5)
    assert parse_settings(Example, ["--epochs", "5", "--epochs", "6"], None).epochs == 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epoch", "5"], "Unknown setting --epoch; did you mean --epochs?"),
        (["--learning-rat=5"], "Unknown setting --learning-rat; did you mean --learning-rate?"),
        (["--quux"], "Unknown setting --quux; there are: --epochs, --learning-rate"),
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'."),
        (["--epochs"], "argument --epochs: expected one argument."),
    ],
)
def test_an_impossible_setting_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_settings(Example, arguments, None)
    assert str(caught.value) == sentence


def test_help_gives_each_setting_its_reason_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_settings(Example, ["--help"], "What it does.")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "What it does." in text
    assert "size of a step (default: 0.1)" in text


@pytest.mark.parametrize("error", [SettingError("Wrong."), DataError("Damaged.")])
def test_an_error_ends_the_process_with_its_sentence(error: Exception) -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise error
    assert ended.value.code == str(error)


def test_ctrl_c_ends_the_process_with_a_sentence() -> None:
    with pytest.raises(SystemExit) as ended, exit_on_error():
        raise KeyboardInterrupt
    assert ended.value.code == "Interrupted; the unfinished version was discarded."


def test_a_recipe_gets_its_settings_and_the_folders(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["recipe", "--epochs", "9"])
    monkeypatch.setenv("SERVEKIT_MODEL_STORE", "/somewhere")

    def recipe(settings: Example, paths: Settings) -> Path:
        assert settings == Example(epochs=9)
        return paths.model_store

    run(recipe, Example, None)
    assert capsys.readouterr().out == "Wrote /somewhere.\n"
