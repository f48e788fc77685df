"""APIs that have addresses of their own; what they take is imported only where they are asked for."""

from servekit import access, ext, gateway
from servekit.blueprints import (
    azure,
    azure_scripts,
    ops,
    sagemaker,
    torchserve_inference,
    torchserve_management,
    torchserve_metrics,
    vertex,
)
from servekit.config import Settings
from servekit.lean import LeanFlask
from servekit.model import ReportMetric
from servekit.platforms import AZURE, MLFLOW, SAGEMAKER, VERTEX
from servekit.repository import Repository
from servekit.torchserve import exposition, registry, wire
from servekit.torchserve.properties import Properties
from servekit.torchserve.startup import KEY_FILE, packages_folder

_PLATFORMS = {SAGEMAKER: sagemaker, MLFLOW: sagemaker, VERTEX: vertex, AZURE: azure}


def prepare_platform(settings: Settings) -> None:
    """Make what the code of models finds on a platform; before they are loaded."""
    if settings.platform == AZURE:
        azure_scripts.install()


def add_platform(app: LeanFlask, settings: Settings) -> None:
    """Add the contract of the cloud that this server runs in."""
    app.register_blueprint(_PLATFORMS[settings.platform].bp)
    if settings.multi_model:
        app.register_blueprint(sagemaker.multi_model)
    if settings.platform == MLFLOW:
        app.register_blueprint(sagemaker.mlflow)


def torchserve_reporter(properties: Properties) -> ReportMetric:
    """Return what counts the metrics of handlers for TorchServe's page; raise SettingError for a list that is none."""
    exposition.configure(properties)
    return exposition.observe_model_metric


def add_torchserve(app: LeanFlask, repository: Repository, properties: Properties) -> None:
    """Add TorchServe's three APIs, each for the port of its own address only, and servekit's health beside the first."""
    registry.init_app(app, access.visible(app, repository), properties, KEY_FILE.absolute(), packages_folder())
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
