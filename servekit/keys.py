"""Who may ask for what: keys, known by their digests only, from a file that may change while the server runs.

The file is `{"keys": [{"name", "key" or "sha256", "scope", "models", "rate_limit"}]}`; docs/keys.md explains it. Standard
library only: the master reads it before it forks, to refuse what cannot be used.
"""

import dataclasses
import hashlib
import hmac
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from servekit.config import PREFIX, RATE, Settings, sealed, unknown_name
from servekit.errors import SettingError

log = logging.getLogger(__name__)

INFERENCE, METRICS, MANAGEMENT = "inference", "metrics", "management"
SCOPES = (INFERENCE, METRICS, MANAGEMENT)
JUDGES = "servekit.judges"  # of an application's extensions: by port, "" for all others, what says whether a header holds a key
MAX_KEYS = 1000  # each is compared with what a client sends

_MEMBERS = ("name", "key", "sha256", "scope", "models", "rate_limit")
_BEARER = re.compile(r"(?i:bearer) +(\S+) *")  # RFC 6750, section 2.1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_FILE_BYTES = 2**20


@dataclasses.dataclass(frozen=True)
class Key:
    """What the holder of one key may do; `models` None: ask every model."""

    name: str
    digest: bytes = dataclasses.field(repr=False)  # SHA-256
    scope: str = INFERENCE
    models: frozenset[str] | None = None
    rate_limit: str = ""

    def may(self, scope: str) -> bool:
        """Return True if the key is good for what has `scope`; that of management is good for everything."""
        return self.scope in (scope, MANAGEMENT)

    def sees(self, model: str) -> bool:
        """Return True if the key may ask `model`, whether or not there is one of that name."""
        return self.models is None or model in self.models


holder: ContextVar[Key | None] = ContextVar("holder", default=None)  # the key of the current request


class Keyring:
    """All keys of a server: those of the settings, and those of the file as it is now."""

    def __init__(self, settings: Settings) -> None:
        """Read the keys; raise SettingError for a file that cannot be used."""
        self._path = Path(settings.keys).absolute() if settings.keys else None
        self._rate_limit = settings.rate_limit
        self._own = list(_keys_of(settings))
        self._mark: tuple[int, ...] = ()
        self._keys: Sequence[Key] = self._own
        if self._path:
            self._mark = _mark_of(self._path)
            self._keys = self._read(self._path)
        _require_limits(self._keys)

    def knows(self, authorization: str) -> bool:
        """Return True if `authorization`, a header, holds a key, whatever that is good for."""
        return self.find(authorization) is not None

    @property
    def keys(self) -> Sequence[Key]:
        """The keys, as they were when they were last looked at."""
        return self._keys

    def find(self, authorization: str) -> Key | None:
        """Return the key that `authorization`, a header, holds, or None."""
        self._follow()
        found = _BEARER.fullmatch(authorization)
        if found is None:
            return None
        digest = hashlib.sha256(found[1].encode(errors="replace")).digest()
        # All are compared, each in constant time: how long it takes says nothing of any key.
        matching = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        return matching[0] if matching else None

    def _follow(self) -> None:
        """Take the file's keys if it has changed; keep those of before, and say so once, if they cannot be used."""
        if self._path is None:
            return
        mark = _mark_of(self._path)
        if mark == self._mark:
            return
        self._mark = mark
        try:
            keys = self._read(self._path)
            _require_limits(keys)
        except SettingError as error:
            log.error("The keys are not taken, those of before go on: %s", error)
            return
        self._keys = keys
        log.info("The file of keys has changed; %d keys are known now.", len(keys))

    def _read(self, path: Path) -> Sequence[Key]:
        found = read_keys(path, self._rate_limit)
        _require_different([*self._own, *found], path)
        return [*self._own, *found]


