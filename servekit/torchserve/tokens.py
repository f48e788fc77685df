"""Keys for TorchServe's APIs: one file that the master writes, that owners read, and that all workers check against."""

import contextlib
import datetime
import fcntl
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from servekit.torchserve.refusals import Refusal

MANAGEMENT, INFERENCE, RENEWAL = "management", "inference", "API"  # names of the keys in the file
KEY_BYTES = 24  # 192 bits, written with 32 characters

_BEARER = re.compile(r"Bearer\s+(\S+)")
_KEY, _EXPIRATION = "key", "expiration time"
_MODE = 0o600  # whoever can read the keys has them
_LONGEST = datetime.datetime.max.replace(tzinfo=datetime.UTC)


def write_keys(path: Path, expiration_minutes: float) -> None:
    """Write new keys into `path`, which only its owner can read at any time; raise OSError if that cannot be done."""
    timed = {name: _new_key(expiration_minutes) for name in (MANAGEMENT, INFERENCE)}
    _write(path, {**timed, RENEWAL: {_KEY: secrets.token_urlsafe(KEY_BYTES)}})


class Tokens:
    """Checks the keys of requests against the file, as it is now: another worker may have renewed them."""

    def __init__(self, path: Path, expiration_minutes: float) -> None:
        self._path = path
        self._minutes = expiration_minutes
        self._known: tuple[tuple[int, ...], Mapping[str, Any]] = ((), {})
        self._renewing = threading.Lock()

    def check(self, name: str, authorization: str | None) -> None:
        """Raise Refusal unless `authorization`, a header, holds the key called `name` and that has not expired."""
        if not self._holds(name, authorization):
            raise _failed("Authorization")

    def knows(self, authorization: str) -> bool:
        """Return True if `authorization`, a header, holds one of the keys, whatever that opens."""
        return any(self._holds(name, authorization) for name in (MANAGEMENT, INFERENCE, RENEWAL))

    def renew(self, name: str | None, authorization: str | None) -> None:
        """Make a new management or inference key, for all workers; raise Refusal unless the header holds the API key."""
        if name not in (MANAGEMENT, INFERENCE) or not self._holds(RENEWAL, authorization):
            raise _failed("Authentication")
        with self._locked():
            _write(self._path, {**self._read(), name: _new_key(self._minutes)})

    def _holds(self, name: str, authorization: str | None) -> bool:
        found = _BEARER.fullmatch(authorization or "")
        entry = self._keys().get(name)
        if found is None or not isinstance(entry, dict) or not isinstance(entry.get(_KEY), str):
            return False
        # In constant time, so that nobody learns from its length how much of a key is right.
        is_key = hmac.compare_digest(found[1].encode(), entry[_KEY].encode())
        return is_key and (name == RENEWAL or _is_current(entry.get(_EXPIRATION)))

    def _keys(self) -> Mapping[str, Any]:
        """Return the keys; the file is read only if it has changed. Without a file nobody has a key."""
        try:
            status = os.stat(self._path)
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._known[0] != mark:
                self._known = (mark, self._read())
        except (OSError, ValueError):
            return {}
        return self._known[1]

    def _read(self) -> Mapping[str, Any]:
        content = json.loads(self._path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("the keys are not an object")
        return content

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep the other threads and workers from renewing a key meanwhile: each would write the other's old one."""
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self._renewing:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
        finally:
            os.close(folder)


def _failed(what: str) -> Refusal:
    message = f"Token {what} failed. Token either incorrect, expired, or not provided correctly"
    return Refusal("InvalidKeyException", message)


def _new_key(minutes: float) -> dict[str, str]:
    try:
        expiration = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    except OverflowError:
        expiration = _LONGEST
    text = expiration.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {_KEY: secrets.token_urlsafe(KEY_BYTES), _EXPIRATION: text}


def _is_current(expiration: Any) -> bool:
    try:
        moment = datetime.datetime.fromisoformat(expiration)
        return datetime.datetime.now(datetime.UTC) < moment
    except (TypeError, ValueError):
        return False


def _write(path: Path, keys: Mapping[str, Any]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, _MODE)
            json.dump(keys, file, indent=2)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
