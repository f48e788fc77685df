"""TorchServe's management operations in terms of the repository, with TorchServe's sentences."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, cast

from flask import Flask, current_app

from servekit.batcher import FULL, beside
from servekit.desired import Entry
from servekit.errors import (
    DefaultVersionInUse,
    ModelLoadError,
    ModelNotFound,
    ModelNotLoaded,
    OutOfMemory,
    Overloaded,
    RequestError,
    VersionExists,
    VersionNotFound,
    WorkersFailed,
)
from servekit.keys import JUDGES
from servekit.model import Model
from servekit.repository import Repository
from servekit.torchserve.entries import FORMAT, Loader
from servekit.torchserve.properties import Properties
from servekit.torchserve.refusals import Refusal, no_model, no_version
from servekit.torchserve.registration import Registration, Scale
from servekit.torchserve.tokens import Tokens

log = logging.getLogger(__name__)

UNDER_WAY = "Processing worker updates..."
MAX_LATER = 64  # changes that go on after their answer; each has a thread, and waits for those before it

_KEY = "torchserve"


class Outcome(NamedTuple):
    """What has come of an operation: a sentence and a status."""

    message: str
    status: HTTPStatus = HTTPStatus.OK


class Registry:
    """The models of the repository, as TorchServe's clients see and change them."""

    def __init__(self, repository: Repository, properties: Properties, loader: Loader) -> None:
        self.repository = repository
        self.properties = properties
        self._loader = loader
        self._places = threading.BoundedSemaphore(MAX_LATER)

    # Looking up.

    def find(self, name: str, version: str | None = None) -> Entry:
        """Return what is registered as that version, or as the default one; raise Refusal."""
        try:
            return self.repository.find(name, version)
        except VersionNotFound:
            raise no_version(name, version or "null") from None
        except ModelNotFound:
            raise no_model(name) from None

    def model(self, name: str, version: str | None, job: str = "inference") -> Model:
        """Return the loaded model that is to do `job`; raise Refusal, also if no worker holds it."""
        try:
            return self.repository.get(name, version)
        except ModelNotLoaded:
            raise Refusal("ServiceUnavailableException", _no_worker(name, version, job)) from None
        except VersionNotFound:
            raise no_version(name, version or "null") from None
        except ModelNotFound:
            raise no_model(name) from None

    def is_healthy(self) -> bool:
        """Return False if a default version that should be loaded is in no worker, and one says why.

        While it is being loaded nothing has failed yet.
        """
        desired, workers = self.repository.desired(), self.repository.workers()
        for name, version in desired.defaults.items():
            entry = desired.find(name, version)
            if entry is None or not entry.workers or any(entry.key in worker.loaded for worker in workers):
                continue
            if any(f"{name}/{version}" in worker.errors for worker in workers):
                return False
        return True

    def only_model(self) -> str | None:
        """Return the name of the model that was loaded at start, if it was one."""
        entries = self.repository.desired().entries()
        names = {entry.name for entry in entries if entry.options.get("loaded_at_startup")}
        return names.pop() if len(names) == 1 else None

    # Changing.

    def register(self, wanted: Registration) -> Outcome:
        """Add a version of a model; raise Refusal. What fails to load is not registered."""
        entry = beside(lambda: self._loader.load(wanted))
        if entry.version in self.repository.desired().models.get(entry.name, {}):
            self._loader.drop(entry)
            raise _exists(entry)
        if not entry.workers:
            self._add(entry)
            return Outcome(_registered(entry, 0) + ". Use scale workers API to add workers for the model.")
        if entry.options["startup_timeout"] <= 0:
            self._loader.drop(entry)
            raise Refusal("InternalServerException", _not_started(entry.name, entry.version))
        if wanted.synchronous:
            return Outcome(_registered(entry, self._add(entry)))
        self._add(dataclasses.replace(entry, workers=0, max_workers=0))
        try:
            self._later(entry, lambda: self._start(entry))
        except Overloaded:
            self._take_out(entry)
            raise
        return Outcome(UNDER_WAY, HTTPStatus.ACCEPTED)

    def scale(self, name: str, version: str | None, wanted: Scale) -> Outcome:
        """Give a version, or the default one, another number of workers; raise Refusal."""
        entry = self.find(name, version)
        if not wanted.synchronous:
            self._later(entry, lambda: self.repository.scale(*entry.key, wanted.workers, wanted.max_workers))
            return Outcome(UNDER_WAY, HTTPStatus.ACCEPTED)
        try:
            granted = self.repository.scale(*entry.key, wanted.workers, wanted.max_workers)
        except Exception as error:
            raise _load_failure(entry, version, error) from error
        which = f"{name}, version: {version}" if version else name
        return Outcome(f"Workers scaled to {granted} for model: {which}")

    def unregister(self, name: str, version: str | None) -> Outcome:
        """Remove a version, or the default one; raise Refusal."""
        self.find(name, version)
        try:
            self.repository.unregister(name, version)
        except DefaultVersionInUse:
            message = f"Cannot remove default version for model {name}"
            raise Refusal("InvalidModelVersionException", message) from None
        except WorkersFailed as error:
            log.error("%s: %s", name, error)
            raise Refusal("RequestTimeoutException", f"Timed out while cleaning resources: {name}") from error
        except VersionNotFound:
            raise no_version(name, version or "null") from None
        except ModelNotFound:
            raise no_model(name) from None
        return Outcome(f'Model "{name}" unregistered')

    def set_default(self, name: str, version: str) -> Outcome:
        """Let a version answer the requests that name none; raise Refusal."""
        try:
            self.repository.set_default(name, version)
        except VersionNotFound:
            message = f"Model version {version} does not exist for model {name}"
            raise Refusal("ModelVersionNotFoundException", message) from None
        except ModelNotFound:
            raise no_model(name) from None
        return Outcome(f'Default version successfully updated for model "{name}" to "{version}"')

    def _add(self, entry: Entry) -> int:
        try:
            return self.repository.register(entry)
        except VersionExists:
            self._loader.drop(entry)
            raise _exists(entry) from None
        except Exception as error:
            self._loader.drop(entry)
            raise _load_failure(entry, entry.version, error) from error

    def _start(self, entry: Entry) -> None:
        """Load what is registered without workers; take it out again if that fails."""
        try:
            self.repository.scale(*entry.key, entry.workers, entry.max_workers)
        except Exception:
            self._take_out(entry)
            raise

    def _take_out(self, entry: Entry) -> None:
        with contextlib.suppress(RequestError):  # somebody else has removed it, or made it the default
            self.repository.unregister(*entry.key)

    def _later(self, entry: Entry, work: Callable[[], object]) -> None:
        """Do `work` for `entry` in a thread; that it fails is said in the log. Raise Overloaded if there are too many."""
        if not self._places.acquire(blocking=False):
            raise Overloaded(FULL)

        def run() -> None:
            try:
                work()
            except Exception as error:
                log.error("The workers of %s/%s could not be updated: %s", entry.name, entry.version, error)
            finally:
                self._places.release()

        threading.Thread(target=run, name="servekit-torchserve", daemon=True).start()


