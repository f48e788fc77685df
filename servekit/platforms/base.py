"""What the platforms have in common."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servekit.errors import SettingError

AUTO, NONE = "auto", "none"
SAGEMAKER, VERTEX, AZURE, MLFLOW = "sagemaker", "vertex", "azure", "mlflow"

_LOOPBACK = "127.0.0.1:5001"


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


def any_address(environ: Mapping[str, str], variable: str, default: str) -> str:
    """Return where to listen for whoever reaches the port that `variable` names; raise SettingError."""
    port = environ.get(variable) or default
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SettingError(f"{variable} must be the number of a port.")
    return f"0.0.0.0:{port}"


# Of a cloud that sends every request through a front of its own, which knows who may ask; its clients can send no key of ours.
BEHIND_FRONT: Mapping[str, Any] = {"allow_anonymous": True}


def require_named(environ: Mapping[str, str], variable: str, folder: str) -> None:
    """Raise SettingError if `variable` is set and `folder`, where it puts the models, is none.

    Else the models of another folder would be served, or it would be missed under another name. It says nothing where
    servekit's own setting names the store.
    """
    if environ.get(variable) and "SERVEKIT_MODEL_STORE" not in environ and not Path(folder).is_dir():
        raise SettingError(f"{variable} must name where the models are: there is no folder {folder}.")


def existing(folder: str) -> Path | None:
    """Return `folder` if there is such a folder."""
    return Path(folder) if folder and Path(folder).is_dir() else None


def positive(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return the whole number above 0 that `variable` holds; raise SettingError for anything else."""
    text = environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise SettingError(f"{variable} must be a whole number above 0.")
    return int(text)
