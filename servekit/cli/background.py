"""A server in the background: its process id in a file, the wait until it answers, and its end."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servekit.cli.serve import command_of
from servekit.config import PREFIX
from servekit.errors import ServekitError, StartupError
from servekit.torchserve.startup import KEY_FILE

PID_FILE = ".model_server.pid"  # in the temporary folder, where scripts look for TorchServe's
LOG, ACCESS_LOG = "ts_log.log", "access_log.log"
STOP_SECONDS = 60.0  # above Gunicorn's own time for open requests
_LOOK_SECONDS = 0.1
_OURS = (b"gunicorn", b"servekit.app")  # both are in the command of a server, whatever its title
_THEIRS = (b"org.pytorch.serve",)
_REFUSALS = (re.compile(r"servekit cannot start: (.*)"), re.compile(r"^Error: (.*)"))  # ours, then Gunicorn's


def default_pid_file() -> Path:
    """Return where the process id of a server in the background is kept unless a flag says otherwise."""
    return Path(tempfile.gettempdir()) / PID_FILE


def model_store_of(pid_file: Path) -> Path | None:
    """Return the model store of the server of `pid_file`; None if none runs, or this is not Linux."""
    pid = _read(pid_file)
    name = f"{PREFIX}MODEL_STORE=".encode()
    try:
        if pid is None or not _is(pid, _OURS):
            return None
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    found = next((variable.removeprefix(name) for variable in variables if variable.startswith(name)), None)
    return None if found is None else _folder_of(pid) / os.fsdecode(found)


def require_none(pid_file: Path) -> None:
    """Raise StartupError if the server of `pid_file` runs; remove the file if it is of an earlier one."""
    pid = _read(pid_file)
    if pid is None:
        return
    if _is(pid, _THEIRS):
        raise StartupError(f"TorchServe itself runs already as process {pid}; stop it, or give another --pid-file.")
    if _is(pid, _OURS):
        raise StartupError(
            f"A server runs already as process {pid}; stop it with `servekit torchserve --stop`, "
            "or give another --pid-file."
        )
    pid_file.unlink(missing_ok=True)


def start(
    options: Sequence[str], environ: Mapping[str, str], logs: Path, addresses: Sequence[Any], patience: float
) -> str:
    """Start Gunicorn with `options` in a session of its own, and wait until it answers on the first of `addresses`.

    It writes into the folder `logs`. Returns a sentence that says where it is; after `patience` seconds, one that says
    that it still loads. Raises StartupError with its own last sentence if it ends.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        output = (logs / LOG).open("ab")
    except OSError as error:
        raise StartupError(f"The folder of the logs {logs} cannot be written: {error.strerror}; set LOG_LOCATION.") from None
    with output:
        written = output.seek(0, os.SEEK_END)
        files = [f"--error-logfile={logs / LOG}", f"--access-logfile={logs / ACCESS_LOG}"]
        process = subprocess.Popen(
            command_of([*options, *files]),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        answers = _answers(addresses[0], process, patience)
    except KeyboardInterrupt:  # it has a session of its own, which ctrl-C does not reach
        process.send_signal(signal.SIGINT)  # at once, without the time that open requests are given
        process.wait()
        raise
    if answers:
        return f"The server runs as process {process.pid}; its log is {logs / LOG}."
    if process.poll() is None:
        return f"The server runs as process {process.pid} and still loads its models; its log is {logs / LOG}."
    raise StartupError(_last_words(logs / LOG, written))


def stop(pid_file: Path) -> str:
    """Stop the server of `pid_file`, letting it finish what it has, and remove its tokens; return what came of it.

    Raises ServekitError if it does not end.
    """
    pid = _read(pid_file)
    if pid is None or not _is(pid, (b"",)):
        pid_file.unlink(missing_ok=True)
        return "No server runs."
    if not _is(pid, _OURS):
        return f"{pid_file} names process {pid}, which is no server of servekit's; it is left alone."
    folder = _folder_of(pid)
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while _is(pid, _OURS):
        if time.monotonic() > until:
            raise ServekitError(f"Process {pid} does not end; look at its log, or end it with `kill -9 {pid}`.")
        time.sleep(_LOOK_SECONDS)
    pid_file.unlink(missing_ok=True)
    (folder / KEY_FILE).unlink(missing_ok=True)
    return f"The server, process {pid}, has stopped."


def _read(pid_file: Path) -> int | None:
    try:
        return int(pid_file.read_text())
    except (OSError, ValueError):
        return None


def _is(pid: int, words: Sequence[bytes]) -> bool:
    """Return True if that process lives and its command holds all of `words`."""
    try:
        os.kill(pid, 0)
        if not Path("/proc/self").exists():
            return True  # not Linux: the file is all there is to go by
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return status != b"Z" and all(word in command for word in words)


def _folder_of(pid: int) -> Path:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return Path.cwd()


def _answers(address: Any, process: subprocess.Popen[bytes], patience: float) -> bool:
    """Return True once an HTTP answer has come: a worker takes requests only when its models are loaded."""
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError), _connected(address) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while time.monotonic() < until and process.poll() is None:
                if select.select([connection], [], [], _LOOK_SECONDS)[0]:
                    if connection.recv(5) == b"HTTP/":
                        return True
                    break
        time.sleep(_LOOK_SECONDS)
    return False


def _connected(address: Any) -> socket.socket:
    if not isinstance(address, tuple):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(str(address))
        return connection
    host, port = address[:2]
    return socket.create_connection(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port), timeout=1)


def _last_words(log: Path, start: int) -> str:
    """Return why the server has ended: the sentence that it wrote to `log` after `start`, or its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    for refusal in _REFUSALS:
        for line in reversed(lines):
            if found := refusal.search(line):
                return found[1]
    return f"The server ended with: {lines[-1] if lines else 'no word'}; look at {log} for more."
