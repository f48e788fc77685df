"""The machine and the code that a result belongs to, and which cores do what."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "onnxruntime", "flask", "gunicorn", "numpy", "pillow", "httptools", "greenlet")


@dataclasses.dataclass(frozen=True)
class Cores:
    """The cores of the servers, the core of the load generator, and a sentence that says so."""

    servers: tuple[int, ...]
    load: int
    note: str


def split_cores(usable: set[int] | None = None) -> Cores:
    """Give the last of the `usable` cores to the load generator and the others to the servers."""
    cores = sorted(os.sched_getaffinity(0) if usable is None else usable)
    if len(cores) == 1:
        return Cores((cores[0],), cores[0], "One core for the servers and the load generator: they disturb one another.")
    note = f"{len(cores) - 1} of {len(cores)} cores for the servers, one for the load generator."
    return Cores(tuple(cores[:-1]), cores[-1], note)


def describe() -> dict[str, Any]:
    """Return what a reader must know of this machine: processor, cores, memory, kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that servekit runs on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> dict[str, Any]:
    """Return the commit of the working tree, and whether files differ from it."""
    written = ("bench/README.md", "bench/faults/README.md", "bench/results", "bench/*.png")  # by the benches themselves
    status = _git("status", "--porcelain", "--", *(f":!{path}" for path in written))
    return {"id": _git("rev-parse", "--short", "HEAD") or "unknown", "is_changed": bool(status)}


def _cpu() -> str:
    """Return the name of the processor with its family and model: some machines have all share one name."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    family, model = fields.get("cpu family"), fields.get("model")
    return fields.get("model name", platform.machine()) + (f" (family {family}, model {model})" if family else "")


def _git(*arguments: str) -> str:
    ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    return ended.stdout.strip() if ended.returncode == 0 else ""
