"""From what is registered to a loaded model: a module for each kind of entry."""

from collections.abc import Callable
from pathlib import Path

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.desired import Entry
from servekit.ensemble import Find
from servekit.errors import ModelNotFound
from servekit.loading.native import load_model
from servekit.loading.own_code import load_archive, load_functions, load_script
from servekit.loading.triton import load_triton
from servekit.model import Model, ReportMetric, ignore_metric

__all__ = ["load_entry", "load_model"]


def _find_none(name: str, version: str | None) -> Model:
    """Find no model: for what is loaded by itself."""
    raise ModelNotFound("No other model is loaded.")


def load_entry(
    entry: Entry,
    settings: Settings,
    backlog: Backlog,
    note_failure: Callable[[str], None] = lambda text: None,
    report_metric: ReportMetric = ignore_metric,
    find: Find = _find_none,
) -> Model:
    """Load what `entry` names; raise ModelLoadError with what is wrong.

    `note_failure` is told, as text for people, what goes wrong in the code of an archive when it runs, and
    `report_metric` what that code measures. `find` looks up the models that an ensemble is made of.
    """
    if entry.format == "triton":
        return load_triton(entry, settings, backlog, find)
    if entry.format == "torchserve":
        return load_archive(entry, settings, note_failure, report_metric)
    if entry.format == "sagemaker":
        return load_functions(entry, settings, backlog, note_failure)
    if entry.format == "azure":
        return load_script(entry, settings, backlog, note_failure)
    return load_model(entry.name, entry.version, Path(entry.folder), settings, backlog)
