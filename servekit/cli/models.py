"""`servekit models`: what a running server has loaded, as a table."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from servekit.config import Settings
from servekit.errors import ServekitError


class Row(NamedTuple):
    """One version of a model: `pids` are the workers that hold it, `error` is the last one of any worker."""

    name: str
    version: str
    is_default: bool
    workers: int  # how many should hold it; 0: it is registered and not loaded
    pids: Sequence[int]
    error: str

    @property
    def status(self) -> str:
        """What of it there is: ready, loading, failed or not loaded."""
        if self.workers == 0:
            return "not loaded"
        if self.pids:
            return "ready"
        return "failed" if self.error else "loading"


def models(model_store: Path | None) -> int:
    """Print what the server over `model_store`, or over that of the settings, has loaded; return the exit status.

    Raises ServekitError if none runs.
    """
    from servekit.state import FOLDER, is_served, read_desired, read_reports

    store = model_store or Settings.from_environ(os.environ).model_store
    if not is_served(store):
        raise ServekitError(f"No server runs over the model store {store}; start one, or give --model-store.")
    desired = read_desired(store / FOLDER)
    reports = [report for report in read_reports(store / FOLDER) if _lives(report.pid)]
    rows = []
    for entry in desired.entries():
        label = f"{entry.name}/{entry.version}"
        pids = [report.pid for report in reports if (entry.name, entry.version) in report.loaded]
        errors = [report.errors[label] for report in reports if label in report.errors]
        is_default = desired.defaults.get(entry.name) == entry.version
        rows.append(Row(entry.name, entry.version, is_default, entry.workers, pids, (errors or [""])[-1]))
    print(table(rows))
    return 0


def table(rows: Iterable[Row]) -> str:
    """Return `rows` as a text table with a head; the error, of which the last line is shown, ends the line."""
    lines = [("NAME", "VERSION", "DEFAULT", "STATUS", "WORKERS", "LAST ERROR")]
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
