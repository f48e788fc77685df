"""What TorchServe measures of its machine, read when it is asked for: processors, memory, disk, GPUs."""

import ctypes
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path("/")
_MIB, _GIB = 2**20, 2**30
MIN_SECONDS = 0.5  # the kernel counts hundredths of a second: over less time than this they say little

Reading = tuple[str, str | None, float]  # metric, GPU or None, value


class Processors:
    """How busy all processors were since the last time that this was asked, or since it was made."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._file = root / "proc/stat"
        self._since = time.monotonic()
        self._last = self._read()
        self._percent = 0.0

    def percent(self) -> float | None:
        """Return 0 to 100, of at least MIN_SECONDS; None where the system does not say."""
        now = self._read()
        if now is None or self._last is None:
            return None
        busy, total = now[0] - self._last[0], now[1] - self._last[1]
        if time.monotonic() - self._since >= MIN_SECONDS and total > 0:
            self._percent = round(min(max(100.0 * busy / total, 0.0), 100.0), 1)
            self._since, self._last = time.monotonic(), now
        return self._percent

    def _read(self) -> tuple[int, int] | None:
        """Return the ticks of all processors that were busy, and all ticks."""
        try:
            words = self._file.read_text().split("\n", 1)[0].split()
        except OSError:  # not Linux
            return None
        ticks = [int(word) for word in words[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
        return sum(ticks) - sum(ticks[3:5]), sum(ticks)


def readings(processors: Processors, root: Path = _ROOT) -> Iterator[Reading]:
    """Give what can be measured on this machine; what cannot is left out."""
    percent = processors.percent()
    if percent is not None:
        yield "CPUUtilization", None, percent
    yield from _memory(root / "proc/meminfo")
    yield from _disk(root)
    yield from gpus()


def _memory(file: Path) -> Iterator[Reading]:
    try:
        lines = file.read_text().splitlines()
    except OSError:  # not Linux
        return
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
    if not {"MemTotal", "MemAvailable"} <= kib.keys():
        return
    total, available = kib["MemTotal"], kib["MemAvailable"]
    yield "MemoryUsed", None, (total - available) / 1024
    yield "MemoryAvailable", None, available / 1024
    yield "MemoryUtilization", None, round(100.0 * (total - available) / total, 1)


def _disk(path: Path) -> Iterator[Reading]:
    """Give the disk as `df` does: blocks kept for the system are neither used nor available."""
    disk = os.statvfs(path)
    used, free = ((disk.f_blocks - disk.f_bfree) * disk.f_frsize, disk.f_bavail * disk.f_frsize)
    yield "DiskUsage", None, used / _GIB
    yield "DiskAvailable", None, free / _GIB
    yield "DiskUtilization", None, round(100.0 * used / max(used + free, 1), 1)


class _Memory(ctypes.Structure):
    """nvmlMemory_t: bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sampling period."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


@cache
def _driver() -> Any:
    """Return NVIDIA's management library, ready for use, or None where there is no GPU; it opens no GPU."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def gpus(library: Any = None) -> Iterator[Reading]:
    """Give the memory and use of each GPU that `library`, by default NVIDIA's own, finds."""
    library = library or _driver()
    count = ctypes.c_uint()
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return
    for index in range(count.value):
        device, memory, use = ctypes.c_void_p(), _Memory(), _Utilization()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(device)) != 0:
            continue
        if library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) == 0:
            yield "GPUMemoryUtilization", str(index), 100.0 * memory.used / max(memory.total, 1)
            yield "GPUMemoryUsed", str(index), memory.used / _MIB
        if library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(use)) == 0:  # not on a GPU cut into instances
            yield "GPUUtilization", str(index), float(use.gpu)