@dataclasses.dataclass(frozen=True)
class TorchServe:
    """What the views of TorchServe's APIs work with; `tokens` is None where no key is asked for."""

    properties: Properties
    tokens: Tokens | None
    registry: Registry

    @cached_property
    def headers(self) -> list[tuple[str, str]]:
        """The headers that let pages of other sites read the answers, if the properties say so."""
        cors = {
            "Access-Control-Allow-Origin": self.properties.cors_allowed_origin,
            "Access-Control-Allow-Methods": self.properties.cors_allowed_methods,
            "Access-Control-Allow-Headers": self.properties.cors_allowed_headers,
        }
        return [(name, value) for name, value in cors.items() if value]


def init_app(app: Flask, repository: Repository, properties: Properties, keys: Path, requirements: Path) -> None:
    """Give `app` what TorchServe's blueprints need; `keys` is the file that `tokens.write_keys` has written."""
    loader = Loader(properties, repository.archive_folder, repository.drop_archive, requirements)
    is_open = properties.disable_token_authorization
    tokens = None if is_open else Tokens(keys, properties.token_expiration_min)
    app.extensions[_KEY] = TorchServe(properties, tokens, Registry(repository, properties, loader))
    if tokens is not None:
        ports = properties.inference_address.port, properties.management_address.port
        app.extensions[JUDGES].update({str(port): tokens.knows for port in ports})


def current() -> TorchServe:
    """Return what the current application's views of TorchServe's APIs work with."""
    return cast(TorchServe, current_app.extensions[_KEY])


def is_archive(entry: Entry) -> bool:
    """Return True if TorchServe's inference API can serve `entry`."""
    return entry.format == FORMAT


def _registered(entry: Entry, workers: int) -> str:
    return f'Model "{entry.name}" Version: {entry.version} registered with {workers} initial workers'


def _exists(entry: Entry) -> Refusal:
    message = f"Model version {entry.version} is already registered for model {entry.name}"
    return Refusal("ConflictStatusException", message)


def _not_started(name: str, version: str | None) -> str:
    return f"Failed to start workers for model {name} version: {version or 'null'}"


def _load_failure(entry: Entry, version: str | None, error: Exception) -> Exception:
    """Return what to raise for `error`: the reason is the operator's, in the log; the sentence is TorchServe's."""
    causes = (error, error.__cause__)
    if any(isinstance(cause, MemoryError | OutOfMemory) for cause in causes):
        kind = "OutOfMemoryError"
    elif isinstance(error, ModelLoadError | WorkersFailed):
        kind = "InternalServerException"
    else:
        return _not_found(entry, version, error) if isinstance(error, RequestError) else error
    log.error("%s/%s cannot be served: %s", entry.name, entry.version, error)
    return Refusal(kind, _not_started(entry.name, version))


def _not_found(entry: Entry, version: str | None, error: RequestError) -> RequestError:
    if isinstance(error, VersionNotFound):
        return no_version(entry.name, version or entry.version)
    return no_model(entry.name) if isinstance(error, ModelNotFound) else error


def _no_worker(name: str, version: str | None, job: str) -> str:
    # The quotation mark before "has" is TorchServe's, and its clients compare whole sentences.
    which = f'"{name}" Version {version}"' if version and job == "inference" else f'"{name}"'
    sentence = f"Model {which} has no worker to serve {job} request. Please use scale workers API to add workers."
    if job == "inference":
        sentence += " If this is a sequence inference, please check if it is closed, or expired; "
        sentence += "or exceeds maxSequenceJobQueueSize"
    return sentence
