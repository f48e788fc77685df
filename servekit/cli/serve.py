"""`servekit serve`: Gunicorn with servekit's settings, from any folder; and what starting it takes in general."""

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from servekit.config import PREFIX
from servekit.platforms import positive, require_safe_ports
from servekit.ports import require_free

APPLICATION = "servekit.app:application()"
_OURS = ["--config", "python:servekit.server"]


def serve(binds: Sequence[str], model_store: Path | None, others: Sequence[str]) -> NoReturn:
    """Become Gunicorn, listening on `binds` or else on 127.0.0.1:5001; `others` are options of Gunicorn.

    A `gunicorn.conf.py` in this folder, or one that is named in the options, takes the place of servekit's settings.
    Raises StartupError if an address cannot be listened on.
    """
    if model_store is not None:
        os.environ[f"{PREFIX}MODEL_STORE"] = str(model_store)
    options = with_settings([*others, *(f"--bind={address}" for address in binds)])
    addresses = require_free_addresses(options)
    require_safe_ports(os.environ, [address[1] for address in addresses if isinstance(address, tuple)])
    become_gunicorn(options, os.environ)


def with_settings(options: Sequence[str]) -> list[str]:
    """Return `options` led by those that name servekit's settings, unless they or this folder name others."""
    is_named = _names_config([*options, *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))])
    return [*([] if is_named or Path("gunicorn.conf.py").exists() else _OURS), *options]


def torchserve_options(*options: str) -> list[str]:
    """Return the options of a Gunicorn that stands in for TorchServe: servekit's own settings, then `options`."""
    return [*_OURS, *options]


def command_of(options: Sequence[str]) -> list[str]:
    """Return the command that starts Gunicorn with `options`."""
    return [sys.executable, "-m", "gunicorn", *options, APPLICATION]


def become_gunicorn(options: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process by Gunicorn."""
    command = command_of(options)
    sys.stdout.flush()
    os.execve(command[0], command, dict(environ))


def require_free_addresses(options: Sequence[str]) -> list[Any]:
    """Return where a Gunicorn with `options` would listen, (host, port) or a path each.

    Raises StartupError if it could not. Gunicorn itself would try for five seconds, and not know who is in the way; and
    of a WEB_CONCURRENCY that is no number it prints a traceback when it is imported.
    """
    if os.environ.get("WEB_CONCURRENCY"):
        positive(os.environ, "WEB_CONCURRENCY", 0)
    with _as_command(options):
        from gunicorn.app.wsgiapp import WSGIApplication

        config = WSGIApplication(prog="servekit").cfg  # ends this process with one sentence if options are wrong
    addresses: list[Any] = config.address
    for address in addresses:
        if isinstance(address, tuple) and not config.reuse_port:
            require_free(address[:2])
    return addresses


@contextlib.contextmanager
def _as_command(options: Sequence[str]) -> Iterator[None]:
    """Let this process look like Gunicorn's with `options`; its settings may name another folder to work in."""
    arguments, folder, path = sys.argv, os.getcwd(), list(sys.path)
    sys.argv = ["gunicorn", *options, APPLICATION]
    try:
        yield
    finally:
        sys.argv = arguments
        sys.path[:] = path
        os.chdir(folder)


def _names_config(options: Sequence[str]) -> bool:
    return any(option.startswith("--config") or option[:2] == "-c" for option in options)
