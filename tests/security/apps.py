"""Every application that servekit can be, one for each contract, and every address of each."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from servekit.app import create_app
from servekit.config import Settings
from servekit.spec import ModelSpec, TensorSpec, write_spec

MAX_BODY = 2**21  # bytes: what is too large is soon said
PLATFORMS = ("none", "sagemaker", "mlflow", "vertex", "azure")
TORCHSERVE = ("inference", "management", "metrics")  # on its ports, from FIRST_PORT on
FIRST_PORT = 8080
ALL = (*PLATFORMS, "multi_model", *TORCHSERVE)
DTYPES = ("float32", "float64", "int64", "bytes")

# What stands for the parts of a route that are open: names that are there, so that a request comes as far as it can.
_VALUES = {
    **{"name": "linear", "version": "1", "endpoint": "e", "project": "p", "location": "l", "endpoint_id": "e"},
    **{"rest": "models/linear/labels/x", "asset": "x.png", "kind": "systemsharedmemory", "region": "r", "repository": "r"},
    **{"verb": "load", "probe": "live"},
}
HANDLER = """
class Echo:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"about": "It echoes."}]
        if data[0].get("body") == "fail" or data[0].get("body") == b"fail":
            raise ValueError("it was told to fail")
        return [{"fields": sorted(row)} for row in data]
"""


@dataclasses.dataclass(frozen=True)
class Address:
    """A method and a path of an application that answers there."""

    app: str
    method: str
    path: str
    endpoint: str

    def __str__(self) -> str:
        return f"{self.app} {self.method} {self.path}"


class Apps:
    """The applications over the stores below one folder, each made when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.store, self.archives = root, root / "models", root / "archives"
        self._made: dict[str, Flask] = {}

    def app(self, name: str) -> Flask:
        """Return the application called `name`, one of ALL; TorchServe's three APIs are one application."""
        name = "torchserve" if name in TORCHSERVE else name
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def client(self, name: str) -> FlaskClient:
        """Return a client of an application."""
        return self.app(name).test_client()

    def ask(
        self, name: str, method: str, path: str, body: Any = None, kind: str | None = None, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Send one request to the application called `name`, to the port that the API of that name has."""
        port = FIRST_PORT + TORCHSERVE.index(name) if name in TORCHSERVE else 5001
        return self.client(name).open(
            path, base_url=f"http://127.0.0.1:{port}", method=method, data=body, content_type=kind, headers=dict(headers or {})
        )

    def addresses(self, *names: str, method: str = "") -> list[Address]:
        """Return every address of the applications, those that all of them share only once."""
        found: dict[tuple[str, str, str], Address] = {}
        for name in names or ALL:
            port = str(FIRST_PORT + TORCHSERVE.index(name)) if name in TORCHSERVE else ""
            for rule in self.app(name).url_map.iter_rules():
                if (rule.subdomain or "") != port:
                    continue
                for address in _addresses(name, rule):
                    if not method or address.method == method:
                        found.setdefault((port, address.method, f"{address.endpoint} {address.path}"), address)
        return list(found.values())

    def _make(self, name: str) -> Flask:
        settings: dict[str, Any] = {"model_store": self.store, "max_body_bytes": MAX_BODY, "default_model": "linear"}
        if name == "torchserve":
            settings |= {"model_store": self.archives, "torchserve": properties(self.archives)}
        elif name == "multi_model":
            settings |= {"platform": "sagemaker", "multi_model": True}
        else:
            settings |= {"platform": name, "management": True}
        app = create_app(Settings(**settings))
        if name == "torchserve":
            management = f"http://127.0.0.1:{FIRST_PORT + 1}"
            answer = app.test_client().post("/models?url=linear&initial_workers=1", base_url=management)
            if answer.status_code != 200:  # and no assert, which `python -O` leaves out
                raise RuntimeError(answer.get_data(as_text=True))
        return app


def properties(store: Path, **more: str) -> str:
    """Return TorchServe's properties for a server that asks for no keys and registers models."""
    values = {"model_store": str(store), "disable_token_authorization": "true", "enable_model_api": "true", **more}
    return "\n".join(f"{name}={value}" for name, value in values.items())


def _addresses(app: str, rule: Rule) -> Iterator[Address]:
    path = str(rule)
    for argument in rule.arguments:
        start, _, rest = path.partition("<")
        inside, _, end = rest.partition(">")
        path = f"{start}{_VALUES[inside.rpartition(':')[2]]}{end}"
        assert argument in _VALUES
    for method in sorted(rule.methods or ()):
        yield Address(app, method, path, rule.endpoint)


def write_echo(store: Path, dtype: str) -> None:
    """Write a model that answers with what it gets, of `dtype`."""
    folder = store / f"echo_{dtype}" / "1"
    folder.mkdir(parents=True)
    tensor = TensorSpec("x", dtype, (-1,))
    write_spec(folder, ModelSpec("servekit.handlers.base:Handler", inputs=(tensor,), outputs=(tensor,), files={}))


def write_archive(folder: Path) -> None:
    """Write the folder of a model of TorchServe's, as the archiver's format "no-archive" does."""
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "echo_handler.py").write_text(HANDLER)
    manifest = {"model": {"modelName": folder.name, "modelVersion": "1", "handler": "echo_handler.py"}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))


def write_root(trained: Path, root: Path) -> Path:
    """Write what these tests serve: a store of the trained models and of models that echo, and one of archives."""
    shutil.copytree(trained, root / "models")
    for dtype in DTYPES:
        write_echo(root / "models", dtype)
    write_archive(root / "archives" / "linear")
    return root
