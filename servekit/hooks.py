"""What Gunicorn calls: its logger, and what the master and its workers do around the application.

The master imports this module, so it loads nothing that starts threads.
"""

import atexit
import dataclasses
import datetime
import fcntl
import logging
import math
import mmap
import os
import sys
import tempfile
import time
from typing import Any, NoReturn, cast

from gunicorn import glogging
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from gunicorn.workers.base import Worker

import servekit
from servekit import entrance
from servekit.config import Settings
from servekit.crew import announce_stop, follow_number, hand_over, keep_instances, keep_number
from servekit.desired import Desired
from servekit.errors import StartupError
from servekit.logs import ACCESS_LOGGER, TextFormatter, configure_handler, is_worth_a_line, marked, trace_of_access
from servekit.metrics import prepare_folder, set_serving
from servekit.reloads import require_startable, require_usable, take_newest
from servekit.roster import Roster
from servekit.state import State
from servekit.stores import entries_of

SLOTS_PER_WORKER = 3  # those that start while others stop, and some to spare
NO_EXIT_STATUS = -1
_READY, _REFUSED = 0, 1  # places of the counts that workers share while they start
RESPAWN_PAUSE_SECONDS = 2.0  # between two tries of a worker that cannot load its models while others serve

log = logging.getLogger("servekit")


def refuse_unusable(cfg: Config) -> None:
    """Raise RuntimeError, which Gunicorn prints as one sentence before it exits, for what a server of servekit cannot do."""
    try:
        require_usable(cfg)
    except StartupError as error:
        raise RuntimeError(str(error)) from None


class Logger(glogging.Logger):
    """Gunicorn's logger, with our lines on its handlers: `--log-level`, `--access-logfile` and the rest still work."""

    def setup(self, cfg: Config) -> None:
        """Set up as Gunicorn does, then format its handlers and share them with servekit's own loggers.

        Gunicorn calls this first of all, so what cannot be used is refused here: a RuntimeError is printed as one
        sentence before it exits.
        """
        refuse_unusable(cfg)
        try:
            log_format = Settings.from_environ(os.environ).log_format
        except StartupError as error:
            raise RuntimeError(str(error)) from None
        super().setup(cfg)
        for handler in [*self.error_log.handlers, *self.access_log.handlers]:
            if getattr(handler, "_gunicorn", False):  # not those of the user's own --log-config
                configure_handler(handler, log_format)
        self._access_format = cfg.access_log_format  # Gunicorn's configuration looks names up slowly
        handlers = self.access_log.handlers
        self._plain_handler = None  # the only one for access lines, if it writes our text to a stream
        if len(handlers) == 1 and isinstance(handlers[0], logging.StreamHandler) and log_format == "text":
            self._plain_handler = handlers[0] if isinstance(handlers[0].formatter, TextFormatter) else None
        log.handlers = list(self.error_log.handlers)
        log.setLevel(self.loglevel)
        log.propagate = False

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: datetime.timedelta) -> None:
        """Write a line in Gunicorn's `access_log_format`, unless it is one that nobody reads.

        Gunicorn looks up some fifty things for it, and who called the logger; here only what the format names is.
        """
        if not self.access_log_enabled or not self.access_log.isEnabledFor(logging.INFO):
            return
        if not is_worth_a_line(environ.get("PATH_INFO", ""), str(resp.status)):
            return
        atoms = Atoms(self, resp, req, environ, request_time)
        try:
            if self._plain_handler is not None:
                self._write(self._plain_handler, atoms)
            else:
                line = (ACCESS_LOGGER, logging.INFO, "", 0, self._access_format, (atoms,), None)
                self.access_log.handle(logging.LogRecord(*line))
        except Exception:  # a format that does not exist; the answer is not to suffer
            self.exception("The access line cannot be written")

    def _write(self, handler: logging.StreamHandler[Any], atoms: "Atoms") -> None:
        formatter = cast(TextFormatter, handler.formatter)
        message = self._access_format % atoms
        identity = marked(atoms["{x-request-id}o"], trace_of_access(atoms))
        line = formatter.access_line(time.time(), identity, message)
        handler.acquire()
        try:
            handler.stream.write(line + handler.terminator)
            handler.flush()
        except OSError:
            handler.handleError(logging.makeLogRecord({}))
        finally:
            handler.release()


