"""What should be served: one file under a lock, a generation in shared memory, and a slot for each worker.

The master makes a `State` before it forks. Whoever changes what should be served writes the file by an atomic rename and
wakes the workers; each applies it and notes in its slot how far it is. Standard library only: the master imports this.
"""

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import mmap
import os
import shutil
import signal
import stat
import tempfile
import threading
import time
import weakref
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from servekit.bells import Bells
from servekit.desired import Desired, Entry
from servekit.errors import Overloaded
from servekit.memory import memory_of
from servekit.spec import STATE_FOLDER

log = logging.getLogger(__name__)

LOCK_SECONDS = 120.0  # for those that change something to finish
LEAVING_SECONDS = 10.0  # the same in a worker that leaves, and is to answer before it is killed
POLL_SECONDS = 0.01  # between two looks at a lock, or at the slots

_DESIRED, _LOCK, _SLOTS, _OWNER, _ARCHIVES = "desired.json", "lock", "slots", "owner", "archives"
_WORD = 8  # bytes of a number
_REFUSAL_CELLS = 256  # two versions that share one are kept short together
_FREE, _NOT_YET = 0, -1

_held: set[int] = set()  # descriptors of locks: a process that a model's code forks is not to keep them
os.register_at_fork(after_in_child=lambda: _close_all(_held))


@dataclasses.dataclass(frozen=True)
class Report:
    """What a worker says of itself: since when it runs (seconds of the epoch), what it holds, and what went wrong."""

    pid: int
    started: float
    loaded: tuple[tuple[str, str], ...] = ()
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "name/version" -> sentence or traceback

    @property
    def memory(self) -> int:
        """Its resident memory now, in bytes."""
        return memory_of(self.pid)


