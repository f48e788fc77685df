"""What stands in for the core in the tests of TorchServe's APIs: a repository in memory, a model that answers as told."""

import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flask import Flask

from servekit import ext
from servekit.batcher import Parts
from servekit.config import Settings
from servekit.desired import Desired, Entry
from servekit.engines.torchserve import HandlerRequest, HandlerResponse
from servekit.errors import (
    DefaultVersionInUse,
    ModelLoadError,
    ModelNotFound,
    ModelNotLoaded,
    VersionExists,
    VersionNotFound,
)
from servekit.lean import LeanFlask
from servekit.state import Report
from servekit.tensors import Tensors
from servekit.torchserve import registry
from servekit.torchserve.properties import Properties
from servekit.torchserve.tokens import write_keys

STARTED = 1708060392.801  # seconds of the epoch
Behave = Callable[[HandlerRequest], HandlerResponse]


def echo(request: HandlerRequest) -> HandlerResponse:
    """Answer with what the handler got: its parameters and its headers."""
    parameters = {each.name: [each.content_type, each.value.decode("latin-1")] for each in request.parameters}
    body = json.dumps({"parameters": parameters, "headers": dict(request.headers)}).encode()
    return HandlerResponse(body, 200, "OK", [], "application/json")


class FakeModel:
    """A loaded archive."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.device = "cpu"
        self.waiting = 3
        self.deadlines: list[float] = []
        self.when_streamed: Callable[[], object] = lambda: None

    def predict(self, tensors: Tensors, deadline: float) -> Tensors:
        self.deadlines.append(deadline - time.monotonic())
        rows = np.empty(len(tensors["request"]), object)
        rows[:] = [self.behave(request) for request in tensors["request"]]
        return {"response": rows}

    def stream(self, tensors: Tensors, deadline: float, parts: Parts) -> Iterator[bytes | Tensors]:
        answer = self.predict(tensors, deadline)
        try:
            yield from parts.take()
            yield answer
        finally:
            self.when_streamed()


class FakeRepository:
    """The repository's methods, in memory; loading an archive whose handler is called `broken` fails."""

    def __init__(self, folder: Path, behave: Behave = echo) -> None:
        self.folder = folder
        self.model = FakeModel(behave)
        self.failure: Exception = ModelLoadError("broken.py:3: it is broken")
        self.errors: dict[str, str] = {}
        self.is_loading = False
        self.fails: dict[str, Exception] = {}  # by method, as when another worker is faster or fails
        self.dropped: list[Path] = []
        self.before_trying: Callable[[], object] = lambda: None
        self._desired = Desired()

    def desired(self) -> Desired:
        return self._desired

    def find(self, name: str, version: str | None = None) -> Entry:
        entry = self._desired.find(name, version)
        if entry is None:
            raise VersionNotFound("no such version") if name in self._desired.models else ModelNotFound("no such model")
        return entry

    def get(self, name: str, version: str | None = None) -> FakeModel:
        self._fail("get")
        if not self.find(name, version).workers:
            raise ModelNotLoaded("not loaded")
        return self.model

    def register(self, entry: Entry) -> int:
        self._fail("register")
        if self._desired.find(entry.name, entry.version):
            raise VersionExists("it is there")
        self._try(entry, entry.workers)
        self._desired = self._desired.with_entry(entry)
        return entry.workers

    def unregister(self, name: str, version: str | None = None) -> Entry:
        self._fail("unregister")
        entry = self.find(name, version)
        if self._desired.defaults[name] == entry.version and len(self._desired.models[name]) > 1:
            raise DefaultVersionInUse("it is the default")
        self._desired = self._desired.without(*entry.key)
        return entry

    def set_default(self, name: str, version: str) -> None:
        self._fail("set_default")
        self.find(name, version)
        self._desired = self._desired.with_default(name, version)

    def scale(self, name: str, version: str | None, workers: int, max_workers: int) -> int:
        entry = self.find(name, version)
        self._try(entry, workers)
        granted = min(workers, 8)
        values = {**vars(entry), "workers": granted, "max_workers": max_workers}
        self._desired = self._desired.with_entry(Entry(**values))
        return granted

    def workers(self) -> list[Report]:
        loaded = tuple(entry.key for entry in self._desired.entries() if entry.workers and not self.is_loading)
        return [Report(pid, STARTED, loaded, self.errors) for pid in (10**9 + 2, 10**9 + 1)]

    def archive_folder(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder)) / "model"

    def drop_archive(self, folder: Path) -> None:
        self.dropped.append(folder)
        shutil.rmtree(folder.parent)

    def _fail(self, method: str) -> None:
        if method in self.fails:
            raise self.fails[method]

    def _try(self, entry: Entry, workers: int) -> None:
        if workers:
            self.before_trying()
        if workers and entry.options.get("handler") == "broken":
            raise self.failure


def make_archive(
    path: Path, name: str | None = "noop", version: str = "1.0", config: str = "", **model: Any
) -> Path:
    """Write an archive for the model called `name`; without a name one that has no manifest."""
    content = {"modelName": name, "modelVersion": version, "handler": "service.py", **model}
    if config:
        content["configFile"] = "model-config.yaml"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("service.py", "def handle(data, context):\n    return data\n")
        if config:
            file.writestr("model-config.yaml", config)
        if name is not None:
            file.writestr("MAR-INF/MANIFEST.json", json.dumps({"runtime": "python", "model": content}))
    return path


def make_app(blueprint: Any, repository: FakeRepository, text: str, folder: Path, **flags: str) -> Flask:
    """Return an application with one of TorchServe's APIs; `text` and `flags` are its properties."""
    app = LeanFlask("servekit", static_folder=None)
    properties = Properties.parse(text, {}, {"model_store": str(folder), **flags})
    ext.init_app(app, Settings(max_body_bytes=100_000), repository)  # type: ignore[arg-type]
    write_keys(folder / "key_file.json", properties.token_expiration_min)
    registry.init_app(app, repository, properties, folder / "key_file.json", folder / "packages")  # type: ignore[arg-type]
    app.register_blueprint(blueprint.bp)
    ext.dress(app, "80", blueprint.render)  # the port of Flask's test client
    return app


def error_of(response: Any) -> tuple[int, str, str]:
    """Return status, type and message of an error, after a look at its form."""
    body: Mapping[str, Any] = response.get_json()
    assert list(body) == ["code", "type", "message"]
    assert body["code"] == response.status_code
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Connection"] == "close"
    return response.status_code, body["type"], body["message"]
