"""The folder in which the workers of one server share their metrics."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from servekit.config import MULTIPROCESS_DIR

MEMORY_BYTES = 2**24  # free in memory for the files to be there; else they are on the disk


def prepare_folder() -> None:
    """Name a folder for the metrics of this master's workers: the user's, emptied, or a new one, in memory if it has room.

    Raises RuntimeError, with a sentence for the operator, if there can be none.
    """
    if given := os.environ.get(MULTIPROCESS_DIR):
        folder = Path(given)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in (*folder.glob("*.db"), *folder.glob("*.db.new"), *folder.glob("statistics_*.bin*")):
                file.unlink()
        except OSError as error:
            raise RuntimeError(f"{MULTIPROCESS_DIR}={given} cannot be used as a folder: {error.strerror}.") from None
        return
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and _room_in("/dev/shm") >= MEMORY_BYTES else None
    try:
        os.environ[MULTIPROCESS_DIR] = tempfile.mkdtemp(prefix=f"servekit-metrics-{os.getpid()}-", dir=memory)
    except OSError as error:
        raise RuntimeError(f"There is no folder for the metrics ({error.strerror}); name one in {MULTIPROCESS_DIR}.") from None
    atexit.register(_remove, os.environ[MULTIPROCESS_DIR], os.getpid())


def _room_in(folder: str) -> int:
    """Return how many bytes more `folder` can hold."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _remove(folder: str, master: int) -> None:
    if os.getpid() == master:  # its workers run what the master has registered, too
        shutil.rmtree(folder, ignore_errors=True)
