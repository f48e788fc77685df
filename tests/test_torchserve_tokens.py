"""The keys of TorchServe's APIs: their file, their check, their renewal."""

import datetime
import json
import stat
import threading
from pathlib import Path

import pytest

from servekit.torchserve.refusals import Refusal
from servekit.torchserve.tokens import INFERENCE, MANAGEMENT, RENEWAL, Tokens, write_keys


def keys_of(path: Path) -> dict[str, str]:
    return {name: entry["key"] for name, entry in json.loads(path.read_text()).items()}


def holds(tokens: Tokens, name: str, authorization: str | None) -> bool:
    try:
        tokens.check(name, authorization)
    except Refusal as refusal:
        sentence = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
        assert (refusal.status, refusal.kind, str(refusal)) == (400, "InvalidKeyException", sentence)
        return False
    return True


def test_the_file_has_the_form_of_the_contract_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    path.write_text("{}")
    path.chmod(0o644)
    write_keys(path, 60)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads(path.read_text())
    assert {name: list(entry) for name, entry in content.items()} == {
        "management": ["key", "expiration time"],
        "inference": ["key", "expiration time"],
        "API": ["key"],
    }
    assert len(set(keys_of(path).values())) == 3
    assert all(len(key) >= 128 / 6 for key in keys_of(path).values())  # 6 bits a character
    expiration = datetime.datetime.strptime(content["inference"]["expiration time"], "%Y-%m-%dT%H:%M:%S.%fZ")
    left = expiration.replace(tzinfo=datetime.UTC) - datetime.datetime.now(datetime.UTC)
    assert 59 < left.total_seconds() / 60 <= 60
    assert [file.name for file in tmp_path.iterdir()] == ["key_file.json"]


def test_each_key_opens_its_own_address(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 60)
    tokens, keys = Tokens(path, 60), keys_of(path)
    assert holds(tokens, INFERENCE, f"Bearer {keys[INFERENCE]}")
    assert holds(tokens, MANAGEMENT, f"Bearer \t{keys[MANAGEMENT]}")
    key = keys[INFERENCE]
    wrong = [None, "", key, f"bearer {key}", f"Bearer{key}", f"Bearer {key} ", f"Bearer {key}x", f"Bearer {key[:-1]}"]
    for authorization in [*wrong, f"Basic {key}", "Bearer \xe9", f"Bearer {keys[MANAGEMENT]}", f"Bearer {keys[RENEWAL]}"]:
        assert not holds(tokens, INFERENCE, authorization)


def test_each_key_makes_its_holder_known(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 60)
    tokens = Tokens(path, 60)
    assert all(tokens.knows(f"Bearer {key}") for key in keys_of(path).values())
    assert not any(map(tokens.knows, ("", "Bearer ", "Bearer x")))
    path.unlink()
    assert not tokens.knows("Bearer x")


def test_a_key_expires(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 0.0001)
    authorization = f"Bearer {keys_of(path)[INFERENCE]}"
    tokens = Tokens(path, 60)
    while holds(tokens, INFERENCE, authorization):
        pass
    tokens.renew(INFERENCE, f"Bearer {keys_of(path)[RENEWAL]}")  # this one never does
    assert holds(tokens, INFERENCE, f"Bearer {keys_of(path)[INFERENCE]}")


def test_a_time_beyond_all_calendars_is_the_last_one(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 1e15)
    assert holds(Tokens(path, 60), INFERENCE, f"Bearer {keys_of(path)[INFERENCE]}")


def test_a_renewed_key_is_known_to_all_workers_at_once(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 60)
    one, other, old = Tokens(path, 60), Tokens(path, 60), keys_of(path)
    assert holds(other, INFERENCE, f"Bearer {old[INFERENCE]}")
    one.renew(INFERENCE, f"Bearer {old[RENEWAL]}")
    new = keys_of(path)
    assert {name for name in old if old[name] != new[name]} == {INFERENCE}
    assert not holds(other, INFERENCE, f"Bearer {old[INFERENCE]}")
    assert holds(other, INFERENCE, f"Bearer {new[INFERENCE]}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_that_are_renewed_at_the_same_time_do_not_undo_one_another(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 60)
    old = keys_of(path)
    workers = [Tokens(path, 60), Tokens(path, 60)]

    def renew(number: int) -> None:
        for _ in range(20):
            workers[number].renew((INFERENCE, MANAGEMENT)[number], f"Bearer {old[RENEWAL]}")

    threads = [threading.Thread(target=renew, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    new = keys_of(path)
    assert new[RENEWAL] == old[RENEWAL]
    assert new[INFERENCE] != old[INFERENCE] and new[MANAGEMENT] != old[MANAGEMENT]


@pytest.mark.parametrize("name", [None, "", RENEWAL, "other"])
def test_only_two_keys_can_be_renewed(tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "key_file.json"
    write_keys(path, 60)
    with pytest.raises(Refusal, match="Token Authentication failed"):
        Tokens(path, 60).renew(name, f"Bearer {keys_of(path)[RENEWAL]}")


UNREADABLE = ["", "[]", "{}", '{"inference": 5}', '{"inference": {"key": "a"}}']


@pytest.mark.parametrize("content", [*UNREADABLE, '{"inference": {"key": "a", "expiration time": "x"}}'])
def test_without_a_readable_file_nobody_has_a_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key_file.json"
    assert not holds(Tokens(path, 60), INFERENCE, "Bearer a")
    path.write_text(content)
    assert not holds(Tokens(path, 60), INFERENCE, "Bearer a")
