"""`servekit models`: what a running server has loaded, as a table."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from servekit.cli.background import default_pid_file, model_store_of
from servekit.config import Settings
from servekit.desired import Desired
from servekit.errors import ServekitError
from servekit.spec import STATE_FOLDER
from servekit.state import Report, is_served, read_desired, read_reports

HEAD = ("NAME", "VERSION", "DEFAULT", "STATUS", "WORKERS", "LAST ERROR")


class Row(NamedTuple):
    """One version of a model: `pids` are the workers that hold it, `error` is the last one of any worker, or ""."""

    name: str
    version: str
    is_default: bool
    status: str
    pids: Sequence[int]
    error: str


def models(model_store: Path | None) -> int:
    """Print what the server over `model_store` has loaded; return the exit status.

    Without it, that of the settings, or else the server in the background is meant. Raises ServekitError if none runs.
    """
    store = model_store or Settings.from_environ(os.environ).model_store
    if model_store is None and not is_served(store):
        store = model_store_of(default_pid_file()) or store
    if not is_served(store):
        raise ServekitError(f"No server runs over the model store {store}; start one, or give --model-store.")
    reports = [report for report in read_reports(store / STATE_FOLDER) if _lives(report.pid)]
    print(table(rows_of(read_desired(store / STATE_FOLDER), reports)))
    return 0


def rows_of(desired: Desired, reports: Sequence[Report]) -> list[Row]:
    """Return what is registered, with what the workers say of it, then the versions that they have refused."""
    errors = {label: error for report in reports for label, error in report.errors.items()}
    rows = []
    for entry in desired.entries():
        pids = [report.pid for report in reports if entry.key in report.loaded]
        error = errors.pop("/".join(entry.key), "")
        status = "ready" if pids else "failed" if error else "loading"
        is_default = desired.defaults.get(entry.name) == entry.version
        rows.append(Row(*entry.key, is_default, status if entry.workers else "not loaded", pids, error))
    for label, error in sorted(errors.items()):
        name, _, version = label.rpartition("/")
        rows.append(Row(name, version, False, "refused", [], error))
    return rows


def table(rows: Iterable[Row]) -> str:
    """Return `rows` as a text table with a head; the last line of an error ends a line."""
    lines = [HEAD]
    for row in rows:
        error = (row.error.strip().splitlines() or [""])[-1]
        workers = ", ".join(map(str, row.pids)) or "-"
        lines.append((row.name, row.version, "yes" if row.is_default else "", row.status, workers, error))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
