"""How many workers Gunicorn's master keeps: as many as the desired state says, through signals, reloads and slow stops.

No worker stops before another is ready in its place.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.config import Config

from servekit.errors import ServekitError, StartupError
from servekit.state import State

SHARE_AT_A_TIME = 0.25  # of the workers that a reload replaces

log = logging.getLogger("servekit")


def follow_number(server: Arbiter, state: State) -> None:
    """Let `server` keep as many workers as `state` says; the signals TTIN and TTOU still work between two changes.

    A worker that stops may take long to answer its last requests: another starts in its place before that.
    """
    manage, followed = server.manage_workers, state.workers

    def manage_as_desired() -> None:
        nonlocal followed
        if state.workers != followed:
            server.num_workers = followed = state.workers
        state.note_extra(server.num_workers - followed)
        everyone, hidden = server.WORKERS, state.leaving()
        # Of those that are too many Gunicorn stops the oldest: for each that is still starting, one may stay meanwhile.
        starting = sorted(set(_staying(server, state)) - state.ready(), key=lambda pid: everyone[pid].age, reverse=True)
        hidden.update(starting[: max(0, len(_staying(server, state)) - server.num_workers)])
        server.WORKERS = staying = {pid: worker for pid, worker in everyone.items() if pid not in hidden}
        try:
            manage()
        finally:
            everyone.update(staying)
            server.WORKERS = everyone

    server.manage_workers = manage_as_desired


def hand_over(server: Arbiter, state: State, take: Callable[[Config], object]) -> None:
    """Let a reload of `server` replace its workers little by little; `take` is given its configuration before.

    If `take` raises a ServekitError, there is no reload, and nothing has changed.

    Gunicorn starts all new workers, stops all old ones at once, and hears no signal until those have ended. Here some
    start at a time, so that those who serve meanwhile keep cores and memory, and the master goes on. A reload that
    follows before the last one is done makes what has started out of date, too; several at once are one.
    """
    reload, manage, spawn = server.reload, server.manage_workers, _spawn_if_possible(server)
    is_asked = False
    last_old = 0  # the age of the youngest worker that is to be replaced

    def ask() -> None:
        nonlocal is_asked
        is_asked = True

    def manage_and_replace() -> None:
        nonlocal is_asked
        if is_asked:
            is_asked = False
            reload_if_servable()
        manage()
        replace_some()

    def replace_some() -> None:
        staying = _staying(server, state)
        old = sum(server.WORKERS[pid].age <= last_old for pid in staying)
        starting = len(set(staying) - state.ready())
        at_a_time = max(1, round(server.num_workers * SHARE_AT_A_TIME))
        to_come = old - (len(staying) - server.num_workers)  # of the old some were told to stop, and have not heard it yet
        for _ in range(min(to_come, at_a_time - starting, state.room())):
            spawn()

    def reload_if_servable() -> None:
        nonlocal last_old
        try:
            with _read_ahead(server) as cfg:
                take(cfg)
        except ServekitError as error:
            log.error("Not reloaded, the old workers go on: %s", error)
            return
        except Exception:  # what nobody has thought of is not to end a server either
            log.exception("Not reloaded, the old workers go on")
            return
        _take_over(server, reload)
        last_old = server.worker_age

    server.spawn_worker, server.manage_workers, server.reload = spawn, manage_and_replace, ask


def _take_over(server: Arbiter, reload: Callable[[], None]) -> None:
    """Let Gunicorn's own `reload` take the configuration that has been read; it starts no worker and waits for none."""
    read, spawn, manage = server.app.reload, server.spawn_worker, server.manage_workers
    variables, patience = dict(os.environ), None

    def do_not_wait() -> None:
        nonlocal patience
        patience = server.cfg.graceful_timeout  # what Gunicorn is about to wait for the old workers
        server.cfg.set("graceful_timeout", 0)

    # Called when Gunicorn has taken out what the old configuration had set, and with it what the new one has set by itself.
    server.app.reload = lambda: _set_environ(variables)
    server.spawn_worker, server.manage_workers = _nothing, do_not_wait
    try:
        reload()
    except Exception:  # of a hook of the user's, which comes when all has been taken
        log.exception("The reload goes on, but met an error")
    finally:
        server.app.reload, server.spawn_worker, server.manage_workers = read, spawn, manage
        if patience is not None:
            server.cfg.set("graceful_timeout", patience)


@contextlib.contextmanager
def _read_ahead(server: Arbiter) -> Iterator[Config]:
    """Read the configuration that a reload of `server` would take, and give it; what the block raises makes it unread.

    Raises StartupError if it cannot be read: Gunicorn says why, and would end the master.
    """
    before, variables, path = server.cfg, dict(os.environ), list(sys.path)
    try:
        _take_out(before)
        server.app.reload()
        yield server.app.cfg
    except (Exception, SystemExit) as error:
        server.app.cfg, sys.path[:] = before, path
        _set_environ(variables)
        with contextlib.suppress(OSError):  # the folder is not there any more
            os.chdir(before.chdir)
        if not isinstance(error, SystemExit):
            raise
        reason = error.code if isinstance(error.code, str) else "Gunicorn's configuration cannot be read."
        raise StartupError(reason) from None


def _set_environ(variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)


def _take_out(cfg: Config) -> None:
    """Let the environment be what it was before `cfg` had set variables, as Gunicorn does before it reads anew."""
    for name in cfg.env:
        if name in cfg.env_orig:
            os.environ[name] = cfg.env_orig[name]
        else:
            os.environ.pop(name, None)


def _spawn_if_possible(server: Arbiter) -> Callable[[], Any]:
    """Return what starts a worker of `server`, or says why it cannot: the master would end of it, and all workers with it."""
    spawn = server.spawn_worker

    def spawn_if_possible() -> Any:
        try:
            return spawn()
        except OSError as error:  # no memory, process, descriptor or room for its heartbeat is left
            log.error("A worker cannot be started for now: %s.", error.strerror)
        except Exception:  # of a hook of the user's
            log.exception("A worker cannot be started for now")
        return None

    return spawn_if_possible


def _nothing() -> None:
    pass


def _staying(server: Arbiter, state: State) -> list[int]:
    leaving = state.leaving()
    return [pid for pid in server.WORKERS if pid not in leaving]


def announce_stop(server: Arbiter, state: State) -> None:
    """Let the workers know when `server` stops, not only they: readiness probes then fail until the last one has ended."""
    stop = server.stop

    def stop_and_say(graceful: bool = True) -> None:
        state.stop()
        stop(graceful)

    server.stop = stop_and_say


def keep_instances(server: Arbiter, state: State) -> None:
    """Let a reload of `server` keep at least as many workers as models say that they have instances (see stores)."""
    setup = server.setup

    def setup_with_instances(app: Any) -> None:
        setup(app)
        wanted = max([0, *(entry.options.get("instances", 0) for entry in state.read().entries())])
        if wanted > server.num_workers:
            server.cfg.set("workers", wanted)
            server.num_workers = wanted

    server.setup = setup_with_instances


def keep_number(server: Arbiter, state: State) -> None:
    """Let a reload of `server` keep the number of workers that is desired, whatever its configuration says."""
    setup = server.setup

    def setup_as_desired(app: Any) -> None:
        setup(app)
        server.cfg.set("workers", state.workers)
        server.num_workers = state.workers

    server.setup = setup_as_desired
