"""Clouds that run servekit as a container: how each is recognised, where it listens and where models lie there.

Standard library only: the master imports this. Sources: SageMaker's "Use your own inference code", Vertex AI's "Custom
container requirements", Azure ML's inference server.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servekit.errors import SettingError

AUTO, NONE = "auto", "none"
SAGEMAKER, VERTEX, AZURE, MLFLOW = "sagemaker", "vertex", "azure", "mlflow"
PLATFORMS = (AUTO, NONE, SAGEMAKER, VERTEX, AZURE, MLFLOW)

_LOOPBACK = "127.0.0.1:5001"
_LOG_LEVELS = {"10": "debug", "20": "info", "30": "warning", "40": "error", "50": "critical"}  # of Python's logging
_AZURE_ROOT = Path("/var/azureml-app")


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where a platform sends requests, and where it puts models (None: where servekit's own setting says).

    `settings` are servekit's settings that follow from its variables; those that are set themselves win over them.
    """

    name: str = NONE
    bind: str = _LOOPBACK
    models: Path | None = None
    workers: int | None = None  # None: as many as there are cores
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    log_level: str = "info"


def platform_of(environ: Mapping[str, str], choice: str = AUTO) -> Platform:
    """Return the platform that `choice`, one of PLATFORMS, means in `environ`; raise SettingError for a port that is none."""
    name = _recognise(environ) if choice == AUTO else choice
    if name == SAGEMAKER:
        return _sagemaker(environ)
    if name == VERTEX:
        return Platform(name, _any_address(environ, "AIP_HTTP_PORT", "8080"), _vertex_models(environ))
    if name == AZURE:
        store = _store_in(_existing(environ.get("AZUREML_MODEL_DIR", "")))
        return Platform(name, _any_address(environ, "SERVER_PORT", "5001"), store, _azure_workers(environ))
    return Platform(name)


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
    path = folder / "code" / (environ.get("SAGEMAKER_PROGRAM") or "inference.py")
    is_inside = ".." not in path.parts and path.is_relative_to(folder)
    return path if is_inside and path.is_file() else None


def require_safe_ports(environ: Mapping[str, str], ports: Sequence[int]) -> None:
    """Raise SettingError if one of `ports`, SageMaker's own apart, lies outside of SAGEMAKER_SAFE_PORT_RANGE."""
    text = environ.get("SAGEMAKER_SAFE_PORT_RANGE", "").strip()
    if not text:
        return
    first, dash, last = text.partition("-")
    if not dash or not first.isdecimal() or not last.isdecimal() or not 0 < int(first) <= int(last) < 2**16:
        raise SettingError("SAGEMAKER_SAFE_PORT_RANGE must be two ports, such as 9000-9100.")
    own = int(environ.get("SAGEMAKER_BIND_TO_PORT") or 8080)
    for port in ports:
        if port != own and not int(first) <= port <= int(last):
            raise SettingError(f"The port {port} lies outside of SAGEMAKER_SAFE_PORT_RANGE, {text}; choose another one.")


def is_multi_model(environ: Mapping[str, str]) -> bool:
    """Return True if SageMaker loads and unloads models by requests."""
    return environ.get("SAGEMAKER_MULTI_MODEL", "").lower() == "true"


def azure_root(environ: Mapping[str, str]) -> Path:
    """Return the folder that Azure ML's relative paths begin at."""
    if given := environ.get("AML_APP_ROOT"):
        return Path(given).absolute()
    return _AZURE_ROOT if _AZURE_ROOT.is_dir() else Path.cwd()


def scoring_script(environ: Mapping[str, str]) -> Path | None:
    """Return the script that Azure ML runs, `main.py` if none is named; None: there is none.

    Raises SettingError for one that is named and is not there.
    """
    root = azure_root(environ)
    if given := environ.get("AZUREML_ENTRY_SCRIPT"):
        script = root / given
        if script.suffix != ".py" or not script.is_file():
            raise SettingError(f"AZUREML_ENTRY_SCRIPT must name a file of Python: {script} is none.")
        return script
    script = root / "main.py"
    is_named = "AML_APP_ROOT" in environ or root == _AZURE_ROOT  # else it is whoever's folder we were started in
    return script if is_named and script.is_file() else None


