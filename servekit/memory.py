"""The memory of processes: how much one holds, and how this one gives back what a model held. Standard library only."""

import gc
import os
from pathlib import Path


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has ended, or where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def free_garbage() -> None:
    """Free what nobody can reach, also of that which was kept from the garbage collector when the server began.

    The modules of an archive refer to themselves: a model that goes would stay. What is left is kept from it again.
    """
    is_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if is_frozen:
        gc.freeze()
