"""What lies in a model store, as entries of what should be served. Standard library only: the master imports this.

Each folder of a store is a model: of servekit's own layout (`model.json` in its version folders) or of Triton's
(`config.pbtxt`, or a model file that says enough of itself).
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import ModelNotFound, VersionNotFound
from servekit.platforms import AUTO, AZURE, NONE, azure_root, format_of, positive, scoring_script
from servekit.spec import scan
from servekit.triton import folders

log = logging.getLogger(__name__)

MODEL = "model"  # the name of a model that a cloud gives without one
STORED = ("servekit", "triton")  # formats of what lies in a store


def entries_of(settings: Settings, workers: int = 1) -> list[Entry]:
    """Return what is to be served at the start, by so many workers."""
    if (placed := placed_entries(settings, workers)) is not None:
        return placed
    entries = []
    for name, versions in scan(settings.model_store).items():
        found = _entries(settings.model_store, name, versions, workers)
        if not found:
            log.warning("Passed over %s: none of the versions that its version_policy names is there.", name)
        entries += [entry.limited(max(workers, settings.max_workers)) for entry in found]
    return entries


def placed_entries(settings: Settings, workers: int = 1) -> list[Entry] | None:
    """Return the one model that a cloud has put into the folder of the store itself, or that it will bring models later.

    None where the store holds folders of models, as it does without a cloud.
    """
    if settings.multi_model:
        return []
    if script := azure_entries(settings, workers):
        return script
    entry = None if settings.platform in (AUTO, NONE) else model_entry(MODEL, settings.model_store, workers)
    return None if entry is None else [entry]


def model_entry(name: str, folder: Path, workers: int = 1) -> Entry | None:
    """Return the entry of the one model that lies in `folder` itself, to be called `name`, or None if there is none."""
    kind = format_of(folder, os.environ)
    return Entry(name, "1", kind, name, str(folder.resolve()), workers, workers) if kind else None


def azure_entries(settings: Settings, workers: int = 1) -> list[Entry]:
    """Return Azure ML's scoring script, if this is its platform and there is one; it is served in the store's place."""
    script = scoring_script(os.environ) if settings.platform == AZURE else None
    if script is None:
        return []
    root = azure_root(os.environ)
    source = os.environ.get("AZUREML_SOURCE_DIRECTORY", "")
    options = {
        "folders": [str(root), *([str(root / source)] if source else [])],  # where its modules are looked for, after its own
        "scoring_timeout_ms": positive(os.environ, "SCORING_TIMEOUT_MS", 0) if os.environ.get("SCORING_TIMEOUT_MS") else None,
        "worker_timeout": positive(os.environ, "WORKER_TIMEOUT", 300),
    }
    return [Entry("score", "1", AZURE, script.name, str(script), workers, workers, options)]


def listing(store: Path) -> dict[str, list[str]]:
    """Return the versions of every model in the store, served or not, in rising order."""
    return {name: list(map(str, versions)) for name, versions in scan(store, warns=False).items()}


def entries_in(store: Path, name: str, version: str | None = None, workers: int = 1, config: str = "") -> list[Entry]:
    """Return what loading the model `name` from the store registers: one version or several, the default one first.

    Without `version` that is the newest, of Triton's layout what its version policy says. `config` is a ModelConfig of
    Triton as JSON, in the place of its config.pbtxt. Raises ModelNotFound or VersionNotFound.
    """
    versions = scan(store, warns=False).get(name, [])
    if not versions:
        raise ModelNotFound("That model is not in the model store.")
    if version is not None and version not in map(str, versions):
        raise VersionNotFound("That version of the model is not in the model store.")
    if version is not None and not folders.is_model(store / name, versions):
        return [folder_entry(store, name, int(version), workers)]
    if version is not None:
        return [_triton_entry(store, name, int(version), workers, config)]
    if not (entries := _entries(store, name, versions, workers, config)):
        raise VersionNotFound("None of the versions that the model's version_policy names is in the model store.")
    return entries


def folder_entry(store: Path, name: str, version: int, workers: int) -> Entry:
    """Return the entry of a version folder of the store."""
    folder = store.resolve() / name / str(version)
    return Entry(name, str(version), "servekit", f"{name}/{version}", str(folder), workers, workers)


def _entries(store: Path, name: str, versions: Sequence[int], workers: int, config: str = "") -> list[Entry]:
    """Return the versions of a model that are to be served, the default one first."""
    if not folders.is_model(store / name, versions):
        return [folder_entry(store, name, versions[-1], workers)]
    chosen = folders.chosen_versions(store / name, versions, config)
    return [_triton_entry(store, name, version, workers, config) for version in reversed(chosen)]


def _triton_entry(store: Path, name: str, version: int, workers: int, config: str) -> Entry:
    """Return the entry of a version folder of Triton's layout; another config makes it another model.

    Each worker holds one instance of every model, so a model of more instances wants more workers.
    """
    instances = folders.instances(store / name, config)
    options: dict[str, str | int] = {"config": config} if config else {"fingerprint": folders.fingerprint(store / name)}
    if instances > 1:
        options["instances"] = instances
    entry = folder_entry(store, name, version, max(workers, instances))
    return dataclasses.replace(entry, format="triton", options=options)
