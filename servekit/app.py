"""The application factory: the table of contents of the server."""

import os

from flask import Flask

from servekit import entrance, ext, hooks, metrics, middleware
from servekit.blueprints import docs, linear, mnist, open_inference, ops, predict, predictions, tensorflow_serving
from servekit.config import Settings, seal_keys
from servekit.errors import StartupError
from servekit.lean import LeanFlask
from servekit.model import ReportMetric, ignore_metric
from servekit.platforms import AUTO, NONE
from servekit.repository import Repository
from servekit.shedding import Shedding
from servekit.torchserve.properties import properties_of


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application with every model loaded; without `settings` they come from `SERVEKIT_*`.

    Raises StartupError, whose message names the file or setting and the remedy.
    """
    seal_keys(os.environ)
    settings = settings or Settings.from_environ(os.environ)
    properties = properties_of(settings) if settings.torchserve else None
    report_metric: ReportMetric = ignore_metric
    if properties:
        from servekit.apis import add_torchserve, torchserve_reporter  # not for those who do not ask for it

        report_metric = torchserve_reporter(properties)
    if has_platform := settings.platform not in (AUTO, NONE):
        from servekit.apis import add_platform, prepare_platform

        prepare_platform(settings)
    repository = Repository.load(settings, hooks.shared_state(), report_metric)

    app = LeanFlask("servekit", static_folder=None)
    ext.init_app(app, settings, repository, entrance.shared_tally())
    metrics.init_app(app)
    if has_platform:  # before the others: of two routes with one address the first answers
        add_platform(app, settings)
    for room in (predict, linear, mnist, ops, tensorflow_serving, open_inference, predictions):
        app.register_blueprint(room.bp)
    if docs.IS_INSTALLED:
        app.register_blueprint(docs.bp)
    if properties:
        add_torchserve(app, repository, properties)
    app.wsgi_app = middleware.stack(Shedding(app.wsgi_app), settings)  # type: ignore[assignment,method-assign]
    if settings.tracing:
        from servekit.tracing import Tracing, provider  # OpenTelemetry's packages are an extra

        app.wsgi_app = Tracing(app.wsgi_app, provider=provider())  # type: ignore[method-assign]
    return app


def application() -> Flask:
    """Return what a WSGI server serves; if it cannot be made, end the process after one sentence that says why."""
    try:
        return create_app()
    except StartupError as error:
        hooks.refuse(error)
