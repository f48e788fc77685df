"""A working directory for one thread: handlers open the files of their archive by relative names."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_CLONE_FS = 0x200  # of linux/sched.h: the working directory and the umask
_thread = threading.local()


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Within it, relative names of this thread and of those that it starts are looked up in `folder`.

    Only Linux has working directories of threads; elsewhere, and in the main thread, whose directory is that of the
    process, nothing happens.
    """
    if not _has_own_directory():
        yield
        return
    before = _current()
    try:
        os.chdir(folder)
    except FileNotFoundError:  # its version has been removed since the request came, which is still answered
        os.chdir("/")
    try:
        yield
    finally:
        os.chdir(before)


def _current() -> str:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return "/"


def _has_own_directory() -> bool:
    if threading.current_thread() is threading.main_thread():
        return False
    if not hasattr(_thread, "is_own"):
        # A container may forbid it: then the handler needs absolute names.
        _thread.is_own = sys.platform == "linux" and ctypes.CDLL(None).unshare(_CLONE_FS) == 0
    return bool(_thread.is_own)
