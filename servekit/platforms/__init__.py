"""Clouds that run servekit as a container: how each is recognised, where it listens and where models lie there.

Standard library only: the master imports this.
"""

from collections.abc import Mapping

from servekit.platforms.azure import azure, azure_root, scoring_script
from servekit.platforms.base import AUTO, AZURE, MLFLOW, NONE, SAGEMAKER, VERTEX, Platform, positive
from servekit.platforms.sagemaker import format_of, program_of, require_safe_ports, sagemaker
from servekit.platforms.vertex import vertex

__all__ = [
    "AUTO",
    "AZURE",
    "MLFLOW",
    "NONE",
    "PLATFORMS",
    "Platform",
    "SAGEMAKER",
    "VERTEX",
    "azure_root",
    "format_of",
    "platform_of",
    "positive",
    "program_of",
    "require_safe_ports",
    "scoring_script",
]

PLATFORMS = (AUTO, NONE, SAGEMAKER, VERTEX, AZURE, MLFLOW)

# Of containers that serve: notebooks and training jobs have other variables that begin so, and are not to listen to all.
_SAGEMAKER_SERVES = (
    *("SAGEMAKER_BIND_TO_PORT", "SAGEMAKER_SAFE_PORT_RANGE", "SAGEMAKER_MULTI_MODEL", "SAGEMAKER_BATCH"),
    *("SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY", "SAGEMAKER_BASE_DIR"),
    *("SAGEMAKER_MODEL_SERVER_WORKERS", "SAGEMAKER_MODEL_SERVER_TIMEOUT", "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"),
    *("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "SAGEMAKER_MAX_PAYLOAD_IN_MB"),
)


def platform_of(environ: Mapping[str, str], choice: str = AUTO) -> Platform:
    """Return the platform that `choice`, one of PLATFORMS, means in `environ`.

    Raises SettingError for variables of it that cannot be used.
    """
    name = _recognise(environ) if choice == AUTO else choice
    known = {SAGEMAKER: sagemaker, VERTEX: vertex, AZURE: azure}
    return known[name](environ) if name in known else Platform(name)


def _recognise(environ: Mapping[str, str]) -> str:
    if environ.get("AIP_MODE") == "PREDICTION":
        return VERTEX
    if any(name in environ for name in _SAGEMAKER_SERVES):
        return SAGEMAKER
    return AZURE if "AZUREML_MODEL_DIR" in environ or "AZUREML_ENTRY_SCRIPT" in environ else NONE
