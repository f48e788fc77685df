"""The applications under attack, and the watch over what they do meanwhile."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.security.apps import ALL, Apps, write_root
from tests.security.watch import Watch, watch


@pytest.fixture(scope="session")
def apps(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """Every application, over stores of their own."""
    root = tmp_path_factory.mktemp("security")
    before, tempfile.tempdir = tempfile.tempdir, str(root)  # where a server keeps its state, and what it unpacks
    try:
        found = Apps(write_root(store, root / "served"))
        for name in ALL:
            found.app(name)
    finally:
        tempfile.tempdir = before
    return found


@pytest.fixture(autouse=True, scope="module")
def clean() -> None:
    """Free what the tests of other modules have left: servers that are freed later would remove their folders under the watch."""
    gc.collect()


@pytest.fixture(autouse=True)
def watched(apps: Apps, tmp_path: Path) -> Iterator[Watch]:
    """Fail a test during which a file outside of the stores was opened, or a socket, or a process started."""
    with watch.on(apps.root.parent, tmp_path):
        yield watch
    assert not watch.seen, watch.seen
