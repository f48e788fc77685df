"""A reader of a book at a terminal: a folder of their own, the files that they write there, the lines that they type."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.server import ROOT, environment, free_ports

Typed = subprocess.CompletedProcess[str]
SECONDS = 90.0  # for one line, on a machine that is busy with other tests
BOOK_PORTS = (8080, 8081, 8082)


class Reader:
    """Works in `folder`, where `servekit`, `python` and `curl` are found, and nothing else of servekit's checkout.

    The ports of the book are others in what is written and typed: another server may listen on them.
    """

    def __init__(self, folder: Path, home: Path) -> None:
        """`home` is for what is not the reader's: the command, the temporary folder with its pid file, the cache."""
        self.folder = folder
        commands, modules, self.temporary = (home / name for name in ("bin", "modules", "tmp"))
        for each in (folder, commands, modules, self.temporary):
            each.mkdir(parents=True)
        (modules / "servekit").symlink_to(ROOT / "servekit")
        launcher = commands / "servekit"  # for where the package is not installed
        launcher.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m servekit "$@"\n')
        launcher.chmod(0o755)
        self.variables = environment(
            PATH=os.pathsep.join([str(Path(sys.executable).parent), str(commands), os.environ["PATH"]]),
            PYTHONPATH=str(modules),
            TMPDIR=str(self.temporary),
            XDG_CACHE_HOME=str(home / "cache"),
        )
        for name in ("TS_CONFIG_FILE", "LOG_LOCATION", "METRICS_LOCATION", "PYTHONUNBUFFERED", "COVERAGE_PROCESS_CONFIG"):
            self.variables.pop(name, None)
        self.ports = dict(zip(BOOK_PORTS, free_ports(len(BOOK_PORTS)), strict=True))

    def write(self, name: str, text: str) -> None:
        """Write the file `name`, without the indentation that `text` has in a test."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(self._here(text)).lstrip("\n"))

    def tries(self, line: str, **variables: str) -> Typed:
        """Type `line` into the shell and wait for its end, whatever it is."""
        return subprocess.run(
            self._here(line),
            shell=True,
            cwd=self.folder,
            env=self.variables | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def types(self, line: str, **variables: str) -> Typed:
        """Type `line`, which ends well."""
        ended = self.tries(line, **variables)
        assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}{self.log()}"
        return ended

    def asks(self, line: str) -> Any:
        """Type `line`, a curl that gets an answer, of whatever status; return it parsed."""
        ended = self.types(line)
        return json.loads(ended.stdout)

    def fails(self, line: str, **variables: str) -> str:
        """Type `line`, which ends with status 1; return the last line that it prints, for there is no traceback."""
        ended = self.tries(line, **variables)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr, f"{line}\n{ended.stdout}{ended.stderr}"
        return ended.stderr.splitlines()[-1]

    def starts(self, line: str, log: str = "logs/ts_log.log", **variables: str) -> str:
        """Type `line`, which starts a server in the background that logs to `log`; return what it warns of."""
        ended = self.types(line, **variables)
        assert ended.stdout == f"The server runs as process {self.pid()}; its log is {log}.\n"
        return ended.stderr

    def pid(self) -> int:
        """Return the process id of the server in the background."""
        return int((self.temporary / ".model_server.pid").read_text())

    def log(self) -> str:
        """Return what the server has logged; "" if there is none."""
        file = self.folder / "logs" / "ts_log.log"
        return file.read_text() if file.exists() else ""

    def leaves(self) -> None:
        """Stop a server that a test has left running."""
        if (self.temporary / ".model_server.pid").exists():
            pid = self.pid()
            self.tries("servekit torchserve --stop")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _here(self, text: str) -> str:
        return re.sub(r"(?<=:)808[012]\b", lambda match: str(self.ports[int(match[0])]), text)
