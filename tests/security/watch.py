"""What the process does to the machine while hostile requests are answered: files it opens, sockets, other processes.

Python tells of each by its audit events (PEP 578). A hook cannot be taken out again, so there is one, and a switch.
"""

import mimetypes
import os
import site
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent

# Where the interpreter, its packages and this project's modules lie: whatever is imported lazily comes from there.
CODE = (
    *{sys.prefix, sys.base_prefix, *site.getsitepackages(), *sysconfig.get_paths().values()},
    *(ROOT / name for name in ("servekit", "models", "tests")),
)
# Of the machine: the clock's zone, names of file types, what the kernel says of it and of this process.
MACHINE = ("/dev/null", "/etc/localtime", *mimetypes.knownfiles, "/proc", "/sys/devices/system/cpu", "/sys/fs/cgroup")
LIBRARIES = ("libnvidia-ml.so.1",)  # that TorchServe's metrics look for, to count GPUs
FORBIDDEN = frozenset(
    """
    socket.connect socket.bind socket.sendto socket.getaddrinfo socket.gethostbyname urllib.Request
    os.system os.exec os.posix_spawn os.spawn os.fork os.forkpty subprocess.Popen pty.spawn pickle.find_class
    """.split()
)
CHANGES = frozenset("os.remove os.rename os.rmdir os.mkdir os.chmod os.chown os.link os.symlink os.truncate shutil.rmtree".split())


def _is_inside_a_tree(name: Any, mode: Any, flags: int) -> bool:
    """Return True if shutil.rmtree, whose tree was looked at, opens a folder in it; by a name in another folder's."""
    return mode is None and os.sep not in os.fsdecode(name) and flags & os.O_ACCMODE == os.O_RDONLY


class Watch:
    """Keeps what happened while it was on and was not allowed."""

    def __init__(self) -> None:
        self.is_on = False
        self.allowed: Sequence[Path] = ()
        self.seen: list[str] = []

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an audit event if it should not have been."""
        if not self.is_on:
            return
        is_bad = event in FORBIDDEN or event == "ctypes.dlopen" and arguments[0] not in (None, *LIBRARIES)
        if event == "open":
            is_bad = not self._is_allowed(arguments[0]) and not _is_inside_a_tree(*arguments)
        elif event in CHANGES:
            is_relative = event in ("os.remove", "os.rmdir") and arguments[1] >= 0  # to a folder that was looked at
            place = arguments[1] if event in ("os.link", "os.symlink") else arguments[0]
            is_bad = not is_relative and not self._is_allowed(place)
        if is_bad:
            self.seen.append(f"{event} {arguments[:2]!r}")

    def _is_allowed(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return True  # a descriptor, which something has opened before
        real = Path(os.fsdecode(os.path.realpath(path)))  # what has a name that is allowed may be a link elsewhere
        return any(real.is_relative_to(place) for place in self.allowed)

    @contextmanager
    def on(self, *allowed: Path) -> Iterator[None]:
        """Watch, with files below `allowed` and those of the code and the machine permitted."""
        self.allowed = [Path(os.path.realpath(place)) for place in (*allowed, *CODE, *MACHINE)]
        self.seen, self.is_on = [], True
        try:
            yield
        finally:
            self.is_on = False

    @contextmanager
    def off(self) -> Iterator[None]:
        """Look away from what a test does itself, to prepare or to look."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before


watch = Watch()
sys.addaudithook(watch.hook)
