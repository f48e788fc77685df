"""The memory of processes: how much one holds, and how this one gives back what a model held. Standard library only."""

import ctypes
import gc
import os
from pathlib import Path

LARGE_BYTES = 2**20  # a block of memory from this size on is the system's again as soon as it is freed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended, or where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> None:
    """Let what is freed go back to the system: glibc keeps blocks of up to 32 MiB once it has seen one freed.

    Without this each worker would keep the size of the largest body that it has ever read.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's; others have no such habit
        libc.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, LARGE_BYTES)


def free_garbage() -> None:
    """Free what nobody can reach, also of that which was kept from the garbage collector when the server began.

    The modules of an archive refer to themselves: a model that goes would stay. What is left is kept from it again.
    """
    is_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if is_frozen:
        gc.freeze()
