"""Starting either server for one group of cases, in a folder and on ports of its own."""

import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.contract.cases import Case, Group
from bench.contract.exchange import exchange
from bench.machine import ROOT
from bench.peers.install import program, source
from bench.servers import Server, ServerFailed, environment, free_port
from tests.archives import ARCHIVES, write

START_SECONDS = 120.0
ROLES = ("inference", "management", "metrics")
KEYS = ("inference", "management", "API")


@dataclasses.dataclass(frozen=True)
class Target:
    """A server that can be asked: `command` starts it in a folder that has config.properties and model-store."""

    name: str
    command: Callable[[], list[str]]
    variables: dict[str, str]


class Running:
    """A server that answers: its ports by role, its folder, and the tokens that it has written there."""

    def __init__(self, ports: dict[str, int], folder: Path) -> None:
        self.ports = ports
        self.folder = folder
        self._first: dict[str, str] = {}

    def keys(self) -> dict[str, str]:
        """Return the tokens by name, as they are now and as they were first; none where the server wants none."""
        try:
            content = json.loads((self.folder / "key_file.json").read_text())
        except (OSError, ValueError):
            return {}
        now = {name: content[name]["key"] for name in KEYS if name in content}
        self._first = self._first or {f"first {name}": key for name, key in now.items()}
        return now | self._first


def torchserve() -> Target:
    """Return the TorchServe that `bench.peers` installs."""

    def command() -> list[str]:
        start = [str(program("torchserve", "torchserve")), "--start", "--foreground", "--no-config-snapshots"]
        log = ["--log-config", str(source("torchserve") / "log4j2.xml")]
        return [*start, "--ts-config", "config.properties", "--model-store", "model-store", *log]

    path = f"{program('torchserve').parent}:/usr/local/bin:/usr/bin:/bin"
    return Target("TorchServe", command, {"PATH": path, "OMP_NUM_THREADS": "1"})


def servekit() -> Target:
    """Return the servekit of this checkout, with one worker: then it is known which of them has been asked."""

    def command() -> list[str]:
        start = [sys.executable, "-m", "servekit", "torchserve", "--start", "--foreground", "--ncs"]
        return [*start, "--ts-config", "config.properties", "--model-store", "model-store"]

    return Target("servekit", command, {"PYTHONPATH": str(ROOT), "WEB_CONCURRENCY": "1"})


@contextlib.contextmanager
def running(target: Target, group: Group) -> Iterator[Running]:
    """Run `target` for `group` for the length of a `with` block; all models of `group.load` are there when it begins."""
    with tempfile.TemporaryDirectory(prefix="contract-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        first = free_port(len(ROLES) + 2)
        prepare(folder, group, first)
        # Sockets and unpacked archives lie in the temporary folder: one of its own keeps servers side by side apart.
        variables = {"TEMP": str(folder / "tmp"), "TMPDIR": str(folder / "tmp")}
        with (folder / "log").open("wb") as output:
            process = subprocess.Popen(
                target.command(),
                cwd=folder,
                env=environment(target.variables | variables | dict(group.variables)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, first, folder / "log")
        try:
            started = Running({role: first + number for number, role in enumerate(ROLES)}, folder)
            wait_until_ready(server, started, group)
            yield started
        finally:
            server.stop()


def prepare(folder: Path, group: Group, first: int) -> None:
    """Write config.properties and the model store of `group` into `folder`; it listens on `first` and what follows."""
    for name in ("model-store", "tmp"):
        (folder / name).mkdir()
    write(folder / "model-store", group.archives)
    lines = [f"{role}_address=http://127.0.0.1:{first + number}" for number, role in enumerate(ROLES)]
    lines += [f"grpc_{role}_port={first + len(ROLES) + number}" for number, role in enumerate(ROLES[:2])]
    lines += ["disable_system_metrics=true"]
    if group.load:
        lines += ["default_workers_per_model=1", "load_models=" + ",".join(f"{name}.mar" for name in group.load)]
    (folder / "config.properties").write_text("\n".join([*lines, *group.config]) + "\n")


def wait_until_ready(server: Server, started: Running, group: Group) -> None:
    """Return when every port listens and every model of `group.load` has a worker; raise ServerFailed if not in time."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerFailed(f"it ended with {server.process.returncode}: {server.log_tail()}")
        if all(map(listens, started.ports.values())) and all(has_worker(started, name) for name in group.load):
            return
        time.sleep(0.2)
    raise ServerFailed(f"not ready in {START_SECONDS:.0f} s: {server.log_tail()}")


def listens(port: int) -> bool:
    """Return whether anybody takes connections on `port`."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def has_worker(started: Running, archive: str) -> bool:
    """Return whether the model of `archive` has a worker that is ready."""
    found = ARCHIVES[archive]
    path = f"/models/{found.model_name}/{found.version}"
    keys = started.keys()
    token = (("Authorization", "Bearer <management key>"),) if keys else ()
    answer = exchange(Case("ready", "management", "GET", path, token, seconds=10), started.ports, keys)[0]
    return b'"READY"' in answer.body
