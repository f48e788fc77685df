"""The machine: cores, memory and GPUs that this process may use."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from servekit.cgroup import limit_of, number_in
from servekit.cli.doctor.report import Section, size
from servekit.config import usable_cores, visible_gpus

_SMI = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader"]
_SMI_SECONDS = 20.0  # it wakes a driver that sleeps


def machine(environ: Mapping[str, str], root: Path, user: int) -> Section:
    """Return what there is for the user of that number; `root` is where /proc, /sys and /dev are looked for."""
    section = Section("Machine")
    section.add("system", platform.platform())
    section.add("user", user, "root" if user == 0 else str(user))
    if user == 0:
        section.consider("As root the code of a model may do anything to this machine; run the server as a user of its own.")
    cores, affinity = os.cpu_count() or 1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    usable = usable_cores(root)
    section.add("cores", cores)
    if affinity:
        section.add("cores by affinity", affinity)
    quota = "" if usable >= (affinity or cores) else "cut by the quota of a control group"
    section.add("cores usable", usable, origin=quota)
    total, free, origin = memory(root)
    if total:
        section.add("memory", total, size(total), origin)
        section.add("memory free", free, size(free))
    _gpus(section, environ, root)
    return section


def memory(root: Path) -> tuple[int, int, str]:
    """Return how many bytes this process may use, how many of them are free, and what sets the limit; 0 if unknown."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:  # not Linux
        return 0, 0, ""
    amounts = {name: int(amount) * 1024 for name, amount in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    total, free = amounts.get("MemTotal", 0), amounts.get("MemAvailable", 0)
    found = limit_of(root, "memory", ("memory.max", "memory.limit_in_bytes"))
    if found is None or found[0] >= total:
        return total, free, ""
    limit, folder = found
    used = number_in(folder / "memory.current") or number_in(folder / "memory.usage_in_bytes") or 0
    return limit, max(0, min(free, limit - used + _reclaimable(folder))), "limit of a control group"


def _reclaimable(folder: Path) -> int:
    """Return how many bytes of a group's usage are files in memory that it can let go."""
    try:
        text = (folder / "memory.stat").read_text()
    except OSError:
        return 0
    found = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _gpus(section: Section, environ: Mapping[str, str], root: Path) -> None:
    count = visible_gpus(environ, root)
    section.add("GPUs", count, "none" if not count else str(count))
    if not count:
        return
    for number, line in enumerate(_smi(environ)):
        section.add(f"GPU {number}", line)


def _smi(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each GPU of the machine, as NVIDIA's own tool tells: name, memory, free memory."""
    if shutil.which(_SMI[0], path=environ.get("PATH")) is None:
        return []
    try:
        ended = subprocess.run(_SMI, env=dict(environ), capture_output=True, text=True, timeout=_SMI_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in ended.stdout.splitlines()] if ended.returncode == 0 else []
