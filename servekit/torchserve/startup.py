"""What the master does before the first worker of a server that stands in for TorchServe. It starts no thread."""

import os
from pathlib import Path

from servekit.config import Settings
from servekit.desired import Entry
from servekit.state import State
from servekit.torchserve.entries import Loader, startup_entries
from servekit.torchserve.properties import Properties
from servekit.torchserve.tokens import write_keys

KEY_FILE = Path("key_file.json")  # in the folder that the server is started in, where TorchServe's scripts look for it


def prepare(settings: Settings, state: State) -> list[Entry]:
    """Write the keys, unless they are switched off, and return the models to begin with, unpacked.

    Raises StartupError for an archive that the operator has named and that cannot be served.
    """
    properties = Properties.parse(settings.torchserve)
    if not properties.disable_token_authorization:
        write_keys(KEY_FILE, properties.token_expiration_min)
    loader = Loader(properties, state.archive_folder, lambda folder: state.drop_archive(str(folder)), packages_folder())
    return startup_entries(properties, loader)


def packages_folder() -> Path:
    """Return where the packages that archives ask for are kept: they outlive the server, for installing takes long."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "servekit" / "packages"
