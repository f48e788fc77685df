"""A real Gunicorn in a process of its own, and the few requests that tests send to it."""

import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.test import encode_multipart

ROOT = Path(__file__).parent.parent
WORKER_CLASSES = ("servekit.worker.Worker", "gthread")  # ours, and what serves without its packages
OURS = ("SERVEKIT_", "GUNICORN_", "MAKE", "MFLAGS")  # variables that must not reach a server under test
START_SECONDS = 90.0  # on a machine that is busy with other tests
Reply = tuple[int, dict[str, str], Any]


class Server:
    """A running server: its process, its log, and the port it has chosen."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens, with the host that curl lines in the documentation use."""
        return f"http://localhost:{self.port}"

    def text(self) -> str:
        """Return all that it has printed so far."""
        return self.log.read_text()

    def wait_until_ready(self) -> None:
        """Return when the banner has been printed; fail with the log if the process ends before."""
        found = wait_for(lambda: re.search(r"address  http://127\.0\.0\.1:(\d+)", self.text()), self.process)
        assert found, self.text()
        self.port = int(found[1])

    def workers(self) -> list[int]:
        """Return the process ids of its workers."""
        return children(self.process.pid)

    def connect(self) -> http.client.HTTPConnection:
        """Return a new connection, with a time-out that no honest answer exceeds."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """Send one request on a connection of its own; return status, headers and the answer, parsed if JSON."""
        with contextlib.closing(self.connect()) as connection:
            return send(connection, method, path, body, headers)

    def get(self, path: str) -> Reply:
        """GET `path`."""
        return self.request("GET", path)

    def post(self, path: str, body: Any = None, kind: str | None = None) -> Reply:
        """POST `body` with the content type `kind`."""
        return self.request("POST", path, body, {"Content-Type": kind} if kind else {})

    def post_form(self, path: str, body: str) -> Reply:
        """POST a form as `curl -d` does."""
        return self.post(path, body, "application/x-www-form-urlencoded")

    def post_files(self, path: str, files: Sequence[tuple[str, str, bytes]]) -> Reply:
        """POST files, given as (field, file name, content), as `curl -F` does."""
        body, kind = multipart(files)
        return self.post(path, body, kind)


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Reply:
    """Send one request on `connection`; return status, headers and the answer, parsed if it is JSON."""
    connection.request(method, path, body, headers or {}, encode_chunked=hasattr(body, "__next__"))
    response = connection.getresponse()
    content = response.read()
    parsed = json.loads(content) if response.getheader("Content-Type") == "application/json" and content else content
    return response.status, dict(response.getheaders()), parsed


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different, and that the kernel gives to no client in the meantime."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(21_000, 32_000), 1000):  # below those that it gives
        if len(found) == count:
            break
        with contextlib.suppress(OSError), socket.create_server(("0.0.0.0", port)):
            found.append(port)
    return found


def multipart(files: Sequence[tuple[str, str, bytes]]) -> tuple[bytes, str]:
    """Return the body and content type of a multipart form of files, given as (field, file name, content)."""
    fields = MultiDict((field, FileStorage(io.BytesIO(content), name, field)) for field, name, content in files)
    boundary, body = encode_multipart(fields)
    return body, f"multipart/form-data; boundary={boundary}"


def children(pid: int) -> list[int]:
    """Return the process ids of the children of `pid`, oldest first."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return sorted(int(child) for child, parent, state in rows if int(parent) == pid and not state.startswith("Z"))


def wait_for(condition: Any, process: subprocess.Popen[bytes] | None = None, seconds: float = START_SECONDS) -> Any:
    """Return the first true value of `condition()`; a false one when `seconds` are over or `process` has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        if process is not None and process.poll() is not None:
            return condition()
        time.sleep(0.05)
    return condition()


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without settings of servekit or Gunicorn, and with `extra`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    inherited.pop("WEB_CONCURRENCY", None)
    return inherited | extra


def launch(log: Path, *arguments: str, **variables: str) -> Server:
    """Start Gunicorn on a free port with this project's settings; the caller waits for it and stops it."""
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )
    return Server(process, log)


@contextlib.contextmanager
def running(log: Path, *arguments: str, **variables: str) -> Iterator[Server]:
    """Run a server for the length of a `with` block."""
    server = launch(log, *arguments, **variables)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            server.process.kill()
            raise
