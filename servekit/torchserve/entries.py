"""From a registration to what the repository serves: find the archive, unpack it, and put together its options.

The master imports this for the models that are loaded at start, so nothing here starts threads when it is imported.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servekit import archive
from servekit.desired import Entry
from servekit.errors import ArchiveRefused, ModelLoadError, ServekitError
from servekit.torchserve.properties import Properties
from servekit.torchserve.refusals import Refusal
from servekit.torchserve.registration import Registration, parse_integer, require_name
from servekit.torchserve.sources import Sources, base_name

log = logging.getLogger(__name__)

FORMAT = "torchserve"
DEFAULT_BATCH_SIZE, DEFAULT_BATCH_DELAY = 1, 100  # rows, milliseconds


class Loader:
    """Turns registrations into entries; what it does takes long, so call it beside the event loop."""

    def __init__(
        self,
        properties: Properties,
        new_folder: Callable[[], Path],
        drop_folder: Callable[[Path], None],
        requirements: Path,
        sources: Sources | None = None,
    ) -> None:
        """`new_folder` names folders to unpack into, whose parents are theirs alone, and `drop_folder` removes them.

        `requirements` is the folder for the packages that archives ask for.
        """
        self._properties = properties
        self._new_folder = new_folder
        self._drop_folder = drop_folder
        self._requirements = requirements
        self._sources = sources or Sources(properties)

    def load(self, wanted: Registration, at_startup: bool = False) -> Entry:
        """Return the entry for `wanted`, its archive unpacked; raise Refusal, and leave nothing behind."""
        self._sources.check(wanted.url)
        source = None if self._sources.is_remote(wanted.url) else self._sources.local(wanted.url, at_startup)
        if source is not None and source.is_dir():
            return self._entry(wanted, source, at_startup)
        folder = self._new_folder()
        try:
            if source is None:
                source = folder.parent / "download" / base_name(wanted.url)  # whose last part may be the folder's own
                source.parent.mkdir(mode=0o700)
                self._sources.download(wanted.url, source, at_startup)
            archive.unpack(source, folder)
            if source.parent.parent == folder.parent:
                shutil.rmtree(source.parent)  # downloaded, and no longer needed
            return self._entry(wanted, folder, at_startup)
        except BaseException as error:
            self._drop_folder(folder)
            if isinstance(error, ArchiveRefused):
                raise Refusal("InvalidModelException", str(error)) from error
            raise

    def drop(self, entry: Entry) -> None:
        """Remove what was unpacked for `entry`, which is not served."""
        self._drop_folder(Path(entry.folder))

    def _entry(self, wanted: Registration, folder: Path, at_startup: bool) -> Entry:
        """Read what lies in `folder`; raise Refusal."""
        try:
            manifest = archive.read_manifest(folder)
            config = json.loads(json.dumps(archive.read_model_config(folder, manifest), default=str))
        except ArchiveRefused as error:
            raise Refusal("InvalidModelException", str(error)) from error
        # What has no name is called after its file; but a client has to name what has a manifest without one.
        name = wanted.model_name or manifest.model_name
        if not name and (at_startup or not manifest.content):
            name = _stem(wanted.url)
        if not name:
            raise Refusal("InvalidModelException", "Model name is not defined.")
        name, version = require_name(name, "model's name"), require_name(manifest.model_version, "model's version")
        handler = wanted.handler or manifest.handler or self._properties.default_service_handler
        if not handler:
            raise Refusal("InvalidModelException", "The archive names no handler; give one as the parameter handler.")
        options = {
            "model_name": name,
            "model_version": version,
            "manifest": dict(manifest.content),
            "handler": handler,
            "model_config": config,
            "runtime": wanted.runtime or manifest.runtime,
            "requirements": self._install(name, folder, manifest),
            "loaded_at_startup": at_startup,
            **self._settings(),
        }
        numbers = self._numbers(wanted, config, self._properties.models.get(name, {}).get(version, {}), at_startup)
        workers, most = numbers.pop("workers"), numbers.pop("max_workers")
        # Of what the operator has named every one is to be there; a whole store, or what comes later, may fail in part.
        is_required = at_startup and not self._properties.loads_all
        return Entry(name, version, FORMAT, wanted.url, str(folder), workers, most, {**options, **numbers}, is_required)

    def _install(self, name: str, folder: Path, manifest: archive.Manifest) -> str | None:
        """Return the folder of the packages that the archive asks for, if they may be installed."""
        if not self._properties.install_py_dep_per_model:
            return None
        try:
            self._requirements.mkdir(mode=0o700, parents=True, exist_ok=True)
            installed = archive.install_requirements(folder, manifest, self._requirements)
        except ArchiveRefused as error:
            log.error("%s: %s", name, error)
            message = f"Custom pip package installation failed for model {name}"
            raise Refusal("ModelException", message) from error
        return None if installed is None else str(installed)

    def _settings(self) -> dict[str, Any]:
        properties = self._properties
        return {
            "service_envelope": properties.service_envelope or None,
            "decode_input": properties.decode_input_request,
            "limit_max_image_pixels": properties.limit_max_image_pixels,
            "number_of_gpu": properties.number_of_gpu,
        }

    def _numbers(
        self, wanted: Registration, config: Mapping[str, Any], versions: Mapping[str, Any], at_startup: bool
    ) -> dict[str, int]:
        """Return what may be given in several places: the request wins over the archive, and that over the properties."""
        properties, given = self._properties, Registration.from_snapshot("", versions)

        def pick(asked: int | None, key: str, configured: int | None, default: int, least: int) -> int:
            found = (asked, parse_integer(config.get(key)), configured, default)
            return max(least, next(value for value in found if value is not None))

        workers = properties.default_workers_per_model or int(at_startup)
        chosen = {
            "workers": pick(wanted.initial_workers, "minWorkers", given.initial_workers, workers, 0),
            "batch_size": pick(wanted.batch_size, "batchSize", given.batch_size, DEFAULT_BATCH_SIZE, 1),
            "max_batch_delay": pick(
                wanted.max_batch_delay, "maxBatchDelay", given.max_batch_delay, DEFAULT_BATCH_DELAY, 0
            ),
            "response_timeout": pick(
                wanted.response_timeout, "responseTimeout", given.response_timeout, properties.default_response_timeout, 1
            ),
            "startup_timeout": pick(
                wanted.startup_timeout, "startupTimeout", given.startup_timeout, properties.default_startup_timeout, 0
            ),
            "job_queue_size": pick(None, "jobQueueSize", None, properties.job_queue_size, 1),
        }
        most = pick(wanted.max_workers, "maxWorkers", given.max_workers, chosen["workers"], chosen["workers"])
        return {**chosen, "max_workers": most}


def startup_entries(properties: Properties, loader: Loader) -> list[Entry]:
    """Return the models to load at start, the default version of each before its others.

    Of a whole model store, what cannot be served is named in the log and left out; raise ArchiveRefused, one sentence,
    for what the operator has named.
    """
    found: dict[tuple[str, str], Entry] = {}
    for wanted in _at_startup(properties):
        try:
            entry = loader.load(wanted, at_startup=True)
            if entry.key in found:
                loader.drop(entry)
                message = f"Model version {entry.version} is already registered for model {entry.name}"
                raise Refusal("ConflictStatusException", message)
            found[entry.key] = entry
        except (ServekitError, OSError) as error:
            message = f"{wanted.url} cannot be served: {_reason(error)}"
            if not properties.loads_all:
                raise ArchiveRefused(message) from error
            log.warning("%s", message)
    snapshot = properties.model_snapshot.get("models", properties.models)
    return sorted(found.values(), key=lambda entry: not _is_default(snapshot, entry))


def _at_startup(properties: Properties) -> list[Registration]:
    snapshot = properties.model_snapshot.get("models", {})
    wanted = [
        Registration.from_snapshot(name, options) for name, versions in snapshot.items() for options in versions.values()
    ]
    if not properties.loads_all:
        return wanted + [Registration(source, name) for name, source in properties.load_models]
    store = properties.model_store
    if store is None or not store.is_dir():
        raise ModelLoadError("Every model of the model store is to be loaded, but there is none; name it as model_store.")
    return wanted + [Registration(path.name) for path in sorted(store.iterdir()) if archive.is_archive(path)]


def _is_default(snapshot: Mapping[str, Any], entry: Entry) -> bool:
    return bool(snapshot.get(entry.name, {}).get(entry.version, {}).get("defaultVersion", False))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _stem(url: str) -> str:
    stem = base_name(url)
    for suffix in archive.SUFFIXES:
        stem = stem.removesuffix(suffix)
    return re.sub(r"\W", "_", stem)
