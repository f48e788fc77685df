"""Gunicorn's settings as a start in this folder would take them, and where each comes from.

They are read in a process of their own: a `gunicorn.conf.py` is a program, and may do as it likes.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servekit.cli.doctor.report import Section
from servekit.errors import SettingError
from servekit.platforms import positive

NAMES = (
    *("bind", "workers", "worker_class", "threads", "timeout", "graceful_timeout", "keepalive", "worker_connections"),
    *("backlog", "max_requests", "max_requests_jitter", "preload_app", "reuse_port", "worker_tmp_dir", "chdir"),
    *("accesslog", "errorlog", "forwarded_allow_ips", "certfile", "proxy_protocol"),
)
_MARK = "servekit-doctor:"  # before the line that counts: a gunicorn.conf.py may print others
_SECONDS = 60.0


def read(environ: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the settings of NAMES, `address`, and `origins`, by name; or `error`, one sentence.

    `variables` are those of the environment that the configuration sets, `raw_env` included.
    """
    try:
        if environ.get("WEB_CONCURRENCY"):
            positive(environ, "WEB_CONCURRENCY", 1)  # Gunicorn would print a traceback
    except SettingError as error:
        return {"error": str(error)}
    command, variables = [sys.executable, "-m", __name__], {**environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"gunicorn.conf.py does not come to its end within {_SECONDS:.0f} seconds"}
    for line in ended.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    words = [line.strip() for line in ended.stderr.splitlines() if line.strip()] or ["it ended without a word"]
    return {"error": words[-1].removeprefix("servekit cannot start: ").removeprefix("Error: ")}


def section_of(found: Mapping[str, Any], cores: int) -> Section:
    """Return the settings with what to change about them; `found` is what `read` returns."""
    section = Section("Gunicorn")
    if "error" in found:
        section.stops(f"Gunicorn's settings cannot be used: {found['error']}.".replace("..", "."))
        return section
    for name in NAMES:
        section.add(name, found[name], _text(found[name]), found["origins"][name])
    _workers(section, found, cores)
    _times(section, found)
    if not found["speaks"]:
        section.stops(
            "servekit's worker class speaks neither TLS nor the proxy protocol; use --worker-class gthread, or put a proxy in "
            "front."
        )
    if found["preload_app"]:
        section.stops("preload_app cannot be used, since each worker loads its own models; leave it off.")
    if found["max_requests"] and not found["max_requests_jitter"]:
        section.consider("max_requests without max_requests_jitter lets all workers end at the same time; set the jitter, too.")
    return section


def _workers(section: Section, found: Mapping[str, Any], cores: int) -> None:
    workers = found["workers"]
    if workers < 1:
        section.stops("A server needs at least one worker; set WEB_CONCURRENCY or --workers to 1 or more.")
    elif workers > cores:
        section.change(
            f"{workers} workers share {cores} usable cores, and each computes with a core of its own: they fight for them; "
            f"set WEB_CONCURRENCY={cores}."
        )
    elif workers < cores:
        section.consider(
            f"{cores - workers} of {cores} usable cores have no worker; raise WEB_CONCURRENCY if predictions on the CPU "
            "are too slow and the memory holds one more copy of the models each."
        )
    if found["worker_class"] in ("sync", "gevent", "tornado"):
        section.change(f"The worker class {found['worker_class']} shares no forward passes; leave worker_class to servekit.")


def _times(section: Section, found: Mapping[str, Any]) -> None:
    if found["timeout"] == 0:
        section.change("With timeout 0 a worker that hangs is never replaced; set it to some seconds, such as 30.")
    if found["graceful_timeout"] > 30:
        section.consider(
            f"graceful_timeout is {found['graceful_timeout']} s, and most orchestrators kill after 30 s; raise theirs "
            "(terminationGracePeriodSeconds), too."
        )
    if found["keepalive"] < 60:
        section.consider(
            f"keepalive is {found['keepalive']} s; a load balancer that keeps connections for longer, as most do for 60 s, "
            "meets closed ones; set it to 75."
        )


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _main() -> None:
    """Print what a start in this folder with this environment would take, as one line of JSON."""
    sys.path.insert(0, os.getcwd())
    before = dict(os.environ)
    from servekit.cli.serve import APPLICATION, with_settings
    from servekit.reloads import speaks

    sys.argv = ["gunicorn", *with_settings([]), APPLICATION]
    from gunicorn.app.wsgiapp import WSGIApplication

    cfg = WSGIApplication(prog="servekit").cfg  # ends this process with one sentence if they are wrong
    given = vars(cfg.parser().parse_args(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))))
    values = {name: cfg.settings[name].value for name in NAMES}
    origins = {name: "GUNICORN_CMD_ARGS" if given.get(name) is not None else _origin(name, values[name]) for name in NAMES}
    values["worker_class"] = cfg.worker_class_str
    try:
        values["speaks"] = speaks(cfg)
    except SettingError as error:
        sys.exit(str(error))
    told = {**values, "address": cfg.address, "origins": origins, "variables": _variables(before, {**os.environ, **cfg.env})}
    print(_MARK + json.dumps(told, default=str))


def _variables(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Return what the configuration has set, but for the threads that servekit's own settings leave to a worker."""
    ours = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {name: value for name, value in after.items() if before.get(name) != value and ours.get(name) != value}


def _origin(name: str, value: Any) -> str:
    """Return where a setting that no option gives comes from."""
    from gunicorn.config import Config

    from servekit import server
    from servekit.platforms import NONE

    if getattr(server, name, None) == value and hasattr(server, name):
        if name == "workers" and os.environ.get("WEB_CONCURRENCY"):
            return "WEB_CONCURRENCY"
        return f"platform {server._cloud.name}" if name == "bind" and server._cloud.name != NONE else "servekit"
    return "Gunicorn's default" if Config().settings[name].value == value else "gunicorn.conf.py"


if __name__ == "__main__":
    _main()