class Atoms(dict[str, Any]):
    """What an access line may name, found when it is named; see Gunicorn's `access_log_format`."""

    def __init__(self, logger: Logger, resp: Any, req: Any, environ: dict[str, Any], request_time: datetime.timedelta):
        super().__init__(
            h=environ.get("REMOTE_ADDR", "-"),
            s=str(resp.status).partition(" ")[0],
            B=resp.sent,
            D=request_time.seconds * 1_000_000 + request_time.microseconds,
            m=environ["REQUEST_METHOD"],
        )
        self._sources = (resp, req, environ, request_time)
        self._logger = logger
        self.environ: dict[str, Any] = environ  # of the request: its record and trace are in there

    def __missing__(self, name: str) -> Any:
        resp, _, environ, _ = self._sources
        if name == "r":
            line = f"{environ['REQUEST_METHOD']} {environ['RAW_URI']} {environ['SERVER_PROTOCOL']}"
            return line.replace('"', '\\"')
        if name == "U":
            return environ.get("PATH_INFO", "-").replace('"', '\\"')
        if name == "{x-request-id}o":
            return next((value for header, value in resp.headers if header == "X-Request-Id"), "-")
        if "authorization" in name.lower():  # a key is not for the log, whatever its format asks for
            return "-"
        # Gunicorn's own class answers "-" for what is not there, and escapes quotes.
        return self._logger.atoms_wrapper_class(self._logger.atoms(*self._sources))[name]


class StartupState:
    """What the workers of one master tell one another about the start, in memory that they share."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
        self._lock = tempfile.TemporaryFile()  # empty: a lock of multiprocessing needs room in /dev/shm

    def add_ready(self) -> bool:
        """Note that a worker is ready; return True for the one that completes the start."""
        return self._count(_READY) == self.workers

    def has_started(self) -> bool:
        """Return True once all workers have been ready."""
        return self._counts[_READY] >= self.workers

    def claim_refusal(self) -> bool:
        """Return True for the one worker that is to say why the server cannot start."""
        return self._count(_REFUSED) == 1

    def _count(self, number: int) -> int:
        fcntl.lockf(self._lock, fcntl.LOCK_EX)
        try:
            self._counts[number] += 1
            return self._counts[number]
        finally:
            fcntl.lockf(self._lock, fcntl.LOCK_UN)


_startup: StartupState | None = None  # made by the master before it forks; None outside Gunicorn
_state: State | None = None  # likewise
_roster: Roster | None = None  # likewise
_worker: Worker | None = None  # this process, if it is a worker


def on_starting(server: Arbiter) -> None:
    """Prepare the master: what its workers share, what they should serve, what a reload must have."""
    global _startup, _roster
    prepare_folder()
    _roster = Roster(server)
    try:
        entrance.prepare(server)
        settings = Settings.from_environ(os.environ)
        state = _prepare_state(server, settings)
    except StartupError as error:
        raise RuntimeError(f"servekit cannot start: {error}") from None  # Gunicorn prints it, and exits
    _startup = StartupState(server.num_workers)
    if settings.torchserve or settings.multi_model:
        # A reload gives new workers what the old ones have: what is served changes by requests only.
        keep_number(server, state)
        hand_over(server, state, lambda cfg: require_startable(server, cfg))
    else:
        keep_instances(server, state)
        hand_over(server, state, lambda cfg: take_newest(server, cfg, state))


def pre_fork(server: Arbiter, worker: Worker) -> None:
    """Find a slot for a worker that is about to be forked."""
    assert _roster is not None
    _roster.admit(worker)


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Remember in the new process which worker it is."""
    global _worker
    _worker = worker
    assert _state is not None and _roster is not None
    _roster.begin(worker)
    _state.join()
    if getattr(worker, "leaves", False):
        return
    handle_exit = worker.handle_exit

    def leave_and_exit(signal_number: int, frame: Any) -> None:
        """Stop, and do not wait for oneself: a request of this worker may be what makes it stop."""
        worker_stops()
        handle_exit(signal_number, frame)

    worker.handle_exit = leave_and_exit


def shared_state() -> State | None:
    """Return what should be served, as all workers of this server share it; None outside Gunicorn."""
    return _state


