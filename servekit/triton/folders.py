"""Model folders of Triton's layout: `<name>/config.pbtxt` and `<name>/<number>/model.onnx`. Standard library only.

The master looks at them, so protobuf is imported only where a config.pbtxt says which versions or how many instances of
a model there are to be; that starts no thread.
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servekit.errors import ModelLoadError
from servekit.spec import FILE_NAME, ONNX, TRITON_CONFIG

log = logging.getLogger(__name__)

CONFIG = TRITON_CONFIG
TORCHSCRIPT = "model.pt"
MAX_CONFIG_BYTES = 2**20

_FOR_THE_MASTER = (b"version_policy", b"instance_group")


def is_model(folder: Path, versions: Sequence[int]) -> bool:
    """Return True if the model folder with these versions is of Triton's layout: by its config, or by its newest version."""
    if (folder / CONFIG).is_file():
        return True
    newest = folder / str(versions[-1])
    return not (newest / FILE_NAME).exists() and any((newest / name).is_file() for name in (ONNX, TORCHSCRIPT))


def chosen_versions(folder: Path, versions: Sequence[int], config: str = "") -> list[int]:
    """Return which of `versions`, in rising order, the version policy of the model in `folder` lets be served.

    `config` is JSON in the place of the file. What cannot be read chooses the newest, whose loading says what is wrong.
    """
    policy = _glance(folder, config).get("version_policy", {})
    if "all" in policy:
        return list(versions)
    if "specific" in policy:
        return [version for version in versions if version in policy["specific"]["versions"]]
    return list(versions[-max(1, policy.get("latest", {}).get("num_versions", 1)) :])


def instances(folder: Path, config: str = "") -> int:
    """Return how many instances of the model in `folder` there are to be, at least 1."""
    groups = _glance(folder, config).get("instance_group", [])
    return max(1, sum(max(1, group["count"]) * max(1, len(group["gpus"])) for group in groups if not group["passive"]))


def fingerprint(folder: Path) -> str:
    """Return what changes whenever the config of the model in `folder` does; "" without one."""
    try:
        content = _content(folder)
    except OSError:
        return ""
    return hashlib.sha256(content).hexdigest() if content else ""


def inside(folder: Path, model: Path, name: str, field: str) -> Path:
    """Return the file `name` of `folder`, which lies in the model folder `model`.

    Raises ModelLoadError, naming the config's `field`, for a name that leads out of `model`, by a link too, or nowhere.
    """
    path = folder / name
    is_plain = name and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
    if not is_plain or not path.resolve().is_relative_to(model.resolve()):
        raise ModelLoadError(f"{model / CONFIG}: {field} leads out of the model's folder; put the file into it.")
    if not path.is_file():
        raise ModelLoadError(f"{path} is missing; put the file there, or correct {field} in {CONFIG}.")
    return path


def _content(folder: Path) -> bytes:
    """Return the config's bytes, none where it is no file, as a pipe and a device are, or too large to be a config."""
    path = folder / CONFIG
    return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_CONFIG_BYTES else b""


def _glance(folder: Path, config: str) -> dict[str, Any]:
    """Return the config as far as the master needs it; an empty one if there is none that can be read."""
    try:
        if not config:
            content = _content(folder)
            if not any(word in content for word in _FOR_THE_MASTER):
                return {}
        from servekit.triton.config import read_config

        return read_config(folder, config).values
    except (OSError, ModelLoadError) as error:
        log.debug("The config of %s cannot be read yet: %s", folder, error)
        return {}
