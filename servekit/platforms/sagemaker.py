"""SageMaker: "Use your own inference code", and the variables of its toolkits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servekit.errors import SettingError
from servekit.platforms.base import BEHIND_FRONT, SAGEMAKER, Platform, any_address, existing, require_named

_LOG_LEVELS = {"10": "debug", "20": "info", "30": "warning", "40": "error", "50": "critical"}  # of Python's logging


def sagemaker(environ: Mapping[str, str]) -> Platform:
    """Return what SageMaker asks for."""
    is_multi = _is_multi_model(environ)
    if not is_multi:
        require_named(environ, "SAGEMAKER_BASE_DIR", f"{environ.get('SAGEMAKER_BASE_DIR')}/model")
    models = "/opt/ml/models" if is_multi else f"{environ.get('SAGEMAKER_BASE_DIR') or '/opt/ml'}/model"
    seconds = _number(environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", _number(environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT", 60))
    settings: dict[str, Any] = {**BEHIND_FRONT, "multi_model": is_multi, "deadline_seconds": float(seconds or 60)}
    if megabytes := _number(environ, "SAGEMAKER_MAX_PAYLOAD_IN_MB", None):  # 0, of a batch job: without a limit
        settings["max_body_bytes"] = megabytes * 2**20
    if accept := environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"):
        settings["default_accept"] = accept
    return Platform(
        SAGEMAKER,
        any_address(environ, "SAGEMAKER_BIND_TO_PORT", "8080"),
        Path(models) if is_multi else existing(models),  # the first model may make the folder
        _number(environ, "SAGEMAKER_MODEL_SERVER_WORKERS", None) or None,
        settings,
        _LOG_LEVELS.get(environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", ""), "info"),
    )


def format_of(folder: Path, environ: Mapping[str, str]) -> str:
    """Return the format of the one model that lies in `folder` itself, or "" if it is a folder of models, or of none.

    "servekit" has a model.json. "sagemaker" has code/inference.py, or what SAGEMAKER_PROGRAM names, or is the one file
    .pt or .pth that there is, which must be TorchScript.
    """
    if (folder / "model.json").is_file():
        return "servekit"
    if program_of(folder, environ) is not None:
        return "sagemaker"
    files = [path for suffix in ("*.pt", "*.pth") for path in folder.glob(suffix) if path.is_file()]
    return "sagemaker" if len(files) == 1 or folder.joinpath("model.pt") in files else ""


def program_of(folder: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the file with the functions of a SageMaker model that lies in `folder`, if it brings one."""
    program = Path(environ.get("SAGEMAKER_PROGRAM") or "inference.py")
    path = folder / "code" / program
    is_inside = ".." not in program.parts and path.is_relative_to(folder)
    return path if is_inside and path.is_file() else None


def require_safe_ports(environ: Mapping[str, str], ports: Sequence[int]) -> None:
    """Raise SettingError if one of `ports`, SageMaker's own apart, lies outside of SAGEMAKER_SAFE_PORT_RANGE."""
    text = environ.get("SAGEMAKER_SAFE_PORT_RANGE", "").strip()
    if not text:
        return
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or not last.isdecimal() or not 0 < int(first) <= int(last) < 2**16:
        raise SettingError("SAGEMAKER_SAFE_PORT_RANGE must be two ports, such as 9000-9100.")
    own = _number(environ, "SAGEMAKER_BIND_TO_PORT", 8080)
    for port in ports:
        if port != own and not int(first) <= port <= int(last):
            raise SettingError(f"The port {port} lies outside of SAGEMAKER_SAFE_PORT_RANGE, {text}; choose another one.")


def _is_multi_model(environ: Mapping[str, str]) -> bool:
    """Return True if SageMaker loads and unloads models by requests."""
    return environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"


def _number(environ: Mapping[str, str], variable: str, default: int | None) -> int | None:
    text = environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise SettingError(f"{variable} must be a number.")
    return int(text) if text else default
