"""What the control groups of this process allow it: cgroup v2, then v1."""

import math
from collections.abc import Iterator
from pathlib import Path

_BOUNDLESS = 2**60  # v1 writes "no limit" as a number near 2**63


def limit_of(root: Path, controller: str, names: tuple[str, str]) -> tuple[int, Path] | None:
    """Return the lowest limit of this process's group and its parents, and the folder that says so; None: there is none.

    `root` is where /proc and /sys are looked for, `names` are the files of v2 and v1 that hold the limit.
    """
    found = []
    for folder, is_v1 in _folders(root, controller):
        value = number_in(folder / names[is_v1])
        if value is not None and value < _BOUNDLESS:
            found.append((value, folder))
    return min(found, default=None, key=lambda each: each[0])


def core_quotas(root: Path) -> list[int]:
    """Return the quotas of cores of this process's group and its parents, rounded up; `root` is where /proc and /sys are."""
    quotas = (_quota_of(folder, is_v1) for folder, is_v1 in _folders(root, "cpu"))
    return [quota for quota in quotas if quota is not None]


def number_in(path: Path) -> int | None:
    """Return the number that a file holds; None if it holds none, or is not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not Linux, another version, or the word "max"
        return None


def _folders(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Give the folders of this process's groups with that controller, and whether they are of v1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        # In a container the path may be that of the host; the mount's own root then holds the limit.
        base = root / "sys/fs/cgroup" / (controller if controllers else "")
        group = base / path.lstrip("/")
        for folder in [group, *group.parents]:
            if folder.is_relative_to(base):
                yield folder, bool(controllers)


def _quota_of(folder: Path, is_v1: bool) -> int | None:
    """Return the cores that a folder of a group allows, rounded up; None if it sets no quota."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if is_v1 else ("cpu.max",)
    try:
        quota, period = (int(word) for name in names for word in (folder / name).read_text().split())
    except (OSError, ValueError):  # it says nothing, or the word "max"
        return None
    return math.ceil(quota / period) if quota > 0 and period > 0 else None  # v1 writes "no quota" as -1
