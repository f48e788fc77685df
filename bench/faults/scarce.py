"""A server that runs out of descriptors, of disk, and of shared memory."""

import contextlib
import ctypes
import os
import resource
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.faults import rig
from bench.faults.crowd import IDLE, crowd
from bench.faults.fault import Fault, NotMeasured, Outcome
from bench.faults.ledger import Load

IDLERS, DESCRIPTORS = 1000, 128
RATE = 100.0
SECONDS = 4.0
BUSY_SHARE = 0.5  # of a core: what a loop that turns without an end would exceed, three times over
FEW_LINES = 3  # about one shortage, of each worker
KIB = 1024
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000  # linux/sched.h, linux/mount.h


def no_descriptors() -> Outcome:
    """Leave each worker 128 descriptors, and let 1000 connections come and be idle."""
    with rig.server() as server:
        for pid in server.pids():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        with Load(server.port, RATE, timeout=15.0) as load, crowd(server.port, [IDLE] * IDLERS, 60) as idlers:
            time.sleep(SECONDS)
            idlers.closed(waits=False)
        with crowd(server.port, [IDLE] * IDLERS, 60):
            share = server.running.idle_cpu(SECONDS)
            status, _ = rig.ask(server.port, "/linear/predict", b"value=5")
        time.sleep(1.0)
        with Load(server.port, RATE) as after:
            time.sleep(SECONDS)
        lines = [line for line in server.log().splitlines() if "Too many open files" in line]
        tracebacks, died = server.log().count("Traceback"), len(server.pids()) != rig.WORKERS
    failed = len(load.failed()) + len(after.failed()) + (status != 200)
    measured = (
        f"{failed} of {len(load.sent) + len(after.sent)} good ones failed, before, meanwhile and after; {share:.1%} of a core "
        f"while all wait; {len(lines)} lines about it, {tracebacks} tracebacks"
    )
    few = len(lines) <= FEW_LINES * rig.WORKERS
    is_reached = not failed and not tracebacks and not died and few and share < BUSY_SHARE
    return Outcome(measured, is_reached, {"share": share, "lines": lines[:5], "statuses": load.statuses()})


def full_disk() -> Outcome:
    """Fill the file system of the access log, the metrics and temporary files."""
    with small_disk(4 * 2**20) as folder:
        metrics = folder / "metrics"
        options = ["--access-logfile", str(folder / "access.log")]
        with rig.server(options=options, PROMETHEUS_MULTIPROC_DIR=str(metrics), TMPDIR=str(folder)) as server:
            outcome = _fill(server, folder)
    return outcome


def full_shared_memory() -> Outcome:
    """Fill /dev/shm, and start another server on what is left of it."""
    with small_disk(4 * 2**20, Path("/dev/shm")) as folder:
        with rig.server() as server:
            running = _fill(server, folder)
        fill(folder)
        with rig.server() as server, Load(server.port, RATE) as load:
            time.sleep(SECONDS)
        failed = len(load.failed())
    words = f"{running.measured}; a server that starts then: {failed} of {len(load.sent)} failed"
    return Outcome(words, running.is_reached and not failed, {**running.figures, "started": load.statuses()})


def _fill(server: rig.Server, folder: Path) -> Outcome:
    """Fill a file system that the server uses, while it is asked, and replace a worker meanwhile."""
    with Load(server.port, RATE) as load:
        time.sleep(1.0)
        filling = fill(folder)
        time.sleep(SECONDS)
        before = server.pids()
        server.signal(signal.SIGTERM, before[0])  # its successor finds no room
        after = server.await_workers(rig.WORKERS, without=before[:1])
        time.sleep(SECONDS)
        status, _ = rig.ask(server.port, "/metrics")
        lines = [line for line in server.log().splitlines() if "No space left" in line]
    filling.unlink()
    time.sleep(0.5)
    tracebacks = server.log().count("Traceback")
    died = len(set(before[1:]) - set(after))
    measured = (
        f"{len(load.failed())} of {len(load.sent)} failed, {died} workers died, /metrics says {status}, "
        f"{len(lines)} lines about it, {tracebacks} tracebacks"
    )
    is_reached = not (load.failed() or died or tracebacks) and status == 200 and len(lines) <= FEW_LINES * rig.WORKERS
    return Outcome(measured, is_reached, {"lines": lines[:5], "statuses": load.statuses()})


@contextlib.contextmanager
def small_disk(size: int, where: Path | None = None) -> Iterator[Path]:
    """Give a file system of `size` bytes that only this process and its children see, in the place of `where`."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory(prefix="servekit-faults-") as temporary:
        folder = where or Path(temporary) / "disk"
        folder.mkdir(exist_ok=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            raise NotMeasured(f"a file system cannot be mounted here ({os.strerror(ctypes.get_errno())})")
        if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=%d" % size):
            raise NotMeasured(f"a file system cannot be mounted here ({os.strerror(ctypes.get_errno())})")
        try:
            yield folder
        finally:
            libc.umount2(bytes(folder), 2)  # MNT_DETACH: whoever still uses it


def fill(folder: Path) -> Path:
    """Write into `folder` until its file system is full; return the file."""
    path = folder / "filling"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (64 * KIB, 4 * KIB, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path


FAULTS = (
    Fault(
        "descriptors",
        f"{DESCRIPTORS} file descriptors a worker, {IDLERS} idle connections",
        f"accepts resume, no busy loop (under {BUSY_SHARE:.0%} of a core), at most {FEW_LINES} lines a worker",
        no_descriptors,
    ),
    Fault(
        "disk",
        "the disk of the access log, the metrics and temporary files is full, and a worker is replaced",
        f"inference goes on, at most {FEW_LINES} lines a worker",
        full_disk,
    ),
    Fault(
        "shm",
        "/dev/shm is full, and a worker is replaced; a server starts on a full one",
        f"inference goes on, at most {FEW_LINES} lines a worker",
        full_shared_memory,
    ),
)
