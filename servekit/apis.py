"""APIs that have addresses of their own; what they take is imported only where they are asked for."""

from servekit import ext, gateway
from servekit.blueprints import ops, torchserve_inference, torchserve_management, torchserve_metrics
from servekit.lean import LeanFlask
from servekit.model import ReportMetric
from servekit.repository import Repository
from servekit.torchserve import exposition, registry, wire
from servekit.torchserve.properties import Properties
from servekit.torchserve.startup import KEY_FILE, packages_folder


def torchserve_reporter(properties: Properties) -> ReportMetric:
    """Return what counts the metrics of handlers for TorchServe's page; raise SettingError for a list that is none."""
    exposition.configure(properties)
    return exposition.observe_model_metric


def add_torchserve(app: LeanFlask, repository: Repository, properties: Properties) -> None:
    """Add TorchServe's three APIs, each for the port of its own address only, and servekit's health beside the first."""
    registry.init_app(app, repository, properties, KEY_FILE.absolute(), packages_folder())
    apis = {
        torchserve_inference: properties.inference_address,
        torchserve_management: properties.management_address,
    }
    if properties.enable_metrics_api:
        apis[torchserve_metrics] = properties.metrics_address
    for api, address in apis.items():
        port = str(address.port)
        app.register_blueprint(api.bp, subdomain=port)
        app.ports |= {port}
        ext.dress(app, port, api.render)
        gateway.dresses[port] = wire.refusal
    app.register_blueprint(ops.bp, name="torchserve_ops", subdomain=str(properties.inference_address.port))