class State:
    """The desired state of one server, and what its workers have made of it; made before the fork."""

    def __init__(self, folder: Path, slots: int) -> None:
        """`folder` exists and is this server's alone; `slots` bounds the workers that live at the same time."""
        self.folder = folder
        self._slots = slots
        memory = memoryview(mmap.mmap(-1, _WORD * (4 + 2 * slots))).cast("q")
        self._generation, self._workers, self._extra = memory[:1], memory[1:2], memory[2:3]
        self._stops, self._pids, self._applied = memory[3:4], memory[4 : 4 + slots], memory[4 + slots :]
        self._refusals = memoryview(mmap.mmap(-1, _WORD * _REFUSAL_CELLS)).cast("d")
        self._bells = Bells(slots)
        self._slot: int | None = None
        self._slot_lock = threading.RLock()  # a signal may make this worker leave while it reports
        self._leaves_at = math.inf  # when this worker gives up waiting, since it stops
        self._claims: dict[str, int] = {}
        self._master = os.getpid()
        self.inherited: Mapping[str, str] = {}  # what went wrong in the worker that had this one's slot before
        self._known = Desired()
        self.write(self._known)

    @classmethod
    def create(cls, store: Path, slots: int) -> "State":
        """Return a new state, beside the models in `store` if that can be written and no other server's state is there."""
        try:
            folder = store.resolve() / STATE_FOLDER
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _require_own(folder)
            owner = _try_lock(folder / _OWNER)
            if owner is None:
                raise BlockingIOError
            try:
                _clear(folder)
                state = cls(folder, slots)
            except BaseException:
                os.close(owner)
                raise
            weakref.finalize(state, os.close, owner)  # the lock lasts as long as a process of this server
        except OSError:  # it does not exist, is read-only, full, or another server's
            folder = Path(tempfile.mkdtemp(prefix="servekit-state-"))
            state = cls(folder, slots)
            weakref.finalize(state, _remove, folder, os.getpid())
        return state

    @classmethod
    def private(cls, entries: list[Entry]) -> "State":
        """Return the state of a server that is this process alone, in a temporary folder."""
        folder = Path(tempfile.mkdtemp(prefix="servekit-state-"))
        state = cls(folder, slots=1)
        weakref.finalize(state, _remove, folder, os.getpid())
        state.write(Desired.of(entries))
        state.join()
        return state

    def refusal_of(self, name: str, version: str) -> "memoryview[float]":
        """Return where all workers note when one of them last refused a request for a version because it was too busy."""
        cell = zlib.crc32(f"{name}/{version}".encode()) % _REFUSAL_CELLS
        return self._refusals[cell : cell + 1]

    # What should be.

    def read(self) -> Desired:
        """Return the desired state as it is now; the file is read only if it has changed."""
        if self._known.generation != self._generation[0]:
            self._known = read_desired(self.folder)
        return self._known

    @contextlib.contextmanager
    def change(self, patience: float = LOCK_SECONDS) -> Iterator[Desired]:
        """Hold the lock, and give the state as it is; raise Overloaded if others hold it for longer than `patience`."""
        with self._locked(_LOCK, patience):
            yield read_desired(self.folder)

    def write(self, desired: Desired, wakes: bool = True) -> int:
        """Make `desired` what should be served, and return its generation; whoever calls this holds the lock."""
        generation = max(self._generation[0], desired.generation) + 1
        desired = dataclasses.replace(desired, generation=generation)
        _write(self.folder / _DESIRED, desired.to_json(), syncs=True)
        self._known = desired
        self._generation[0] = generation
        if self._workers[0] != desired.workers:
            self._workers[0] = desired.workers
            self._rouse_master()
        if wakes:
            self.wake()
        return generation

    @property
    def workers(self) -> int:
        """How many workers there should be."""
        return self._workers[0]

    def note_extra(self, workers: int) -> None:
        """Note, in the master, how many workers more than desired it keeps: signals and reloads can tell it to."""
        self._extra[0] = workers

    def stop(self) -> None:
        """Note, in the master, that the whole server is about to stop."""
        self._stops[0] = 1

    def is_stopping(self) -> bool:
        """Return True if the whole server is about to stop."""
        return bool(self._stops[0])

    def archive_folder(self) -> Path:
        """Return a new folder's name, for an archive to be unpacked into; its parent exists."""
        parent = self.folder / _ARCHIVES
        parent.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent)) / "model"

    def drop_archive(self, folder: str) -> None:
        """Remove what was unpacked into a name of `archive_folder`; other folders are left alone."""
        parent = Path(folder).parent
        if parent.parent == self.folder / _ARCHIVES:
            shutil.rmtree(parent, ignore_errors=True)

    # What is.

    def join(self) -> None:
        """Take a slot in this process, a worker."""
        with self._locked(_SLOTS):
            self._slot = next((slot for slot in range(self._slots) if self._pids[slot] == _FREE), None)
            if self._slot is None:
                raise RuntimeError("there are more workers than slots")
            self._applied[self._slot] = _NOT_YET
            self._pids[self._slot] = os.getpid()
        with contextlib.suppress(OSError, ValueError):  # nobody was here before
            self.inherited = _read_report(self._report_path(self._slot)).errors

    def leave(self) -> None:
        """Note that this worker stops: nobody waits for it any more, and another may start in its place."""
        with self._slot_lock:
            slot, self._slot = self._slot, None
            if slot is not None:
                self._leaves_at = time.monotonic() + LEAVING_SECONDS
                self._pids[slot] *= -1  # the slot is free when its process has ended
                self._rouse_master()

    def note(self, generation: int, report: Report) -> None:
        """Note that this worker has applied `generation`, with what came of it."""
        with self._slot_lock:
            self.report(report)
            if self._slot is not None:
                before, self._applied[self._slot] = self._applied[self._slot], generation
                if before == _NOT_YET:
                    self._rouse_master()

    def report(self, report: Report) -> None:
        """Write what this worker says of itself, for others to read."""
        with self._slot_lock:
            if self._slot is None:
                return
            try:
                _write(self._report_path(self._slot), json.dumps(dataclasses.asdict(report)))
            except OSError as error:  # the disk is full: serving goes on
                log.warning("What this worker holds cannot be written down: %s", error.strerror)

    def reports(self) -> list[Report]:
        """Return what the workers that live say of themselves, in the order of their start."""
        return [report for report in read_reports(self.folder) if report.pid in self._pids]

    def leaving(self) -> set[int]:
        """Return the process ids of workers that have left and not ended yet."""
        return {-pid for pid in self._pids if pid < _FREE}

    def ready(self) -> set[int]:
        """Return the process ids of workers that have loaded what they should serve, and have not left."""
        return {pid for pid, done in zip(self._pids, self._applied, strict=True) if pid > _FREE and done != _NOT_YET}

    def room(self) -> int:
        """Return how many more workers can start."""
        return sum(pid == _FREE for pid in self._pids)

    def wait(self, generation: int, seconds: float) -> int:
        """Wait until as many workers as there should be have applied `generation`; return how many have not in time."""
        until = time.monotonic() + seconds
        while True:
            slots = [done for pid, done in zip(self._pids, self._applied, strict=True) if pid > _FREE]
            behind = sum(done < generation for done in slots) + abs(self._expected() - len(slots))
            if not behind or time.monotonic() > until:
                return behind
            time.sleep(POLL_SECONDS)

    def forget(self, pid: int) -> None:
        """Free the slot of a worker that has ended; the master calls this.

        What it wrote last becomes known to all, and what it had unpacked and not registered is removed.
        """
        for slot in range(self._slots):
            if abs(self._pids[slot]) == pid:
                self._pids[slot] = _FREE
        try:
            desired = read_desired(self.folder)
        except OSError as error:  # somebody has removed the folder; the master is not to end of it
            log.error("What is to be served cannot be read: %s", error.strerror)
            return
        if desired.generation > self._generation[0]:  # it ended between the file and the shared memory
            self._generation[0], self._workers[0] = desired.generation, desired.workers
            self.wake()
        served = {Path(entry.folder).parent for entry in desired.entries()}
        for left_over in set((self.folder / _ARCHIVES).glob(f"{pid}-*")) - served:
            shutil.rmtree(left_over, ignore_errors=True)

    # Waking.

    def wake(self) -> None:
        """Make every worker look at the desired state."""
        self._bells.ring()

    def sleep(self, seconds: float | None) -> bool:
        """Block, in a worker, until woken or for that long; return False if it has left and is to follow no more."""
        if (slot := self._slot) is None:
            return False
        self._bells.wait(slot, seconds)
        with self._slot_lock:
            if self._slot is None:
                return False
            self._bells.hush(slot)
        return True

    def claim(self, what: str) -> bool:
        """Return True if this process is the one that does `what`, as long as it lives."""
        if what not in self._claims and (lock := _try_lock(self.folder / f"{what}.lock")) is not None:
            self._claims[what] = lock
            _held.add(lock)
        return what in self._claims

    def close(self) -> None:
        """Remove the files; done by the master when the server ends."""
        _remove(self.folder, self._master)

    def _rouse_master(self) -> None:
        """Make the master look at its workers."""
        with contextlib.suppress(ProcessLookupError):  # it is gone, and this worker is about to find out
            if os.getpid() != self._master:
                os.kill(self._master, signal.SIGCHLD)

    def _report_path(self, slot: int) -> Path:
        return self.folder / f"worker-{slot}.json"

    def _expected(self) -> int:
        return min(self.workers + self._extra[0], self._slots)  # a private state has but one

    @contextlib.contextmanager
    def _locked(self, name: str, patience: float = LOCK_SECONDS) -> Iterator[None]:
        until = time.monotonic() + patience
        while (lock := _try_lock(self.folder / name)) is None:
            if time.monotonic() > min(until, self._leaves_at):
                raise Overloaded("Another change of the models is still under way; try again later.")
            time.sleep(POLL_SECONDS)
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough while a process that was forked has it, too
            os.close(lock)


