"""The application factory: the table of contents of the server."""

import os

from flask import Flask

from servekit import ext, gateway, hooks, metrics, middleware
from servekit.blueprints import (
    linear,
    mnist,
    ops,
    predict,
    torchserve_inference,
    torchserve_management,
    torchserve_metrics,
)
from servekit.config import Settings
from servekit.errors import StartupError
from servekit.lean import LeanFlask
from servekit.model import ignore_metric
from servekit.repository import Repository
from servekit.torchserve import exposition, registry, wire
from servekit.torchserve.properties import Properties
from servekit.torchserve.startup import KEY_FILE, packages_folder


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application with every model loaded; without `settings` they come from `SERVEKIT_*`.

    Raises StartupError, whose message names the file or setting and the remedy.
    """
    settings = settings or Settings.from_environ(os.environ)
    properties = Properties.parse(settings.torchserve) if settings.torchserve else None
    report_metric = exposition.observe_model_metric if properties else ignore_metric
    repository = Repository.load(settings, hooks.shared_state(), report_metric)

    app = LeanFlask("servekit", static_folder=None)
    ext.init_app(app, settings, repository)
    metrics.init_app(app)
    for blueprint in (predict.bp, linear.bp, mnist.bp, ops.bp):
        app.register_blueprint(blueprint)
    if properties:
        _add_torchserve(app, repository, properties)
    app.wsgi_app = middleware.stack(app.wsgi_app, settings)  # type: ignore[assignment,method-assign]
    return app


def _add_torchserve(app: LeanFlask, repository: Repository, properties: Properties) -> None:
    """Add TorchServe's three APIs, each for the port of its own address only, and servekit's health beside the first."""
    registry.init_app(app, repository, properties, KEY_FILE.absolute(), packages_folder())
    exposition.configure(properties)
    apis = {
        torchserve_inference: properties.inference_address,
        torchserve_management: properties.management_address,
        torchserve_metrics: properties.metrics_address,
    }
    for api, address in apis.items():
        port = str(address.port)
        app.register_blueprint(api.bp, subdomain=port)
        app.ports |= {port}
        ext.dress(app, port, api.render)
        gateway.dresses[port] = wire.refusal
    app.register_blueprint(ops.bp, name="torchserve_ops", subdomain=str(properties.inference_address.port))


def application() -> Flask:
    """Return what a WSGI server serves; if it cannot be made, end the process after one sentence that says why."""
    try:
        return create_app()
    except StartupError as error:
        hooks.refuse(error)
