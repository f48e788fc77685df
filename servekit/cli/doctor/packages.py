"""The packages that servekit uses: their versions, and the ones below which something is known to be wrong."""

import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

from servekit.cli.doctor.report import Section

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)>=([\d.]+)(?:; extra == [\"'](\w+)[\"'])?")
_SERVING = ("", "fast", "onnx", "grpc", "triton", "openapi", "torchserve", "keys", "tracing")  # extras of servers
_FASTER = ("greenlet", "httptools")  # the event-loop worker is made of them


def packages(
    requirements: Callable[[str], Sequence[str] | None] = metadata.requires,
    version_of: Callable[[str], str] = metadata.version,
) -> Section:
    """Return the versions of what servekit serves with; what is asked for comes from its own package's metadata."""
    section = Section("Packages")
    section.add("Python", sys.version.split()[0])
    try:
        wanted = requirements("servekit") or []
    except metadata.PackageNotFoundError:
        section.consider("servekit itself is not installed as a package, so its requirements are not known; run pip install.")
        return section
    missing: dict[str, list[str]] = {}
    for found in filter(None, map(_REQUIREMENT.fullmatch, wanted)):
        name, floor, extra = found[1], found[2], found[3] or ""
        if extra not in _SERVING:
            continue
        try:
            version = version_of(name)
        except metadata.PackageNotFoundError:
            missing.setdefault(extra, []).append(name)
            continue
        section.add(name, version, f"{version}", f"{floor} or newer")
        if _numbers(version) < _numbers(floor):
            remedy = f"run pip install '{name}>={floor}'"
            section.change(f"{name} {version} is older than {floor}, which servekit is made for; {remedy}.")
    _name_missing(section, missing)
    return section


def _name_missing(section: Section, missing: dict[str, list[str]]) -> None:
    for extra, names in missing.items():
        if not extra:
            section.stops(f"{', '.join(names)} must be installed; run pip install servekit.")
        elif set(names) & set(_FASTER) and extra == "fast":
            section.change(
                f"{', '.join(names)} must be installed for the event-loop worker, which shares forward passes and "
                "stands slow clients; run pip install 'servekit[fast]'."
            )
        section.add(f"of {extra or 'servekit'}", names, f"not installed: {', '.join(names)}")


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with; what follows them (rc1, +cpu) does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:  # 27.0 is 27
        numbers.pop()
    return tuple(numbers)
