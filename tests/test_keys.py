"""Keys: what a file of them may say, how they are told apart, and how the requests of each are counted."""

import hashlib
import json
import logging
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from servekit.config import Settings, seal_keys
from servekit.errors import SettingError
from servekit.keys import INFERENCE, MANAGEMENT, METRICS, Keyring, read_keys
from servekit.rates import Rates
from servekit.tally import Tally

ONE, TWO = "one-key-of-somebody", "two-key-of-somebody"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def write(folder: Path, *keys: Any, mode: int = 0o600) -> Path:
    path = folder / "new.json"
    path.write_text(json.dumps({"keys": keys}))
    path.chmod(mode)
    return path.rename(folder / "keys.json")


def test_a_file_says_what_each_key_is_good_for(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"name": "a", "key": ONE, "models": ["mnist"], "rate_limit": "5/hour"},
        {"name": "b", "sha256": digest(TWO), "scope": "management"},
    )
    ring = Keyring(Settings(keys=str(path), rate_limit="100/second"))
    a, b = ring.find(f"Bearer {ONE}"), ring.find(f"bearer  {TWO}")
    assert (a.name, a.scope, a.rate_limit, b.name, b.rate_limit) == ("a", INFERENCE, "5/hour", "b", "100/second")
    assert a.sees("mnist") and not a.sees("linear") and b.sees("linear")
    assert [a.may(scope) for scope in (INFERENCE, METRICS, MANAGEMENT)] == [True, False, False]
    assert all(b.may(scope) for scope in (INFERENCE, METRICS, MANAGEMENT))


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {ONE}", ONE, f"Bearer {ONE} {ONE}", f"Bearer {ONE},Bearer {ONE}", f"Bearer {ONE[:-1]}",
     f"Bearer {ONE.upper()}", f"Bearer sha256:{digest(ONE)}", f"Bearer {digest(ONE)}", "Bearer \xe9\udc80" + ONE, f"Bearer\t{ONE}"],
)
def test_what_is_not_the_key_is_not_taken_for_it(header: str) -> None:
    assert Keyring(Settings(inference_key=ONE)).find(header) is None


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("text", "must be an object"),
        ({"key": ONE}, "must have a name"),
        ({"name": "a\n", "key": ONE}, "must have a name"),
        ({"name": "a"}, "either key, a text, or sha256"),
        ({"name": "a", "key": ONE, "sha256": digest(ONE)}, "either key, a text, or sha256"),
        ({"name": "a", "key": "short"}, "at least 16 visible characters"),
        ({"name": "a", "key": ONE + " "}, "at least 16 visible characters"),
        ({"name": "a", "sha256": "12"}, "64 hexadecimal digits"),
        ({"name": "a", "key": ONE, "scope": "all"}, "scope must be one of: inference, metrics, management"),
        ({"name": "a", "key": ONE, "scope": []}, "scope must be one of"),
        ({"name": "a", "key": ONE, "models": "mnist"}, "models must be a list of names"),
        ({"name": "a", "key": ONE, "models": ["mnist"], "scope": "management"}, "models belong to a key for inference"),
        ({"name": "a", "key": ONE, "rate_limit": "often"}, "a rate such as 100/second"),
        ({"name": "a", "key": ONE, "model": ["mnist"]}, "Unknown member model; did you mean models"),
    ],
)
def test_what_a_key_cannot_be_is_said_without_the_key(tmp_path: Path, entry: Any, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence) as raised:
        read_keys(write(tmp_path, {"name": "first", "key": TWO}, entry))
    assert "key 2" in str(raised.value) and ONE not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"keys": {}}', '{"keys": [], "more": 1}', "[" * 100_000, json.dumps({"keys": [{}] * 1001})]
)
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(SettingError, match='must hold {"keys"'):
        read_keys(path)


@pytest.mark.parametrize(
    ("mode", "sentence"), [(0o604, "read by everyone"), (0o620, "written by others"), (0o602, "written by others")]
)
def test_a_file_of_keys_that_is_open_to_others_is_refused(tmp_path: Path, mode: int, sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence):
        read_keys(write(tmp_path, {"name": "a", "key": ONE}, mode=mode))


def test_a_group_may_read_keys_and_everybody_digests(tmp_path: Path) -> None:
    assert read_keys(write(tmp_path, {"name": "a", "key": ONE}, mode=0o440))
    assert read_keys(write(tmp_path, {"name": "a", "sha256": digest(ONE)}, mode=0o444))


