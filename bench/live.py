"""A server that stands in for TorchServe, archives for it, and clients that watch it while its models change."""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.machine import ROOT

HOST = "127.0.0.1"
START_SECONDS = 120.0
PATIENCE_SECONDS = 150.0  # longer than the server lets any change take

# The answer names the version in two places, each known from another source, some time apart.
VERSIONED = """
import time
import said

class Versioned:
    def initialize(self, context):
        self.version = context.manifest["model"]["modelVersion"]

    def handle(self, data, context):
        first = self.version
        time.sleep({seconds})
        return [{{"first": first, "second": said.VERSION}} for _ in data]
"""
NETWORK = """
import torch

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear({width}, {width})

    def forward(self, value):
        return self.layer(value)
"""
HANDLER = """
import torch
from ts.torch_handler.base_handler import BaseHandler

class Wide(BaseHandler):
    def preprocess(self, data):
        return torch.zeros(len(data), {width})

    def postprocess(self, data):
        return [float(row.sum()) for row in data]
"""


# Settings of other servers, and what would make this one count its lines.
_OTHERS = ("SERVEKIT_", "GUNICORN_", "TS_", "COVERAGE_")


class Live:
    """A server that runs, with two ports: one for predictions, one to manage it."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, inference: int, management: int) -> None:
        self.process = process
        self.log = log
        self.inference = inference
        self.management = management

    def predict(self, path: str, body: str = "1") -> tuple[int, Any]:
        """POST to `path` below /predictions on a new connection; return status and answer."""
        return request(self.inference, "POST", f"/predictions/{path}", body)

    def manage(self, method: str, path: str) -> tuple[int, Any]:
        """Send a request to the management API; return status and answer."""
        return request(self.management, method, path)

    def workers(self) -> list[int]:
        """Return the process ids of the workers that live."""
        return children(self.process.pid)


def request(port: int, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
    """Send a request on a connection of its own; return status and answer, parsed if it is JSON."""
    with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request(method, path, body)
        return read_answer(connection)


def read_answer(connection: http.client.HTTPConnection) -> tuple[int, Any]:
    """Return status and answer of the request that was sent on `connection`."""
    response = connection.getresponse()
    content = response.read()
    is_json = (response.getheader("Content-Type") or "").startswith("application/json")
    return response.status, json.loads(content) if is_json else content.decode()


def write_versioned(store: Path, name: str, version: str, seconds: float = 0.0, batch_size: int = 1) -> str:
    """Write an archive whose answers name its version, `seconds` after they were asked; return its file's name."""
    files = {
        "versioned.py": VERSIONED.format(seconds=seconds),
        "said.py": f"VERSION = {version!r}\n",
        "model-config.yaml": f"batchSize: {batch_size}\nmaxBatchDelay: 2\n",
    }
    model = {"modelName": name, "modelVersion": version, "handler": "versioned.py", "configFile": "model-config.yaml"}
    return write_archive(store, f"{name}-{version}.mar", model, {name: text.encode() for name, text in files.items()})


def write_wide(store: Path, name: str, version: str, width: int = 1024) -> str:
    """Write an archive of one layer of `width` times `width` numbers; return its file's name."""
    import torch

    weights = io.BytesIO()
    torch.save({f"layer.{key}": value for key, value in torch.nn.Linear(width, width).state_dict().items()}, weights)
    files = {
        "handler.py": HANDLER.format(width=width).encode(),
        "network.py": NETWORK.format(width=width).encode(),
        "weights.pt": weights.getvalue(),
    }
    model = {"modelName": name, "modelVersion": version, "handler": "handler.py"}
    model |= {"modelFile": "network.py", "serializedFile": "weights.pt"}
    return write_archive(store, f"{name}-{version}.mar", model, files)


def write_archive(store: Path, file: str, model: dict[str, str], files: dict[str, bytes]) -> str:
    """Write `files` and a manifest that says `model` as an archive into `store`; return its file's name."""
    store.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(store / file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": model}))
        for name, content in files.items():
            archive.writestr(name, content)
    return file


@contextlib.contextmanager
def serving(folder: Path, load: str = "none", workers: int = 1, **variables: str) -> Iterator[Live]:
    """Serve the archives of `folder`/store, of which `load` is loaded at start, for the length of a `with` block."""
    (folder / "store").mkdir(parents=True, exist_ok=True)
    ports = free_ports(3)
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{name}=http://{HOST}:{port}" for name, port in zip(names, ports, strict=True)]
    lines += ["enable_model_api=true", "disable_token_authorization=true", f"default_workers_per_model={workers}"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "servekit", "torchserve", "--start", "--foreground", "--ncs"]
    command += ["--model-store", "store", "--ts-config", "config.properties", "--pid-file", "pid", "--models", load]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    environ = kept | {"PYTHONPATH": str(ROOT)} | variables
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=subprocess.STDOUT)
    live = Live(process, folder / "log", ports[0], ports[1])
    try:
        _await_answer(live)
        yield live
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def children(pid: int) -> list[int]:
    """Return the process ids of the children of `pid` that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(path.parent.name))
    return sorted(found)


def proportional_memory(pids: list[int], kind: str = "Pss") -> float:
    """Return the memory of processes in MiB; what several share is divided among them.

    With the kind "Pss_Anon" without files, such as libraries, of which other processes take their share, too.
    """
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))
    return total / 1024


@dataclasses.dataclass
class Seen:
    """What clients have seen: seconds of each answer, and what was wrong."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    mixed: list[str] = dataclasses.field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the milliseconds within which that share of the answers came."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Watch:
    """Clients that together send `rate` requests a second, each on a kept-alive connection, and judge the answers."""

    def __init__(self, port: int, path: str, rate: float, clients: int, judge: Callable[[Any], bool]) -> None:
        """`judge` returns False for an answer that cannot be of one version."""
        self.seen = Seen()
        self._port, self._path, self._judge = port, path, judge
        self._pause = clients / rate
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Seen:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, number: int) -> None:
        due = time.monotonic() + self._pause * number / len(self._threads)
        while not self._stop.is_set():
            connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE_SECONDS)
            with contextlib.closing(connection):
                due = self._requests_on(connection, due)

    def _requests_on(self, connection: http.client.HTTPConnection, due: float) -> float:
        """Send requests until the server closes the connection; return when the next one is due."""
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            began, due = time.monotonic(), max(due + self._pause, time.monotonic() - 1)
            try:
                connection.request("POST", self._path, "1")
                status, answer = read_answer(connection)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.seen.failures.append(repr(error))
                return due
            self.seen.seconds.append(time.monotonic() - began)
            if status != 200:
                self.seen.failures.append(f"{status} {answer}")
            elif not self._judge(answer):
                self.seen.mixed.append(str(answer))
            if connection.sock is None:  # the server has said that it closes it
                return due
        return due


def is_whole(answer: Any) -> bool:
    """Return True if an answer of `write_versioned` is of one version."""
    return isinstance(answer, dict) and answer["first"] == answer["second"]


def _await_answer(live: Live) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and live.process.poll() is None:
        with contextlib.suppress(OSError):
            if request(live.inference, "GET", "/ping")[0] == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"The server did not start:\n{live.log.read_text()}")
