"""The watch itself: each thing that it looks for is seen when it is done."""

import ctypes
import os
import pickle
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.security.apps import Apps
from tests.security.hostile import pickled
from tests.security.watch import Watch


def connect() -> None:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), 0.1)


def ask_by_urllib() -> None:
    with suppress(urllib.error.URLError):
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=0.1)


def load_library() -> None:
    with suppress(OSError):
        ctypes.CDLL("libnone-such.so")


def open_outside() -> None:
    Path("/etc/passwd").open().close()


DEEDS: dict[str, Callable[[], object]] = {
    "open": open_outside,
    "os.remove": lambda: Path("/none/such").unlink(missing_ok=True),
    "socket.connect": connect,
    "urllib.Request": ask_by_urllib,
    "os.system": lambda: os.system("true"),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
    "pickle.find_class": lambda: pickle.loads(pickle.dumps(Path)),
    "ctypes.dlopen": load_library,
}


@pytest.mark.parametrize("event", DEEDS)
def test_what_must_not_happen_is_seen(watched: Watch, event: str) -> None:
    assert not watched.seen
    DEEDS[event]()
    assert any(seen.startswith(f"{event} ") for seen in watched.seen)
    watched.seen.clear()


def test_a_link_out_of_the_store_is_seen(apps: Apps, watched: Watch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "own").write_text("allowed")
    assert not watched.seen
    (tmp_path / "link").read_text()
    assert len(watched.seen) == 1
    watched.seen.clear()


def test_a_pickle_that_is_read_would_be_seen_twice_over(watched: Watch, tmp_path: Path) -> None:
    pickle.loads(pickled(tmp_path / "canary"))
    assert (tmp_path / "canary").read_text() == "run"
    assert watched.seen
    watched.seen.clear()
