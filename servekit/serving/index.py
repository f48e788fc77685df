"""The model repository extension of the Open Inference Protocol: what there is, and its coming and going."""

from collections.abc import Mapping
from typing import Any

from servekit.codecs.values import parse_json
from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import InvalidInput
from servekit.repository import Repository
from servekit.stores import entries_of

READY, UNAVAILABLE = "READY", "UNAVAILABLE"


def read_parameters(body: bytes) -> dict[str, Any]:
    """Return the members of a request's body, which may be empty; raise InvalidInput."""
    value = parse_json(body) if body.strip() else {}
    if not isinstance(value, dict):
        raise InvalidInput("The body must be a JSON object, or empty.")
    return value


def list_models(repository: Repository, settings: Settings, only_ready: bool) -> list[dict[str, str]]:
    """Return a row for each version that is registered, or lies in the store and could be loaded."""
    rows = []
    loaded = {(model.name, model.version) for model in repository.models}
    errors = {key for worker in repository.workers() for key in worker.errors}
    registered = {entry.key for entry in repository.desired().entries()}
    for name, version in sorted(registered | {entry.key for entry in entries_of(settings)}):
        row = {"name": name, "version": version, "state": READY}
        if (name, version) not in loaded:
            row |= {"state": UNAVAILABLE, "reason": "unloaded"}
            if f"{name}/{version}" in errors:
                row["reason"] = "it could not be loaded; the log of the server says why"
        if row["state"] == READY or not only_ready:
            rows.append(row)
    return rows


def require_plain_load(parameters: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a load that brings files or another configuration: both come from the store alone."""
    if any(name.startswith("file:") for name in parameters):
        raise InvalidInput("Files cannot be sent with a load; put them into the model store and load without them.")
    if parameters:
        raise InvalidInput("A load takes no parameters; a model's configuration is the one in the model store.")


def newest_entries(settings: Settings, name: str, workers: int) -> list[Entry]:
    """Return what the store holds of the model called `name`, to be loaded by so many workers."""
    return [entry for entry in entries_of(settings, workers) if entry.name == name]


def load(repository: Repository, entries: list[Entry]) -> None:
    """Serve `entries`, the versions of one model, by default the last; then drop those that are not among them.

    Raises as `Repository.register` does; what was served goes on then.
    """
    name, newest = entries[0].name, entries[-1].version
    for entry in entries:
        served = repository.desired().find(*entry.key)
        if served is None:
            repository.register(entry)
        elif not served.workers:
            repository.scale(name, entry.version, entry.workers, entry.max_workers)
    if repository.find(name).version != newest:
        repository.set_default(name, newest)
    for version in set(repository.desired().models[name]) - {entry.version for entry in entries}:
        repository.unregister(name, version)


def unload(repository: Repository, name: str) -> None:
    """Take out every version of a model, the default one last; raise ModelNotFound."""
    default = repository.find(name).version
    for version in [*(each for each in repository.desired().models[name] if each != default), default]:
        repository.unregister(name, version)
