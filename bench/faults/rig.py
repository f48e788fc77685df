"""The server that faults are done to, its store, and what can be seen of it."""

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import live, machine, servers
from bench.cases import Request
from bench.faults.fault import NotMeasured

HOST = "127.0.0.1"
WORKERS = 3
FORM = "application/x-www-form-urlencoded"
READY = r"servekit \S+ is ready"  # all workers are
POLL_SECONDS = 0.05


def source_store() -> Path:
    """Return the store with the trained models, which is only ever copied."""
    return Path(os.environ.get("SERVEKIT_MODEL_STORE", machine.ROOT / "model_store"))


@contextlib.contextmanager
def new_store(*models: str) -> Iterator[Path]:
    """Give a store of our own: copies of the trained models, and `models`, classes of bench/faults/models.py.

    A class such as Hang is served as `hang`.
    """
    with tempfile.TemporaryDirectory(prefix="servekit-faults-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for model in ("linear", "mnist"):
            newest = max((source_store() / model).glob("[0-9]*"), key=lambda path: int(path.name), default=None)
            if newest is None:
                raise NotMeasured(f"{source_store()} has no {model}; run make train first")
            shutil.copytree(newest, folder / model / "1")
        for model in models:
            add_model(folder, model.lower(), network=f"bench.faults.models:{model}")
        yield folder


def add_model(store: Path, name: str, version: str = "1", network: str = "models.linear:LinearRegressor") -> Path:
    """Write a version of a model with the weights of linear, which the torch engine runs; return its folder."""
    source, folder = store / "linear" / "1", store / name / version
    folder.mkdir(parents=True)
    weights = (source / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(weights)
    described = json.loads((source / "model.json").read_text())
    described |= {"network": network, "files": {"model.pth": hashlib.sha256(weights).hexdigest()}}
    (folder / "model.json").write_text(json.dumps(described))
    return folder


class Server:
    """A running server with `workers` workers, its store, and what can be seen of it."""

    def __init__(self, running: servers.Server, store: Path) -> None:
        self.running = running
        self.port = running.port
        self.master = running.process.pid
        self.store = store

    def pids(self) -> list[int]:
        """Return the process ids of the workers that live."""
        return live.children(self.master)

    def members(self) -> list[int]:
        """Return the process ids of all its processes."""
        return self.running.members()

    def memory(self, kind: str = "Pss") -> float:
        """Return the memory of all its processes in MiB; `kind` is one of /proc/PID/smaps_rollup, such as Pss_Anon."""
        with contextlib.suppress(OSError):  # one of them has just ended
            return live.proportional_memory(self.members(), kind)
        return live.proportional_memory(self.members(), kind)

    def resident(self) -> float:
        """Return the memory of all its processes in MiB, what is shared counted once in each (RSS)."""
        return self.memory("Rss")

    def log(self) -> str:
        """Return all that it has printed."""
        return self.running.log_file.read_text(errors="replace")

    def signal(self, number: int, pid: int | None = None) -> None:
        """Send a signal to the master, or to one process."""
        os.kill(self.master if pid is None else pid, number)

    def ended(self, seconds: float) -> int | None:
        """Wait for the master to end; return its exit code, or None if it has not ended within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.running.process.wait(seconds)
        return None

    def await_workers(self, count: int = WORKERS, seconds: float = 30.0, without: Sequence[int] = ()) -> list[int]:
        """Return the workers once there are `count`, none of them one of `without`; raise NotMeasured if not in time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pids = self.pids()
            if len(pids) == count and not set(pids) & set(without):
                return pids
            time.sleep(POLL_SECONDS)
        raise NotMeasured(f"there are {len(self.pids())} workers, not {count}, after {seconds:.0f} s")

    def await_log(self, pattern: str, count: int = 1, seconds: float = 30.0) -> None:
        """Return once the log has `count` matches of `pattern`; raise NotMeasured if not in time."""
        until = time.monotonic() + seconds
        while len(re.findall(pattern, self.log())) < count:
            if time.monotonic() > until:
                raise NotMeasured(f"the log does not say {pattern!r} {count} times after {seconds:.0f} s")
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def server(
    workers: int = WORKERS, store: Path | None = None, options: Sequence[str] = (), **environ: str
) -> Iterator[Server]:
    """Run a server on the cores of servers, with `options` of Gunicorn; all its processes end with the `with` block.

    Without a `store` it has copies of the trained models.
    """
    with contextlib.ExitStack() as stack:
        folder = store or stack.enter_context(new_store())
        command = [sys.executable, "-m", "gunicorn", "--workers", str(workers), *options]
        launch = servers.Launch(
            "servekit",
            f"{workers} workers",
            lambda port, _: [*command, "--bind", f"{HOST}:{port}"],
            {"SERVEKIT_MODEL_STORE": str(folder)} | environ,
            Request("/linear/predict", FORM, b"value=5"),
            rb'"input": ?5',
            directory=machine.ROOT,
        )
        running = stack.enter_context(servers.running(launch, machine.split_cores().servers))
        served = Server(running, folder)
        served.await_log(READY)
        yield served


def ask(
    port: int, path: str, body: bytes = b"", method: str = "", content_type: str = FORM, timeout: float = 10.0
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; return status and body; a GET if there is no body."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=timeout)) as connection:
        headers = {"Content-Type": content_type} if body else {}
        connection.request(method or ("POST" if body else "GET"), path, body or None, headers)
        response = connection.getresponse()
        return response.status, response.read()


def held_by(pid: int, port: int) -> set[int]:
    """Return the clients' ports of the connections to `port` that a process holds."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if (target := os.readlink(entry)).startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[9] in inodes and int(fields[1].partition(":")[2], 16) == port:
            found.add(int(fields[2].partition(":")[2], 16))
    return found - {0}
