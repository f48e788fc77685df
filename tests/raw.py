"""HTTP without a library: a plain server under test, and clients that send bytes as no library would."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.plain_conf import READY
from tests.server import ROOT, Server, environment, wait_for

WORKER = "servekit.worker.Worker"
SECONDS = 10.0  # for any answer of an honest server on a busy machine
Address = tuple[str, int] | str  # host and port, or the path of a unix socket


class Answer(NamedTuple):
    """One answer of the server; header names are in lower case, repeated ones joined by a comma."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body, which must be JSON."""
        return json.loads(self.body)


class Client:
    """One connection: sends any bytes, and reads answers strictly."""

    def __init__(self, address: Address, source: str = "", receive_buffer: int = 0) -> None:
        """Connect, from the address `source`; a small `receive_buffer` makes a client that reads slowly felt."""
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        self.socket.settimeout(SECONDS)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.data = b""  # received and not yet returned
        self.ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes, step: int = 0, pause: float = 0.001) -> None:
        """Send `data`, `step` bytes at a time with a pause after each; a server that hangs up is no error."""
        self.socket.settimeout(SECONDS)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for start in range(0, len(data), step or len(data) or 1):
                self.socket.sendall(data[start : start + (step or len(data))])
                if step:
                    time.sleep(pause)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Leave at once, without a farewell."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    def read(self, seconds: float) -> bool:
        """Wait up to `seconds` for more; return False if nothing came."""
        if self.ended:
            return False
        self.socket.settimeout(max(seconds, 0.001))
        try:
            more = self.socket.recv(1 << 18)
        except TimeoutError:
            return False
        except ConnectionResetError:
            more = b""
        self.data += more
        self.ended = not more
        return True

    def answer(self, method: str = "GET", seconds: float = SECONDS) -> Answer:
        """Return the next answer, to a request of `method`; fail if it is not whole in time or the server hangs up."""
        deadline = time.monotonic() + seconds
        while not (found := parse(self.data, method, self.ended)):
            assert not self.ended, f"closed after {self.data[:300]!r}"
            self.read(deadline - time.monotonic())
            assert time.monotonic() < deadline, f"no whole answer in {seconds} s, only {self.data[:300]!r}"
        self.data = self.data[found[1] :]
        return found[0]

    def ask(self, data: bytes, method: str = "GET") -> Answer:
        """Send one request and return its answer."""
        self.send(data)
        return self.answer(method)

    def rest(self, seconds: float = SECONDS) -> bytes:
        """Return all that comes until the server closes the connection; fail if it does not."""
        deadline = time.monotonic() + seconds
        while not self.ended:
            self.read(deadline - time.monotonic())
            assert time.monotonic() < deadline or self.ended, f"not closed in {seconds} s; got {self.data[:300]!r}"
        data, self.data = self.data, b""
        return data

    def last_answers(self, seconds: float = SECONDS) -> list[Answer]:
        """Return all answers until the server closes the connection; fail if it does not, or if one is not whole."""
        self.data = self.rest(seconds)
        answers = []
        while self.data:
            answers.append(self.answer())
        return answers

    def is_closed(self, seconds: float = 0.2) -> bool:
        """Return True if the server closes the connection within `seconds`, having sent nothing more."""
        self.read(seconds)
        assert not self.data, self.data[:300]
        return self.ended


def parse(data: bytes, method: str, ended: bool) -> tuple[Answer, int] | None:
    """Return the first answer in `data` and where it ends, or None if it is not whole; framing errors fail."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    found = re.fullmatch(r"HTTP/1\.[01] (\d{3}) [^\r\n]*", first)
    assert found, first
    status = int(found[1])
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        assert colon and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name), line
        assert "\n" not in value and "\r" not in value, line
        headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
    if method == "HEAD" or status < 200 or status in (204, 304):
        body, length = b"", 0
    elif "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers, headers
        if not (found_body := parse_chunks(rest)):
            return None
        body, length = found_body
    elif "content-length" in headers:
        assert headers["content-length"].isdecimal(), headers  # one, too
        length = int(headers["content-length"])
        if len(rest) < length:
            return None
        body = rest[:length]
    elif ended:
        body, length = rest, len(rest)
    else:
        return None
    return Answer(status, headers, body), len(head) + len(end) + length


def parse_chunks(data: bytes) -> tuple[bytes, int] | None:
    """Return the body that lies in chunks at the start of `data`, and their length; None if they are not whole."""
    body, at = b"", 0
    while True:
        line, end, _ = data[at:].partition(b"\r\n")
        if not end:
            return None
        assert re.fullmatch(rb"[0-9A-Fa-f]+", line), line
        size = int(line, 16)
        at += len(line) + 2
        if len(data) < at + size + 2:
            return None
        assert data[at + size : at + size + 2] == b"\r\n", data[at + size :][:10]
        body += data[at : at + size]
        at += size + 2
        if not size:
            return body, at


class PlainServer(Server):
    """A running server of the plain application."""

    addresses: Sequence[Address] = ()
    canary: Path

    def wait_until_ready(self) -> None:
        """Return when its first worker has loaded the application; fail with the log if it ends before."""
        assert wait_for(lambda: READY in self.text(), self.process), self.text()
        listening = re.search(r"Listening at: (\S+) \(", self.text())
        if listening:  # not where each worker has sockets of its own
            self.addresses = [as_address(url) for url in listening[1].split(",")]
        self.port = int(self.addresses[0][1]) if isinstance(self.addresses[0], tuple) else 0

    def client(self, source: str = "", receive_buffer: int = 0) -> Client:
        """Connect to the first address it listens on."""
        return Client(self.addresses[0], source, receive_buffer)

    def ask(self, data: bytes, method: str = "GET") -> Answer:
        """Send one request on a connection of its own and return its answer."""
        with self.client() as client:
            return client.ask(data, method)

    def marks(self) -> list[str]:
        """Return the lines of the canary's file."""
        return self.canary.read_text().splitlines()

    def clear_marks(self) -> None:
        """Empty the canary's file."""
        self.canary.write_text("")

    def descriptors(self) -> int:
        """Return how many descriptors its workers hold open."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.workers())


def as_address(url: str) -> Address:
    """Return the address that is meant by a URL as Gunicorn prints it, or by an argument of --bind."""
    if url.startswith("unix:"):
        return url.removeprefix("unix:")
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def plain(
    folder: Path, *arguments: str, bind: Sequence[str] = ("127.0.0.1:0",), **variables: str
) -> Iterator[PlainServer]:
    """Run a server of the plain application, by default with one worker, for the length of a `with` block."""
    command = [sys.executable, "-m", "gunicorn", "--config", "python:tests.plain_conf", "--worker-class", WORKER]
    for address in bind:
        command += ["--bind", address]
    canary, log = folder / "canary", folder / "log"
    canary.touch()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments, "tests.wsgi_apps:app"],
            cwd=ROOT,
            env=environment(TEST_CANARY=str(canary), **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = PlainServer(process, log)
    server.addresses = [as_address(address) for address in bind]
    server.canary = canary
    try:
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
