"""What a reload is refused for: whatever a start would be, and models that do not load. Until that is known nothing changes.

Gunicorn's master takes whatever it has read, and ends with all its workers if it cannot be used.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.pidfile import Pidfile
from gunicorn.workers.base import Worker

from servekit.config import MULTIPROCESS_DIR, Settings, seal_keys
from servekit.desired import Desired
from servekit.entrance import addresses_of, require_entrance
from servekit.errors import SettingError, StartupError
from servekit.ports import require_free, require_path
from servekit.state import State
from servekit.stores import entries_of

PATIENCE_SECONDS = 5.0  # with a change of the models that is under way, which may need the master meanwhile
TRIAL_SECONDS = 300.0  # for the models to load; the master does nothing else meanwhile


def require_usable(cfg: Config) -> None:
    """Raise SettingError for what Gunicorn can be told, and a server of servekit cannot do."""
    if cfg.preload_app:
        raise SettingError("preload_app cannot be used: each worker loads its own models. Leave it off.")
    if cfg.workers < 1:
        raise SettingError("A server needs at least one worker; set WEB_CONCURRENCY or --workers to 1 or more.")
    if not speaks(cfg):
        raise SettingError(
            "servekit's worker class speaks neither TLS nor the proxy protocol; use --worker-class gthread, or put a proxy in "
            "front."
        )


def speaks(cfg: Config) -> bool:
    """Return True if the worker class speaks what its clients are to send; raise SettingError if it is none."""
    name = cfg.worker_class_str
    try:
        worker_class = cfg.worker_class
    except Exception as error:  # of Gunicorn, or of the module that it imports
        reason = str(error.__context__ or error).partition("\n")[0]  # Gunicorn's own has a traceback in it
        raise SettingError(f"The worker class {name} cannot be loaded ({reason}); name another.") from None
    if not (isinstance(worker_class, type) and issubclass(worker_class, Worker)):
        raise SettingError(f"The worker class {name} is none of Gunicorn's kind; name another.")
    return not hasattr(worker_class, "leaves") or not (cfg.is_ssl or cfg.proxy_protocol != "off")


def require_startable(server: Arbiter, cfg: Config) -> dict[str, str]:
    """Raise StartupError if `server` could not go on with `cfg`; return the environment that its workers would have."""
    try:
        addresses, variables = cfg.address, {**os.environ, **cfg.env}
    except RuntimeError as error:
        raise SettingError(f"Gunicorn's configuration cannot be used: {error}") from None
    _require_environ(cfg)
    seal_keys(variables)
    settings = Settings.from_environ(variables)
    require_usable(cfg)
    _require_files(cfg)
    if not addresses:
        raise SettingError("There is no address to listen on; set bind to one.")
    if addresses == server.cfg.address:  # a socket that was given had its number only once
        require_entrance(settings, [each.getsockname() for each in server.LISTENERS] or addresses_of(cfg))
    else:
        require_entrance(settings, addresses_of(cfg))
        _require_listenable(server.cfg, addresses, cfg.reuse_port)
    return variables


def take_newest(server: Arbiter, cfg: Config, state: State) -> None:
    """Let the workers that `server` starts with `cfg` serve what is in the store now.

    Raises StartupError or Overloaded, and changes nothing, if that cannot be.
    """
    variables = require_startable(server, cfg)
    _try_models(cfg, variables)
    settings = Settings.from_environ(variables)
    try:
        with state.change(PATIENCE_SECONDS) as desired:
            state.write(Desired.of(entries_of(settings, cfg.workers), desired.generation), wakes=False)
    except OSError as error:
        raise StartupError(f"what is to be served cannot be written down ({error.strerror})") from None


def _require_environ(cfg: Config) -> None:
    """Raise SettingError if the variables of `cfg` are none that a process can have."""
    for name, value in cfg.env.items():
        if not name or "\0" in name + value:
            raise SettingError("A variable of raw_env has no name before its equals sign, or holds a null character.")


def _require_files(cfg: Config) -> None:
    """Raise SettingError if Gunicorn could not use a file that `cfg` names, for which it would end."""
    if cfg.pidfile:
        _require_pidfile(cfg.pidfile)
    for name, path in (("certfile", cfg.certfile), ("keyfile", cfg.keyfile)):
        if path and not os.access(path, os.R_OK):
            raise SettingError(f"The {name} {path} cannot be read; name another one.")
    folder = cfg.worker_tmp_dir
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise SettingError(f"The folder {folder} of worker_tmp_dir is not there or cannot be written; name another one.")


def _require_pidfile(path: str) -> None:
    """Raise SettingError if Gunicorn could not write the number of this process into the file at `path`."""
    try:
        process = Pidfile(path).validate()
    except OSError as error:
        raise SettingError(f"The pidfile {path} cannot be read: {error.strerror}; name another one.") from None
    except OverflowError:
        raise SettingError(f"The pidfile {path} holds a number that no process has; name another one.") from None
    if process not in (None, os.getpid()):
        raise SettingError(f"The pidfile {path} is another server's; name another one.")
    if not os.access(os.path.dirname(path) or ".", os.W_OK | os.X_OK):
        raise SettingError(f"The folder of the pidfile {path} is not there or cannot be written; name another one.")


def _require_listenable(old: Config, addresses: list[Any], reuse_port: bool) -> None:
    """Raise StartupError if a server that listens where `old` says could not listen on `addresses`, which differ, instead.

    Gunicorn opens all of them anew while the old workers still listen.
    """
    if reuse_port:  # the master would listen, too, and take no connection
        raise SettingError("With reuse_port addresses do not change by a reload; restart the server.")
    for address in addresses:
        if isinstance(address, str):
            require_path(address)
        elif isinstance(address, tuple) and address in old.address:
            raise SettingError(
                f"{address[0]}:{address[1]} cannot stay while other addresses change, because the old workers still listen "
                "there; restart the server."
            )
        elif isinstance(address, tuple):
            require_free(address)


def _try_models(cfg: Config, variables: Mapping[str, str]) -> None:
    """Load the application in a process of its own; raise StartupError if a worker started now could not serve."""
    variables = {name: value for name, value in variables.items() if name != MULTIPROCESS_DIR}
    # Those who are served meanwhile come first, but the master waits for this.
    trial = "import os; os.nice(5); from servekit.app import application; application()"
    command = [sys.executable, "-c", trial]
    try:
        ended = subprocess.run(
            command, cwd=cfg.chdir, env=variables, capture_output=True, text=True, errors="replace", timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise StartupError(f"the models did not load within {TRIAL_SECONDS:.0f} seconds") from None
    except OSError as error:  # no process or memory is left
        raise StartupError(f"the models cannot be tried ({error.strerror})") from None
    if ended.returncode:
        raise StartupError((ended.stderr.strip().splitlines() or ["it ended without a word"])[-1])
