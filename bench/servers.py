"""Starting a server on its own cores, what it costs, and stopping all of it."""

import contextlib
import dataclasses
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.cases import Request, raw
from bench.machine import ROOT

START_SECONDS = 90.0
STOP_SECONDS = 5.0
REST_SECONDS = 1.0  # between the last answer and the measurement of an idle server
SETTLE_SECONDS = 15.0  # that the other workers may go on loading after the first good answer
GOOD = rb'"predicted_class":\s*7\b'  # the digit of bench/cases.py
_OURS = ("SERVEKIT_", "GUNICORN_", "WEB_CONCURRENCY", "OMP_", "MKL_", "OPENBLAS_", "MAKE", "MFLAGS", "PYTHON", "COVERAGE_")


class ServerFailed(Exception):
    """A server did not start, or did not answer as it should."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How one server is started and asked.

    `command(port, folder)` gives its command line; it may write its settings into `folder`, which is new and is its
    working directory unless `directory` names another.
    """

    name: str
    settings: str  # for people
    command: Callable[[int, Path], list[str]]
    variables: dict[str, str] = dataclasses.field(default_factory=dict)
    request: Request = dataclasses.field(default_factory=raw)
    answer: bytes = GOOD  # a pattern that a right answer to `request` contains
    directory: Path | None = None
    ports: int = 1  # how many ports in a row it needs
    warmup: float = 0.0  # seconds of load that it needs before it is at its best, if more than others
    cores: int | None = None  # how many of the servers' cores it may use; all if None


class Server:
    """A running server: its processes are those of the session that it was started in."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.start_seconds = 0.0
        self.log_file = log

    def members(self) -> list[int]:
        """Return the process ids of the server: master, workers, helpers."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat(int(entry))) and int(fields[3]) == self.process.pid:
                found.append(int(entry))
        return found

    def pss_mb(self) -> float:
        """Return the memory of all its processes in MB, each shared page counted once (PSS)."""
        total = 0
        for pid in self.members():
            with contextlib.suppress(OSError):
                found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
                total += int(found[1]) if found else 0
        return round(total * 1024 / 1e6, 1)

    def idle_cpu(self, seconds: float) -> float:
        """Return the share of one core that it uses during `seconds` without a request."""
        time.sleep(REST_SECONDS)
        before, begin = self._cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return round((self._cpu_seconds() - before) / (time.monotonic() - begin), 4)

    def settle(self) -> None:
        """Return when it has stopped computing: its other workers have loaded too. Or after SETTLE_SECONDS."""
        deadline = time.monotonic() + SETTLE_SECONDS
        used = self._cpu_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            before, used = used, self._cpu_seconds()
            if used - before <= 0.01:
                return

    def log_tail(self) -> str:
        """Return the end of what it has printed, for a reason why it failed."""
        lines = [line for line in self.log_file.read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-400:]

    def wait_until_good(self, request: Request, answer: bytes) -> None:
        """Return at the first right answer; raise ServerFailed if it ends, answers wrongly or takes too long."""
        begin = time.monotonic()
        last = b"no answer"
        while time.monotonic() - begin < START_SECONDS:
            if self.process.poll() is not None:
                raise ServerFailed(f"it ended with {self.process.returncode}: {self.log_tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, last = ask(self.port, request)
                if status == 200:
                    if not re.search(answer, last):
                        raise ServerFailed(f"it answers {last[:200]!r}")
                    return
            time.sleep(0.05)
        raise ServerFailed(f"no good answer in {START_SECONDS:.0f} s, but {last[:200]!r}: {self.log_tail()}")

    def stop(self) -> None:
        """End every process of it: by SIGTERM, and by SIGKILL what is left after STOP_SECONDS."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        deadline = time.monotonic() + STOP_SECONDS
        while (left := self.members()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)
        self.process.wait(STOP_SECONDS)

    def _cpu_seconds(self) -> float:
        ticks = 0
        for pid in self.members():
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12]) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(launch: Launch, cores: tuple[int, ...]) -> Iterator[Server]:
    """Run `launch` on `cores` for the length of a `with` block; it has given one good answer when the block begins."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port = free_port(launch.ports)
        command = launch.command(port, folder)
        begin = time.monotonic()
        with (folder / "log").open("wb") as output:
            process = subprocess.Popen(
                ["taskset", "--cpu-list", ",".join(map(str, cores[: launch.cores])), *command],
                cwd=launch.directory or folder,
                env=environment(launch.variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        server = Server(process, port, folder / "log")
        try:
            server.wait_until_good(launch.request, launch.answer)
            server.start_seconds = round(time.monotonic() - begin, 2)
            yield server
        finally:
            server.stop()


def servekit(store: Path, workers: int) -> Launch:
    """Return servekit as `make serve` starts it, on another port."""
    return Launch(
        "servekit",
        f"its defaults, {workers} workers",
        lambda port, folder: [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(workers)],
        {"SERVEKIT_MODEL_STORE": str(store)},
        directory=ROOT,
    )


def bare_worker(worker_class: str) -> Launch:
    """Return Gunicorn with one worker of `worker_class` and an application that answers two bytes, all else default."""

    def command(port: int, folder: Path) -> list[str]:
        options = ["--workers", "1", "--threads", "16"] if worker_class == "gthread" else ["--workers", "1"]
        bind = ["--bind", f"127.0.0.1:{port}", "--worker-class", worker_class]
        return [sys.executable, "-m", "gunicorn", *bind, *options, "bench.two_bytes:app"]

    name, settings = f"{worker_class} alone", "1 worker, two bytes"
    return Launch(name, settings, command, {"PYTHONPATH": str(ROOT)}, answer=b"^ok$", cores=1)


def trivial(workers: int) -> Launch:
    """Return the server that reads nothing: beside it the load generator shows its own limit."""
    module = str(ROOT / "bench" / "trivial.py")
    settings = f"{workers} processes, nothing read"
    return Launch("trivial", settings, lambda port, folder: [sys.executable, module, str(port), str(workers)], answer=b"^ok$")


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Return this process's environment without what sets up servers, and with `variables`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)} | variables


def ask(port: int, request: Request) -> tuple[int, bytes]:
    """Send `request` once on a connection of its own; return status and body."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("POST", request.path, request.body, {"Content-Type": request.content_type, **dict(request.headers)})
        response = connection.getresponse()
        return response.status, response.read()


def free_port(count: int = 1) -> int:
    """Return the first of `count` ports in a row that nobody uses now."""
    for _ in range(100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in range(first + 1, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return int(first)
    raise ServerFailed(f"no {count} free ports in a row")


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; nothing for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []
    return [] if fields[0] == "Z" else fields
