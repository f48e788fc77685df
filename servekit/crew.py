"""How many workers Gunicorn's master keeps: as many as the desired state says, through signals, reloads and slow stops."""

from typing import Any

from gunicorn.arbiter import Arbiter

from servekit.state import State


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
        everyone, leaving = server.WORKERS, state.leaving()
        server.WORKERS = staying = {pid: worker for pid, worker in everyone.items() if pid not in leaving}
        try:
            manage()
        finally:
            everyone.update(staying)
            server.WORKERS = everyone

    server.manage_workers = manage_as_desired


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
