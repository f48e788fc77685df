"""What the system allows: descriptors, shared memory, disks, processes, and what else a server runs into."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servekit.cgroup import limit_of, number_in
from servekit.cli.doctor.report import Section, size
from servekit.config import MULTIPROCESS_DIR, Settings

OWN_DESCRIPTORS = 100  # of a worker, besides clients' connections: its log, loop, metrics, libraries' files
SHM_BYTES = 16 * 2**20  # for heartbeats and metrics: some hundred kilobytes a worker, more with many models
DISK_BYTES = 200 * 2**20  # for logs and uploads of archives; below it a disk is about to be full
THREADS = 40  # of a worker: its own few, those of gthread, and those of libraries
GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "xen")

Usage = Callable[[Path], Any]  # as shutil.disk_usage


def limits(
    settings: Settings,
    gunicorn: Mapping[str, Any],
    environ: Mapping[str, str],
    cores: int,
    root: Path,
    descriptors: tuple[int, int],
    usage: Usage = shutil.disk_usage,
) -> Section:
    """Return the limits that a server meets; `gunicorn` is what `gunicorn_settings.read` returns.

    `descriptors` is the soft and the hard limit of open files, `root` where /proc, /sys and /dev are looked for.
    """
    section = Section("Limits")
    _descriptors(section, gunicorn.get("worker_connections", 1000), descriptors)
    _shared_memory(section, root, usage)
    _metrics_folder(section, environ)
    _disks(section, settings, gunicorn, usage)
    _processes(section, gunicorn.get("workers", 1), root)
    _queue(section, gunicorn.get("backlog", 2048), root)
    _threads(section, gunicorn.get("workers", 1), cores, environ)
    _clock(section, settings.model_store, root)
    return section


def _descriptors(section: Section, connections: int, limit: tuple[int, int]) -> None:
    soft, hard = (None if value < 0 else value for value in limit)
    section.add("open files (ulimit -n)", soft, f"{soft or 'unlimited'} (up to {hard or 'unlimited'})")
    needed = connections + OWN_DESCRIPTORS
    if soft is not None and soft < needed:
        how = f"raise it to {needed} (`ulimit -n`, LimitNOFILE, --ulimit nofile)"
        section.change(
            f"A worker may open {soft} files, and takes {connections} connections beside its own; {how}, or lower "
            f"worker_connections to {max(1, soft - OWN_DESCRIPTORS)}."
        )


def _shared_memory(section: Section, root: Path, usage: Usage) -> None:
    folder = root / "dev/shm"
    if not os.access(folder, os.W_OK):
        section.add("/dev/shm", None, "none that can be written")
        section.change(
            "There is no /dev/shm to write to, so heartbeats and metrics lie on a disk, where a busy moment makes a worker "
            "look dead; mount a tmpfs there."
        )
        return
    total, _, free = usage(folder)
    section.add("/dev/shm", total, f"{size(total)}, {size(free)} free")
    section.add("/dev/shm free", free, size(free))
    if free < SHM_BYTES:
        section.change(f"/dev/shm has {size(free)} left for heartbeats and metrics; free some, or make it larger (--shm-size).")


def _metrics_folder(section: Section, environ: Mapping[str, str]) -> None:
    """Look at the folder that the user names for metrics, which the start makes and empties."""
    given = environ.get(MULTIPROCESS_DIR)
    if not given:
        return
    folder = Path(given)
    existing = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    section.add("folder of the metrics", given, origin=MULTIPROCESS_DIR)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        section.stops(f"{MULTIPROCESS_DIR}={given} cannot be used as a folder; name one that can be written, or unset it.")


def _disks(section: Section, settings: Settings, gunicorn: Mapping[str, Any], usage: Usage) -> None:
    folders = {"model store": settings.model_store, "temporary folder": Path(tempfile.gettempdir())}
    for name in ("accesslog", "errorlog"):
        if gunicorn.get(name) not in (None, "-"):
            folders[name] = Path(gunicorn[name]).parent
    for name, folder in folders.items():
        if not folder.is_dir():  # the store's own section says so of the store
            section.add(f"disk of the {name}", None, f"{folder} is no folder")
            if name.endswith("log"):
                section.stops(f"The folder of the {name}, {folder}, does not exist; make it, or name another.")
            continue
        free = usage(folder)[2]
        section.add(f"disk of the {name}", free, f"{size(free)} free")
        if free < DISK_BYTES:
            section.change(f"The disk of the {name} has {size(free)} left; free some.")
        if not os.access(folder, os.W_OK) and name != "model store":
            section.change(f"The {name} {folder} cannot be written; change its rights, or name another.")


def _processes(section: Section, workers: int, root: Path) -> None:
    found = limit_of(root, "pids", ("pids.max", "pids.max"))
    if found is None:
        section.add("processes of the control group", None, "no limit")
        return
    most, folder = found
    room = most - (number_in(folder / "pids.current") or 0)
    section.add("processes of the control group", most, f"{most}, {room} of them free")
    if room < workers * THREADS:
        section.change(
            f"The control group allows {room} more processes and threads, and {workers} workers may need {workers * THREADS}; "
            "raise pids.max (--pids-limit)."
        )


def _queue(section: Section, backlog: int, root: Path) -> None:
    most = number_in(root / "proc/sys/net/core/somaxconn")
    if most is None:
        return
    section.add("connections that wait (somaxconn)", most)
    if most < backlog:
        section.consider(
            f"The kernel lets {most} connections wait to be taken and Gunicorn asks for {backlog}; raise "
            "net.core.somaxconn if clients are refused in bursts."
        )


def _threads(section: Section, workers: int, cores: int, environ: Mapping[str, str]) -> None:
    given = environ.get("OMP_NUM_THREADS", "")
    section.add("OMP_NUM_THREADS", given or "1", origin="environment" if given else "servekit")
    if given.isdecimal() and int(given) > 1 and int(given) * workers > cores:
        section.change(
            f"OMP_NUM_THREADS={given} gives each of {workers} workers {given} threads of arithmetic on {cores} cores, where "
            "they hinder one another; unset it."
        )


def _clock(section: Section, store: Path, root: Path) -> None:
    path = root / "sys/devices/system/clocksource/clocksource0/current_clocksource"
    source = path.read_text().strip() if path.is_file() else ""
    if source:
        section.add("clock", source)
        if source not in GOOD_CLOCKS:
            section.consider(f"The clock {source} is slow to read, and every request reads it; choose tsc if the machine has it.")
    newest = max((path.stat().st_mtime for path in store.glob("*/*") if path.is_dir()), default=0.0)
    if newest > time.time() + 60:
        section.change("The clock is behind the newest files of the model store; set it, or let NTP do so.")