def read_desired(folder: Path) -> Desired:
    """Return the desired state that is written in `folder`."""
    return Desired.from_json((folder / _DESIRED).read_text(encoding="utf-8"))


def read_reports(folder: Path) -> list[Report]:
    """Return what workers have written in `folder`, in the order of their start; some may have ended since."""
    return sorted(map(_read_report, folder.glob("worker-*.json")), key=lambda report: report.started)


def _read_report(path: Path) -> Report:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Report(**{**value, "loaded": tuple(map(tuple, value["loaded"]))})


def is_served(store: Path) -> bool:
    """Return True if a server that keeps its state beside the models in `store` runs."""
    path = store / STATE_FOLDER / _OWNER
    lock = _try_lock(path) if path.exists() else None
    if lock is not None:
        os.close(lock)
    return path.exists() and lock is None


def _try_lock(path: Path) -> int | None:
    """Return a descriptor of the file at `path`, locked until it is closed or its process ends, or None."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _require_own(folder: Path) -> None:
    """Raise OSError unless `folder` is one, and ours alone: what lies there names the code that is loaded."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user")
    folder.chmod(0o700)


def _clear(folder: Path) -> None:
    """Remove what a server that was killed has left, and never what lies elsewhere."""
    for left_over in folder.iterdir():
        if left_over.is_dir() and not left_over.is_symlink():
            shutil.rmtree(left_over)
        elif left_over.name != _OWNER:
            left_over.unlink()


def _write(path: Path, text: str, syncs: bool = False) -> None:
    """Write a file that is there whole or not at all, for this user only; with `syncs` even if the machine stops."""
    new = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if syncs:
            os.fsync(descriptor)
    new.replace(path)


def _close_all(descriptors: set[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # its workers are forks, which end, too
        shutil.rmtree(folder, ignore_errors=True)
