"""The folder in which the workers of one server share their metrics."""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

from servekit.config import MULTIPROCESS_DIR

PREFIX = "servekit-metrics-"
SETTLED_SECONDS = 60.0  # after which a folder whose lock nobody holds is one that is left over
MEMORY_BYTES = 2**24  # free in memory for the files to be there; else they are on the disk

_LOCK = "lock"


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
    remove_left_over(Path(memory or tempfile.gettempdir()))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=memory))
        # Held as long as the master or one of its workers lives, which share what is open.
        fcntl.flock(os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_SH)
    except OSError as error:
        raise RuntimeError(f"There is no folder for the metrics ({error.strerror}); name one in {MULTIPROCESS_DIR}.") from None
    os.environ[MULTIPROCESS_DIR] = str(folder)
    atexit.register(_remove, os.environ[MULTIPROCESS_DIR], os.getpid())


def remove_left_over(base: Path) -> None:
    """Remove the folders in `base` that masters which were killed have left, and nobody uses any more."""
    for lock in base.glob(f"{PREFIX}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # somebody else's, or in use
            if time.time() - lock.stat().st_mtime < SETTLED_SECONDS:
                continue
            file = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
            finally:
                os.close(file)


def _room_in(folder: str) -> int:
    """Return how many bytes more `folder` can hold."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _remove(folder: str, master: int) -> None:
    if os.getpid() == master:  # its workers run what the master has registered, too
        shutil.rmtree(folder, ignore_errors=True)
