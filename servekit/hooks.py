"""What Gunicorn calls: its logger, and what the master and its workers do around the application.

The master imports this module, so it loads nothing that starts threads.
"""

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NoReturn

from gunicorn import glogging
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker

import servekit
from servekit.config import Settings
from servekit.errors import StartupError
from servekit.logs import dress

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
RESPAWN_PAUSE_SECONDS = 2.0  # between two tries of a worker that cannot load its models while others serve

log = logging.getLogger("servekit")


class Logger(glogging.Logger):
    """Gunicorn's logger, with our lines on its handlers: `--log-level`, `--access-logfile` and the rest still work."""

    def setup(self, cfg: Config) -> None:
        """Set up as Gunicorn does, then dress its handlers and share them with servekit's own loggers."""
        super().setup(cfg)
        try:
            log_format = Settings.from_environ(os.environ).log_format
        except StartupError as error:
            raise RuntimeError(str(error)) from None  # what Gunicorn prints as one sentence before it exits
        for handler in [*self.error_log.handlers, *self.access_log.handlers]:
            dress(handler, log_format)
        log.handlers = list(self.error_log.handlers)
        log.setLevel(self.loglevel)
        log.propagate = False


class Board:
    """What the workers of one master tell one another about the start, in memory that they share."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        self._workers = workers
        self._ready = context.Value("i", 0)
        self._refused = context.Value("i", 0)

    def add_ready(self) -> bool:
        """Note that a worker is ready; return True for the one that completes the start."""
        with self._ready:
            self._ready.value += 1
            return bool(self._ready.value == self._workers)

    def has_started(self) -> bool:
        """Return True once all workers have been ready."""
        return bool(self._ready.value >= self._workers)

    def claim_refusal(self) -> bool:
        """Return True for the one worker that is to say why the server cannot start."""
        with self._refused:
            self._refused.value += 1
            return bool(self._refused.value == 1)


_board: Board | None = None  # made by the master before it forks; None outside Gunicorn
_worker: Worker | None = None  # this process, if it is a worker
_own_metrics_dir: Path | None = None  # made by the master, and removed by it


def on_starting(server: Arbiter) -> None:
    """Prepare the master: shared memory for its workers, and an empty folder for their metrics."""
    global _board
    if server.cfg.preload_app:
        raise RuntimeError("preload_app cannot be used: each worker loads its own models. Leave it off.")
    _board = Board(server.num_workers)
    _prepare_metrics_dir()


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Remember in the new process which worker it is."""
    global _worker
    _worker = worker


def post_worker_init(worker: Worker) -> None:
    """Note that this worker has loaded its models; the last of the first ones announces the server."""
    assert _board is not None
    models = worker.wsgi.extensions["servekit"].models
    had_started = _board.has_started()
    if _board.add_ready():
        log.info("%s", banner(worker.cfg, worker.sockets[0].getsockname(), models))
    elif had_started:
        log.info("A new worker is ready: %s", _listing(models))


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Take a worker that has ended out of the metrics."""
    from servekit.metrics import mark_worker_dead  # not before the folder of the metrics is set

    mark_worker_dead(worker.pid)


def on_exit(server: Arbiter) -> None:
    """Remove what the master has made."""
    if _own_metrics_dir is not None:
        shutil.rmtree(_own_metrics_dir, ignore_errors=True)


def refuse(error: StartupError) -> NoReturn:
    """End a process that cannot serve, saying why in one sentence.

    At the start of the server the first worker to fail speaks for all, and the master ends with it. Later, when others
    serve already, only this worker ends; the master will try another.
    """
    if _board is None or _worker is None:  # the development server, or another server than Gunicorn
        sys.exit(f"servekit cannot start: {error}")
    if _board.has_started():
        log.error("A new worker cannot serve: %s", error)
        time.sleep(RESPAWN_PAUSE_SECONDS)
        sys.exit(1)
    if _board.claim_refusal():
        log.error("servekit cannot start: %s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)
    # A second worker that ended like the first would meet the master while it stops, and make it print a traceback.
    while _worker.alive and os.getppid() == _worker.ppid:
        time.sleep(0.02)
    sys.exit(0)


def banner(cfg: Config, address: Any, models: list[Any]) -> str:
    """Return what the server prints when it is ready: where it listens, what it holds, and a line to try."""
    if isinstance(address, tuple):
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address[0], address[0])
        where, curl, url = f"http://{address[0]}:{address[1]}", "curl", f"http://{host}:{address[1]}"
    else:
        where, curl, url = f"unix:{address}", f"curl --unix-socket {address}", "http://localhost"
    attempt = f'{curl} -X POST -d "value=5" {url}/predict'
    if all(model.name != "linear" for model in models):
        attempt = f"{curl} {url}/health"
    return (
        f"servekit {servekit.__version__} is ready\n"
        f"  address  {where}\n"
        f"  models   {_listing(models)}\n"
        f"  workers  {cfg.workers} ({cfg.worker_class_str}), on {models[0].device}\n"
        f"  try      {attempt}"
    )


def _listing(models: list[Any]) -> str:
    return ", ".join(f"{model.name}/{model.version}" for model in models)


def _prepare_metrics_dir() -> None:
    """Name a folder for the workers' metrics: the user's, emptied of an earlier run, or a new one in memory."""
    global _own_metrics_dir
    if given := os.environ.get(MULTIPROCESS_DIR):
        folder = Path(given)
        folder.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*.db"):
            file.unlink()
        return
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    _own_metrics_dir = Path(tempfile.mkdtemp(prefix="servekit-metrics-", dir=memory))
    os.environ[MULTIPROCESS_DIR] = str(_own_metrics_dir)
