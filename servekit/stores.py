"""What lies in a model store, as entries of what should be served. Standard library only: the master imports this."""

from pathlib import Path

from servekit.config import Settings
from servekit.desired import Entry
from servekit.spec import scan


def entries_of(settings: Settings, workers: int = 1) -> list[Entry]:
    """Return what is to be served at the start, by so many workers."""
    return newest_entries(settings.model_store, workers)


def newest_entries(store: Path, workers: int = 1) -> list[Entry]:
    """Return the newest version of every model in the store, to be loaded by so many workers."""
    return [folder_entry(store, name, versions[-1], workers) for name, versions in scan(store).items()]


def folder_entry(store: Path, name: str, version: int, workers: int) -> Entry:
    """Return the entry of a version folder of the store."""
    folder = store.resolve() / name / str(version)
    return Entry(name, str(version), "servekit", f"{name}/{version}", str(folder), workers, workers)
