"""Giving each peer a virtual environment of its own under `.bench/`, and finding what lies in it."""

import subprocess
import sys
from pathlib import Path

from bench.machine import ROOT

FOLDER = ROOT / ".bench"
INSTALL_SECONDS = 900.0
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


class PeerFailed(Exception):
    """A peer cannot be installed or prepared; the message is the reason."""


def source(peer: str) -> Path:
    """Return the folder of what we wrote for `peer`."""
    return Path(__file__).parent / peer


def pins() -> dict[str, list[str]]:
    """Return what is pinned for each peer."""
    files = sorted(Path(__file__).parent.glob("*/requirements.txt"))
    return {file.parent.name: [line for line in file.read_text().splitlines() if "==" in line] for file in files}


def program(peer: str, name: str = "python") -> Path:
    """Return a program of the environment of `peer`."""
    return FOLDER / peer / "bin" / name


def packages(peer: str) -> Path:
    """Return where the environment of `peer` keeps its packages."""
    return FOLDER / peer / "lib" / f"python{VERSION}" / "site-packages"


def install(peer: str) -> None:
    """Make the environment of `peer` unless it already has what its requirements.txt says; raise PeerFailed."""
    wanted = source(peer) / "requirements.txt"
    stamp = FOLDER / peer / ".installed"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return
    print(f"Installing {peer} into {FOLDER / peer} (this can take minutes) ...", flush=True)
    FOLDER.mkdir(exist_ok=True)
    call([sys.executable, "-m", "venv", "--clear", str(FOLDER / peer)])
    pip = [str(program(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call([*pip, "--requirement", str(wanted)])
    stamp.write_text(wanted.read_text())


def call(command: list[str]) -> None:
    """Run `command`; raise PeerFailed with the last thing it said if it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(str(error)) from None
    if ended.returncode:
        lines = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
        raise PeerFailed(f"{Path(command[0]).name} failed: {' | '.join(lines[-3:])[-400:]}")