def test_names_and_keys_are_there_once(tmp_path: Path) -> None:
    for others in ({"name": "a", "key": TWO}, {"name": "b", "sha256": digest(ONE)}):
        with pytest.raises(SettingError, match="twice"):
            Keyring(Settings(keys=str(write(tmp_path, {"name": "a", "key": ONE}, others))))
    with pytest.raises(SettingError, match="must differ"):
        Keyring(Settings(inference_key=ONE, management_key=ONE))


def test_a_changed_file_counts_at_once_and_a_broken_one_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, {"name": "a", "key": ONE})
    ring = Keyring(Settings(keys=str(path), management_key="a-key-of-the-settings"))
    write(tmp_path, {"name": "a", "key": TWO})
    assert ring.find(f"Bearer {TWO}") and not ring.find(f"Bearer {ONE}") and ring.find("Bearer a-key-of-the-settings")
    with caplog.at_level(logging.ERROR, "servekit.keys"):
        write(tmp_path, {"name": "a", "key": "short"})
        assert ring.find(f"Bearer {TWO}") and ring.find(f"Bearer {TWO}")
        path.unlink()
        assert ring.find(f"Bearer {TWO}") and ring.find(f"Bearer {TWO}")
    assert ["at least 16" in line for line in caplog.messages] == [True, False] and "cannot be read" in caplog.messages[1]
    write(tmp_path)
    assert not ring.knows(f"Bearer {TWO}") and ring.knows("Bearer a-key-of-the-settings")


def test_settings_keep_digests_and_show_nothing() -> None:
    settings = Settings(inference_key=ONE, management_key=TWO)
    assert settings.inference_key == f"sha256:{digest(ONE)}"
    assert ONE not in repr(settings) and digest(ONE) not in repr(settings)
    assert "digest" not in repr(Keyring(settings).keys)
    environ = {"SERVEKIT_INFERENCE_KEY": ONE, "SERVEKIT_MANAGEMENT_KEY": "short", "OTHER": ONE}
    seal_keys(environ)
    assert environ == {"SERVEKIT_INFERENCE_KEY": f"sha256:{digest(ONE)}", "SERVEKIT_MANAGEMENT_KEY": "short", "OTHER": ONE}
    seal_keys(environ)
    assert environ["SERVEKIT_INFERENCE_KEY"] == settings.inference_key


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"inference_key": "short"}, "SERVEKIT_INFERENCE_KEY must have at least 16"),
        ({"management_key": "with a space in it"}, "SERVEKIT_MANAGEMENT_KEY must have at least 16"),
        ({"rate_limit": "100/second"}, "left unset where there are no keys"),
        ({"rate_limit": "100/2 seconds", "inference_key": ONE}, "a rate such as 100/second"),
    ],
)
def test_settings_of_keys_that_cannot_be_are_refused(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingError, match=sentence) as raised:
        Settings(**values)  # type: ignore[arg-type]
    assert "with a space" not in str(raised.value)


# Rates.


class Clock:
    """A clock that stands until it is put forward."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_holds_until_its_window_ends() -> None:
    clock = Clock()
    rates = Rates(Tally(), clock)
    assert [rates.wait_of("a", "3/minute") for _ in range(5)] == [0, 0, 0, 60, 60]
    assert rates.wait_of("b", "3/minute") == 0
    clock.now += 59.5
    assert rates.wait_of("a", "3/minute") == 1
    clock.now += 0.6
    assert rates.wait_of("a", "3/minute") == 0
    clock.now -= 5000.0  # it has been put back
    assert rates.wait_of("a", "3/minute") == 0


def test_counts_are_those_of_all_processes_and_end_with_none_of_them() -> None:
    tally = Tally()
    fork = multiprocessing.get_context("fork")

    def count() -> None:
        for _ in range(500):
            tally.add("a", 1, 0.0, 60.0)

    others = [fork.Process(target=count) for _ in range(3)]
    for other in others:
        other.start()
    count()
    for other in others:
        other.join(30)
    assert tally.read("a", 1.0) == (2000, 60.0)

    def hold() -> None:
        with tally._locked():
            os._exit(9)  # as one that is killed

    killed = fork.Process(target=hold)
    killed.start()
    killed.join(30)
    assert tally.add("a", 1, 1.0, 60.0) == 2001


def test_more_names_than_places_take_that_of_the_one_that_ends_first() -> None:
    tally = Tally(slots=2)
    for name, seconds in (("a", 50.0), ("b", 10.0), ("c", 50.0)):
        assert tally.add(name, 1, 0.0, seconds) == 1
    assert (tally.add("a", 1, 0.0, 50.0), tally.add("c", 1, 0.0, 50.0), tally.add("b", 1, 0.0, 10.0)) == (2, 2, 1)
    tally.clear("b")
    assert tally.read("b", 0.0) == (0, 0.0)
    assert tally.reset() == 1 and tally.reset() == 0
