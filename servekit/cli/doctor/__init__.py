"""`servekit doctor`: what a server would find here, and what to change. It changes nothing, and listens nowhere."""

import dataclasses
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from servekit.cli.doctor import gunicorn_settings, settings, store
from servekit.cli.doctor.limits import limits
from servekit.cli.doctor.machine import machine, memory
from servekit.cli.doctor.packages import packages
from servekit.cli.doctor.report import Section, as_json, as_text, would_start
from servekit.config import PREFIX, usable_cores, visible_gpus
from servekit.errors import ServekitError
from servekit.state import is_served

_ROOT = Path("/")
_KEY = re.compile(rf"({PREFIX}\w*KEY=)[^\s\"',)]+")


def doctor(model_store: Path | None, is_json: bool) -> int:
    """Print the report on a start in this folder, over `model_store` if it is given; return 1 if there would be none."""
    environ = dict(os.environ)
    os.environ.pop("WEB_CONCURRENCY", None)  # when Gunicorn is imported it prints a traceback for one that is no number
    if model_store is not None:
        environ[f"{PREFIX}MODEL_STORE"] = str(model_store)
    sections = examine(environ, Path.cwd(), _ROOT, resource.getrlimit(resource.RLIMIT_NOFILE))
    _say(without_keys(json.dumps(as_json(sections), indent=2) if is_json else as_text(sections)))
    return 0 if would_start(sections) else 1


def _say(text: str) -> None:
    """Print `text`; raise ServekitError if it cannot be written, but for a reader who has seen enough."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again at its end, and would complain
        if not isinstance(error, BrokenPipeError):
            raise ServekitError(f"The report cannot be written: {error.strerror}.") from None


def without_keys(text: str) -> str:
    """Return `text` without the values of variables that hold a key: the command of a process may set them."""
    return _KEY.sub(rf"\1{settings.MASK}", text)


def examine(environ: Mapping[str, str], folder: Path, root: Path, descriptors: tuple[int, int]) -> list[Section]:
    """Return all sections for a start in `folder` with `environ`.

    `root` is where /proc, /sys and /dev are looked for, `descriptors` the soft and hard limit of open files.
    """
    from servekit.cli.doctor.ports import ports  # it imports Gunicorn

    cores, (_, free, _) = usable_cores(root), memory(root)
    gunicorn = gunicorn_settings.read(environ, folder)
    configured = gunicorn.get("variables", {})
    variables = {**environ, **configured}
    chosen, wrong = settings.read(variables)
    base = Path(gunicorn.get("chdir", folder))
    located = dataclasses.replace(chosen, model_store=base / chosen.model_store)
    is_running = is_served(located.model_store)
    loaded = store.load_all(variables, base) if not wrong else {"models": [], "memory": None, "error": ""}
    room = 0 if is_running else free  # a server that runs holds the memory that a start would have
    workers, gpus = gunicorn.get("workers", 1), visible_gpus(variables, root)
    return [
        machine(variables, root, os.geteuid()),
        settings.section_of(chosen, wrong, variables, configured),
        gunicorn_settings.section_of(gunicorn, cores),
        ports(gunicorn.get("address", []), gunicorn.get("reuse_port", False), chosen, variables, is_running),
        store.section_of(loaded, located, workers, room, gpus),
        limits(located, gunicorn, variables, cores, root, descriptors),
        packages(),
    ]