def read_keys(path: Path, rate_limit: str = "") -> list[Key]:
    """Return the keys of a file; `rate_limit` is that of those that have none. Raises SettingError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SettingError(f"{PREFIX}KEYS: {path} cannot be read: {error.strerror}.") from None
    try:
        value = json.loads(content) if len(content) <= _MAX_FILE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    entries = value.get("keys") if isinstance(value, dict) and set(value) == {"keys"} else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise SettingError(f'{path} must hold {{"keys": [...]}} as JSON, with at most {MAX_KEYS} keys.')
    _require_safe(path, mode, any(isinstance(entry, dict) and "key" in entry for entry in entries))
    return [_key(entry, f"{path}, key {number}", rate_limit) for number, entry in enumerate(entries, 1)]


def _key(entry: Any, where: str, rate_limit: str) -> Key:
    """Return the key that `entry`, an object of the file, describes; errors name it by `where`, its place."""
    if not isinstance(entry, dict):
        raise SettingError(f"{where} must be an object.")
    for member in entry:
        if member not in _MEMBERS:
            raise SettingError(f"{where}: {unknown_name('member', member, _MEMBERS)}")
    if not isinstance(entry.get("name"), str) or not entry["name"].isprintable() or not entry["name"]:
        raise SettingError(f"{where} must have a name, by which people know it.")
    scope, models, rate = entry.get("scope", INFERENCE), entry.get("models"), entry.get("rate_limit", rate_limit)
    if scope not in SCOPES:
        raise SettingError(f"{where}: scope must be one of: {', '.join(SCOPES)}.")
    if models is not None:
        if not isinstance(models, list) or not all(isinstance(model, str) and model for model in models):
            raise SettingError(f"{where}: models must be a list of names; leave it out for all of them.")
        if scope != INFERENCE:
            raise SettingError(f"{where}: models belong to a key for inference; one for {scope} is good for all of them.")
    if not isinstance(rate, str) or (rate and not RATE.fullmatch(rate)):
        raise SettingError(f"{where}: rate_limit must be a rate such as 100/second or 5000/hour.")
    return Key(entry["name"], _digest(entry, where), scope, None if models is None else frozenset(models), rate)


def _digest(entry: dict[str, Any], where: str) -> bytes:
    given = [entry[member] for member in ("key", "sha256") if member in entry]
    if len(given) != 1 or not isinstance(given[0], str):
        raise SettingError(f"{where} must have either key, a text, or sha256, its digest in hexadecimal digits.")
    if "key" in entry:
        return bytes.fromhex(sealed(given[0], where).removeprefix("sha256:"))
    if not _DIGEST.fullmatch(given[0].lower()):
        raise SettingError(f"{where}: sha256 must be 64 hexadecimal digits: printf %s KEY | sha256sum")
    return bytes.fromhex(given[0])


def _keys_of(settings: Settings) -> Iterable[Key]:
    """Give the keys of the settings."""
    for scope, key in ((INFERENCE, settings.inference_key), (MANAGEMENT, settings.management_key)):
        if key:
            yield Key(scope, bytes.fromhex(key.removeprefix("sha256:")), scope, rate_limit=settings.rate_limit)
    if settings.inference_key and settings.inference_key == settings.management_key:
        raise SettingError(f"{PREFIX}INFERENCE_KEY and {PREFIX}MANAGEMENT_KEY must differ.")


def _require_safe(path: Path, mode: int, has_keys: bool) -> None:
    """Raise SettingError for a file that others may write, or read if there are keys in it and not digests only.

    A group may read it: that is how orchestrators hand secrets to a server that runs as an ordinary user.
    """
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingError(f"{path} can be written by others than its owner, who could let themselves in: chmod 600 it.")
    if has_keys and mode & stat.S_IROTH:
        raise SettingError(f"{path} holds keys and can be read by everyone: chmod 600 it, or write digests (sha256) into it.")


def _require_different(keys: Sequence[Key], path: Path) -> None:
    for what, count in {"name": len({key.name for key in keys}), "key": len({key.digest for key in keys})}.items():
        if count < len(keys):
            raise SettingError(f"{path} has the same {what} twice, or one that the settings have; each must be different.")


def _require_limits(keys: Sequence[Key]) -> None:
    if any(key.rate_limit for key in keys) and find_spec("limits") is None:
        raise SettingError("A rate limit needs what is not installed here (limits): pip install 'servekit[keys]'")


def _mark_of(path: Path) -> tuple[int, ...]:
    """Return what changes when the file does; () if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode
