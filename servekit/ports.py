"""Whether an address can be listened on, and if not, what is in the way."""

import errno
import os
import pwd
import socket
import stat
from pathlib import Path

from servekit.errors import StartupError

Address = tuple[str, int]
_LISTENS = "0A"  # the state of a listening socket in /proc/net/tcp
MAX_SOCKET_PATH = 107  # bytes of a path, which the system ends by another one
_PROC = Path("/proc")


def require_free(address: Address) -> None:
    """Raise StartupError, naming the process that is in the way, if nobody can listen on `address` now."""
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:  # as Gunicorn decides
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (socket.gaierror, UnicodeError):
        raise StartupError(f"The host of the address {where} is not known; choose another one.") from None
    except OverflowError:
        raise StartupError(f"The port of the address {where} is none; choose one up to 65535.") from None
    except OSError as error:
        raise StartupError(_reason(where, port, error)) from None


def require_path(path: str) -> None:
    """Raise StartupError if Gunicorn could make no socket at `path`: it takes the place of an old one only."""
    folder = Path(path).parent
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise StartupError(f"A socket's path may have {MAX_SOCKET_PATH} bytes, and one has more; choose another path.")
    try:
        is_taken = not path.startswith("\0") and not stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        is_taken = False
    except OSError as error:
        raise StartupError(f"The socket {path} cannot be made: {error.strerror}; choose another path.") from None
    if is_taken:
        raise StartupError(f"{path} is there and is no socket; choose another path.")
    if not path.startswith("\0") and not os.access(folder, os.W_OK | os.X_OK):
        raise StartupError(f"The folder of the socket {path} is not there or cannot be written; choose another path.")


def holder_of(port: int, proc: Path = _PROC) -> str:
    """Return who listens on `port`, as one would say it: a process with its command, or what is known of it.

    `proc` is where /proc is looked for.
    """
    owners = _listeners(port, proc)
    for folder in proc.glob("[0-9]*"):
        if owners.keys() & _sockets_of(folder):
            command = _command_of(folder)
            return f"process {folder.name} ({command})" if command else f"process {folder.name}"
    others = set(owners.values()) - {os.getuid()}
    if others:
        return f"a process of the user {_user(others.pop())}"
    return "another process"


def _reason(where: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{where} is in use by {holder_of(port)}; stop it, or choose another address."
    if error.errno == errno.EACCES:
        return f"{where} may only be listened on by the system's administrator; choose a port from 1024 on."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where} is no address of this machine; choose another one."
    return f"{where} cannot be listened on: {error.strerror}; choose another address."


def _listeners(port: int, proc: Path) -> dict[str, int]:
    """Return the sockets that listen on `port`: inode -> user id."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / table).read_text().splitlines()[1:]
        except OSError:  # not Linux, or no IPv6
            continue
        for columns in map(str.split, lines):
            if columns[3] == _LISTENS and int(columns[1].rpartition(":")[2], 16) == port:
                found[columns[9]] = int(columns[7])
    return found


def _sockets_of(folder: Path) -> set[str]:
    """Return the inodes of the sockets that a process of /proc holds; none if it is another user's, or gone."""
    inodes = set()
    try:
        for link in (folder / "fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    except OSError:
        pass
    return inodes


def _command_of(folder: Path) -> str:
    try:
        words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    return b" ".join(filter(None, words)).decode(errors="replace")[:200]


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
