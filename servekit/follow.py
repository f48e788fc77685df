"""The threads of a worker that keep its models as they should be: one follows the desired state, one looks at the store."""

import logging
import threading
import time
from pathlib import Path

from servekit.config import Settings
from servekit.desired import Desired
from servekit.errors import ModelLoadError, Overloaded, WorkersFailed
from servekit.repository import Repository
from servekit.spec import scan
from servekit.state import State
from servekit.stores import folder_entry

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
        self._refused: dict[tuple[str, int], Files] = {}  # what a folder held when it could not be served

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
        """Serve the newest version of each model, if it is newer than the one that is served and can be loaded."""
        desired = self._repository.desired()
        for name, versions in scan(self._store, warns=False).items():  # the start has warned
            newest = versions[-1]
            served = desired.find(name)
            if served is None or served.format == "servekit" and newest > int(served.version):
                self._serve(desired, name, newest)

    def _serve(self, desired: Desired, name: str, version: int) -> None:
        entry = folder_entry(self._store, name, version, desired.workers)
        try:
            files = _files(Path(entry.folder))
        except OSError:  # it is being written, or removed: the next look comes soon
            return
        if self._refused.get((name, version)) == files:
            return
        try:
            self._repository.replace(entry)
        except Overloaded as error:  # another change takes long: the next look comes soon
            log.warning("%s/%s is not served yet: %s", name, version, error)
        except (ModelLoadError, WorkersFailed) as error:
            self._refused[name, version] = files
            self._repository.note_failure(*entry.key, str(error))
            log.error("%s/%s is not served, what was served goes on: %s", name, version, error)
        else:
            log.info("Serving %s/%s now.", name, version)


def _files(folder: Path) -> Files:
    """Return names, sizes and times of what a folder holds: they change while it is still being copied."""
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)
