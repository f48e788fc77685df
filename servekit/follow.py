"""The threads of a worker that keep its models as they should be: one follows the desired state, one looks at the store."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from servekit.config import Settings
from servekit.desired import Desired, Entry
from servekit.errors import ModelLoadError, ModelNotFound, Overloaded, WorkersFailed
from servekit.repository import Repository
from servekit.state import State
from servekit.stores import STORED, entries_in, listing

log = logging.getLogger(__name__)

Files = tuple[tuple[str, int, int], ...]


def start_following(repository: Repository, state: State, settings: Settings) -> None:
    """Start what keeps `repository` as `state` says and, if that is set, what looks for new versions in the store."""
    threading.Thread(target=repository.follow, name="servekit-follow", daemon=True).start()
    if settings.poll_seconds:
        poller = Poller(repository, settings.model_store)
        threading.Thread(target=poller.run, args=(state, settings.poll_seconds), name="servekit-poll", daemon=True).start()


class Poller:
    """Serves version folders that appear in a store; of all workers' pollers one does the work."""

    def __init__(self, repository: Repository, store: Path) -> None:
        self._repository = repository
        self._store = store
        self._refused: dict[tuple[str, str], Files] = {}  # what a folder held when it could not be served

    def run(self, state: State, seconds: float) -> None:
        """Look every so many seconds, for ever, once this worker is the one that does."""
        while True:
            time.sleep(seconds)
            if state.claim("poll"):
                try:
                    self.look()
                except Exception:  # the disk may fail in any way; the next look may go well
                    log.exception("The model store could not be looked at")

    def look(self) -> None:
        """Serve what the store says of each model, if it is newer than what is served and can be loaded."""
        desired = self._repository.desired()
        for name in listing(self._store):  # the start has warned of other folders
            try:
                entries = entries_in(self._store, name, workers=desired.workers)
            except ModelNotFound:  # it has been removed meanwhile, or its policy names none
                continue
            if _is_news(desired, entries):
                self._serve(entries)

    def _serve(self, entries: Sequence[Entry]) -> None:
        newest = entries[0]
        try:
            files = tuple(file for folder in _folders(entries) for file in _files(folder))
        except OSError:  # it is being written, or removed: the next look comes soon
            return
        if self._refused.get(newest.key) == files:
            return
        try:
            if newest.format == "servekit":
                self._repository.replace(newest)
            else:
                self._repository.serve(entries)
        except Overloaded as error:  # another change takes long: the next look comes soon
            log.warning("%s/%s is not served yet: %s", *newest.key, error)
        except (ModelLoadError, WorkersFailed) as error:
            self._refused[newest.key] = files
            self._repository.note_failure(*newest.key, str(error))
            log.error("%s/%s is not served, what was served goes on: %s", *newest.key, error)
        else:
            log.info("Serving %s/%s now.", *newest.key)


def _is_news(desired: Desired, entries: Sequence[Entry]) -> bool:
    """Return True if `entries`, what the store says of a model, are to take the place of what is served."""
    newest, served = entries[0], desired.find(entries[0].name)
    if served is None:
        return True
    if served.format not in STORED:
        return False
    if newest.format == served.format == "servekit":
        return int(newest.version) > int(served.version)
    before = desired.models[newest.name]
    if "config" in served.options:  # a request has chosen what is served, as long as no newer version comes
        return int(newest.version) > int(served.version)
    return len(before) != len(entries) or not all(
        entry.version in before and entry.is_same_model(before[entry.version]) for entry in entries
    )


def _folders(entries: Sequence[Entry]) -> list[Path]:
    """Return the folders whose files make `entries`: their own, and where Triton's config lies."""
    own = [Path(entry.folder) for entry in entries]
    return own if entries[0].format == "servekit" else [own[0].parent, *own]


def _files(folder: Path) -> Files:
    """Return names, sizes and times of what a folder holds: they change while it is still being copied."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)