def post_worker_init(worker: Worker) -> None:
    """Note that this worker has loaded its models; the last of the first ones announces the server."""
    assert _startup is not None and _state is not None
    from servekit.ext import repository_of, why_no_default  # not in the master: they import Flask and numpy
    from servekit.follow import start_following
    repository = repository_of(worker.wsgi)
    settings = Settings.from_environ(os.environ)
    start_following(repository, _state, settings)
    set_serving()
    models = repository.models
    had_started = _startup.has_started()
    if _startup.add_ready():
        log.info("%s", banner(worker.cfg, worker.sockets[0].getsockname(), models, _startup.workers, settings.has_keys))
        if reason := why_no_default(repository, settings):
            log.warning("The addresses of %s have no model to ask: %s", settings.platform, reason)
    elif had_started:
        log.info("A new worker is ready: %s", _listing(models))


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Take a worker that has ended out of the metrics, and out of those that others wait for."""
    if _roster is not None:
        _roster.dismiss(worker)
    if _state is not None:
        _state.forget(worker.pid)


def worker_stops() -> None:
    """Note, in a worker, that it will take no more requests."""
    if _state is not None:
        _state.leave()


def refuse(error: StartupError) -> NoReturn:
    """End a process that cannot serve, saying why in one sentence.

    At the start of the server the first worker to fail speaks for all, and the master ends with it. Later, when others
    serve already, only this worker ends; the master will try another.
    """
    if _startup is None or _worker is None:  # the development server, or another server than Gunicorn
        sys.exit(f"servekit cannot start: {error}")
    if _startup.has_started():
        log.error("A new worker cannot serve: %s", error)
        _sleep_unless_stopped(_worker, RESPAWN_PAUSE_SECONDS)
        sys.exit(1)
    if _startup.claim_refusal():
        log.error("servekit cannot start: %s", error)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)
    # A second worker that ended like the first would meet the master while it stops, and make it print a traceback.
    _sleep_unless_stopped(_worker, math.inf)
    sys.exit(0)


def banner(cfg: Config, address: Any, models: list[Any], workers: int, has_keys: bool = False) -> str:
    """Return what the server prints when it is ready: where it listens, what it holds, and a line to try."""
    if isinstance(address, tuple):
        scheme = "https" if cfg.is_ssl else "http"
        host, port = address[:2]
        reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        where, url = (f"{scheme}://{_bracketed(name)}:{port}" for name in (host, reachable))
        curl = "curl"
    else:
        where, curl, url = f"unix:{address}", f"curl --unix-socket {address}", "http://localhost"
    key = "-H 'Authorization: Bearer KEY' " if has_keys else ""
    attempt = f'{curl} {key}-X POST -d "value=5" {url}/predict'
    if all(model.name != "linear" for model in models):
        attempt = f"{curl} {url}/health"
    return (
        f"servekit {servekit.__version__} is ready\n"
        f"  address  {where}\n"
        f"  models   {_listing(models) or 'none yet'}\n"
        f"  workers  {workers} ({cfg.worker_class_str}), on {models[0].device if models else 'cpu'}\n"
        f"  try      {attempt}"
    )


def _bracketed(host: Any) -> str:
    return f"[{host}]" if ":" in host else str(host)


def _sleep_unless_stopped(worker: Worker, seconds: float) -> None:
    """Wait, but no longer than until the master tells this worker to stop, or is gone."""
    deadline = time.monotonic() + seconds
    while worker.alive and os.getppid() == worker.ppid and time.monotonic() < deadline:
        time.sleep(0.02)


def _listing(models: list[Any]) -> str:
    return ", ".join(f"{model.name}/{model.version}" for model in models)


def _prepare_state(server: Arbiter, settings: Settings) -> State:
    """Make what the workers share about the models, and let Gunicorn keep as many workers as it says; return it.

    Raises StartupError for what the operator has named and cannot be served.
    """
    global _state
    slots = SLOTS_PER_WORKER * max(server.num_workers, settings.max_workers)
    state = _state = State.create(settings.model_store, slots)
    atexit.register(state.close)
    if settings.torchserve:
        from servekit.torchserve.startup import prepare

        entries = [entry.limited(settings.max_workers) for entry in prepare(settings, state)]
    else:
        entries = entries_of(settings, server.num_workers)
    desired = Desired.of(entries)
    if settings.multi_model:
        desired = dataclasses.replace(desired, fewest_workers=server.num_workers)
    state.write(desired)
    if entries or settings.torchserve:  # else the workers are about to say what is missing
        server.num_workers = state.workers
    follow_number(server, state)
    announce_stop(server, state)
    _outlive_exit_statuses(server)
    return state


def _outlive_exit_statuses(server: Arbiter) -> None:
    """Once the server has started, let none of a worker's exit statuses end it: it may be a model's own code that exits."""
    reap = server.reap_workers

    def reap_workers() -> None:
        if _startup is not None and _startup.has_started():
            server.WORKER_BOOT_ERROR = server.APP_LOAD_ERROR = NO_EXIT_STATUS
        reap()

    server.reap_workers = reap_workers
