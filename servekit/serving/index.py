"""The model repository extension of the Open Inference Protocol: what there is, and its coming and going."""

import logging
from collections.abc import Mapping
from typing import Any

from servekit.codecs.values import parse_json
from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import InvalidInput, ModelLoadError, NotReady
from servekit.model import Model
from servekit.repository import Repository
from servekit.stores import entries_in, listing

log = logging.getLogger(__name__)

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
    loaded = {(model.name, model.version): model for model in repository.models}
    errors = {key for worker in repository.workers() for key in worker.errors}
    registered = {entry.key for entry in repository.desired().entries()}
    stored = {(name, version) for name, versions in listing(settings.model_store).items() for version in versions}
    for name, version in sorted(registered | stored):
        row = {"name": name, "version": version, "state": READY}
        if (name, version) not in loaded:
            row |= {"state": UNAVAILABLE, "reason": "unloaded"}
            if f"{name}/{version}" in errors:
                row["reason"] = "it could not be loaded; the log of the server says why"
        elif reason := _not_ready(loaded[name, version]):
            row |= {"state": UNAVAILABLE, "reason": reason}
        if row["state"] == READY or not only_ready:
            rows.append(row)
    return rows


def entries_to_load(parameters: Mapping[str, Any], settings: Settings, name: str, workers: int) -> list[Entry]:
    """Return the versions that loading `name` serves, the default one first, each in so many workers.

    Of the `parameters` only `config` is read: the configuration, as JSON, for a model of Triton's layout. Raises
    InvalidInput, for files above all: what is served comes from the store. ModelNotFound if it is not there.
    """
    config = parameters.get("config", "")
    if any(parameter.startswith("file:") for parameter in parameters):
        raise InvalidInput("Files cannot be sent with a load; put them into the model store and load without them.")
    if set(parameters) - {"config"} or not isinstance(config, str):
        raise InvalidInput("A load takes one parameter: config, the text of a model's configuration as JSON.")
    entries = entries_in(settings.model_store, name, workers=workers, config=config)
    if config and any(entry.format != "triton" for entry in entries):
        raise InvalidInput("That model is configured by its model.json alone; load it without config.")
    if config:
        _require_readable(settings, name, config)
    return entries


def _require_readable(settings: Settings, name: str, config: str) -> None:
    """Raise InvalidInput for a configuration that is none: the client's mistake, not the model's."""
    from servekit.triton.config import read_config  # protobuf is not for those who send none

    try:
        read_config(settings.model_store / name, config)
    except ModelLoadError as error:
        log.warning("%s was not loaded: %s", name, error)
        raise InvalidInput("The config cannot be read; send Triton's ModelConfig as JSON, with its fields and no others.") from None


def _not_ready(model: Model) -> str:
    """Return why a loaded model cannot answer now, as an ensemble without one of its members; "" if it can."""
    try:
        model.require_ready()
    except NotReady as error:
        return str(error)
    return ""


def unload(repository: Repository, name: str) -> None:
    """Take out every version of a model, the default one last; raise ModelNotFound."""
    default = repository.find(name).version
    for version in [*(each for each in repository.desired().models[name] if each != default), default]:
        repository.unregister(name, version)
