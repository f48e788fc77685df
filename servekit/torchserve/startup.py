"""What the master does before the first worker of a server that stands in for TorchServe. It starts no thread."""

import atexit
import logging
import os
from pathlib import Path

from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import StartupError
from servekit.state import State
from servekit.torchserve.entries import Loader, startup_entries
from servekit.torchserve.properties import properties_of
from servekit.torchserve.tokens import write_keys

KEY_FILE = Path("key_file.json")  # in the folder that the server is started in, where TorchServe's scripts look for it


def prepare(settings: Settings, state: State) -> list[Entry]:
    """Write the keys, unless they are switched off, and return the models to begin with, unpacked.

    Raises StartupError if the keys cannot be written, and for an archive that the operator has named and that cannot be
    served.
    """
    properties = properties_of(settings)
    _show_what_handlers_log()
    if not properties.disable_token_authorization:
        _write_keys(properties.token_expiration_min)
    loader = Loader(properties, state.archive_folder, lambda folder: state.drop_archive(str(folder)), packages_folder())
    return startup_entries(properties, loader)


def packages_folder() -> Path:
    """Return where the packages that archives ask for are kept: they outlive the server, for installing takes long."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "servekit" / "packages"


def _write_keys(minutes: float) -> None:
    """Write the keys into the current folder; they go with this process, by whatever way it ends but a kill."""
    path = KEY_FILE.absolute()
    try:
        write_keys(path, minutes)
    except OSError as error:
        raise StartupError(
            f"The keys cannot be written to {path}: {error.strerror}; start in a folder that you may write to, "
            "or turn tokens off with --disable-token-auth."
        ) from None
    atexit.register(_remove_keys, path, os.getpid())


def _remove_keys(path: Path, master: int) -> None:
    if os.getpid() == master:  # its workers run what the master has registered, too
        path.unlink(missing_ok=True)


def _show_what_handlers_log() -> None:
    """Let what handlers log with Python's `logging` go where the server's own lines go, from INFO on as in TorchServe."""
    root, ours = logging.getLogger(), logging.getLogger("servekit")
    if not root.handlers:  # else somebody has configured it
        root.handlers = list(ours.handlers)
        root.setLevel(max(logging.INFO, ours.level))
