"""Clouds that run servekit as a container: how each is recognised, where it listens and where models lie there.

Standard library only: the master imports this. Sources: SageMaker's "Use your own inference code", Vertex AI's "Custom
container requirements", Azure ML's inference server.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from servekit.errors import SettingError

AUTO, NONE = "auto", "none"
SAGEMAKER, VERTEX, AZURE, MLFLOW = "sagemaker", "vertex", "azure", "mlflow"
PLATFORMS = (AUTO, NONE, SAGEMAKER, VERTEX, AZURE, MLFLOW)

_LOOPBACK = "127.0.0.1:5001"


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where a platform sends requests, and where it puts models (None: where servekit's own setting says)."""

    name: str = NONE
    bind: str = _LOOPBACK
    models: Path | None = None


def platform_of(environ: Mapping[str, str], choice: str = AUTO) -> Platform:
    """Return the platform that `choice`, one of PLATFORMS, means in `environ`; raise SettingError for a port that is none."""
    name = _recognise(environ) if choice == AUTO else choice
    if name == SAGEMAKER:
        models = "/opt/ml/models" if is_multi_model(environ) else f"{environ.get('SAGEMAKER_BASE_DIR', '/opt/ml')}/model"
        return Platform(name, _any_address(environ, "SAGEMAKER_BIND_TO_PORT", "8080"), _existing(models))
    if name == VERTEX:
        return Platform(name, _any_address(environ, "AIP_HTTP_PORT", "8080"), _existing(environ.get("AIP_STORAGE_URI", "")))
    if name == AZURE:
        return Platform(name, "0.0.0.0:5001", _existing(environ.get("AZUREML_MODEL_DIR", "")))
    return Platform(name)


def is_multi_model(environ: Mapping[str, str]) -> bool:
    """Return True if SageMaker loads and unloads models by requests."""
    return environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"


def _recognise(environ: Mapping[str, str]) -> str:
    if environ.get("AIP_MODE") == "PREDICTION":
        return VERTEX
    if any(name.startswith("SAGEMAKER_") for name in environ):
        return SAGEMAKER
    return AZURE if "AZUREML_MODEL_DIR" in environ or "AZUREML_ENTRY_SCRIPT" in environ else NONE


def _any_address(environ: Mapping[str, str], variable: str, default: str) -> str:
    port = environ.get(variable) or default
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingError(f"{variable} must be the number of a port.")
    return f"0.0.0.0:{port}"


def _existing(folder: str) -> Path | None:
    return Path(folder) if folder and Path(folder).is_dir() else None
