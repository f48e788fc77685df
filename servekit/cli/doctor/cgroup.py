"""What the control groups of this process allow it: cgroup v2, then v1."""

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