def positive(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return the whole number above 0 that `variable` holds; raise SettingError for anything else."""
    text = environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise SettingError(f"{variable} must be a whole number above 0.")
    return int(text)


def _azure_workers(environ: Mapping[str, str]) -> int | None:
    """Return WORKER_COUNT; a script that somebody wrote takes the memory that it likes, so there is one of it by default."""
    if environ.get("WORKER_COUNT"):
        return positive(environ, "WORKER_COUNT", 1)
    return 1 if scoring_script(environ) else None


def _store_in(folder: Path | None) -> Path | None:
    """Return the model store in `folder`: Azure ML puts the folder that was registered into another one."""
    inner = [] if folder is None else [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    if len(inner) != 1 or any(each.name.isdecimal() for each in inner[0].iterdir()):
        return folder
    return inner[0]


def _vertex_models(environ: Mapping[str, str]) -> Path | None:
    """Return the folder that AIP_STORAGE_URI names; raise SettingError for one in Google's storage and for none.

    It says nothing where servekit's own setting names the store.
    """
    uri = environ.get("AIP_STORAGE_URI", "")
    if not uri or "SERVEKIT_MODEL_STORE" in environ:
        return None
    if "://" in uri:
        raise SettingError(
            "AIP_STORAGE_URI names a bucket, and nothing is fetched from there: let the image hold the model store, or "
            "copy it in before the start, and name its folder in SERVEKIT_MODEL_STORE."
        )
    if not Path(uri).is_dir():
        raise SettingError("AIP_STORAGE_URI must name a folder.")
    return Path(uri)


def _recognise(environ: Mapping[str, str]) -> str:
    if environ.get("AIP_MODE") == "PREDICTION":
        return VERTEX
    if any(name.startswith("SAGEMAKER_") for name in environ):
        return SAGEMAKER
    return AZURE if "AZUREML_MODEL_DIR" in environ or "AZUREML_ENTRY_SCRIPT" in environ else NONE


def _sagemaker(environ: Mapping[str, str]) -> Platform:
    is_multi = is_multi_model(environ)
    models = "/opt/ml/models" if is_multi else f"{environ.get('SAGEMAKER_BASE_DIR') or '/opt/ml'}/model"
    seconds = _number(environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", _number(environ, "SAGEMAKER_MODEL_SERVER_TIMEOUT", 60))
    settings: dict[str, Any] = {"multi_model": is_multi, "deadline_seconds": float(seconds or 60)}
    if megabytes := _number(environ, "SAGEMAKER_MAX_PAYLOAD_IN_MB", None):  # 0, of a batch job: without a limit
        settings["max_body_bytes"] = megabytes * 2**20
    if accept := environ.get("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"):
        settings["default_accept"] = accept
    return Platform(
        SAGEMAKER,
        _any_address(environ, "SAGEMAKER_BIND_TO_PORT", "8080"),
        Path(models) if is_multi else _existing(models),  # the first model may make the folder
        _number(environ, "SAGEMAKER_MODEL_SERVER_WORKERS", None) or None,
        settings,
        _LOG_LEVELS.get(environ.get("SAGEMAKER_CONTAINER_LOG_LEVEL", ""), "info"),
    )


def _number(environ: Mapping[str, str], variable: str, default: int | None) -> int | None:
    text = environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise SettingError(f"{variable} must be a number.")
    return int(text) if text else default


def _any_address(environ: Mapping[str, str], variable: str, default: str) -> str:
    port = environ.get(variable) or default
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingError(f"{variable} must be the number of a port.")
    return f"0.0.0.0:{port}"


def _existing(folder: str) -> Path | None:
    return Path(folder) if folder and Path(folder).is_dir() else None
