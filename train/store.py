"""Writing a version folder into a model store, whole or not at all."""

import datetime
import errno
import io
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from servekit.spec import WEIGHTS, ModelSpec, sha256, write_spec


def write_version(store: Path, name: str, network: torch.nn.Module, more: Mapping[str, bytes], **spec: Any) -> Path:
    """Write the next version of the model `name` into `store` and return its folder, `<store>/<name>/<number>`.

    `more` are the files beside the weights, by name; `spec` are the fields of `ModelSpec` except `network` and `files`.
    """
    weights = io.BytesIO()
    torch.save(_on_cpu(network), weights)
    files = {WEIGHTS: weights.getvalue(), **more}
    sums = {file: sha256(content) for file, content in files.items()}
    reference = f"{type(network).__module__}:{type(network).__qualname__}"
    (store / name).mkdir(parents=True, exist_ok=True)
    # The dot keeps a half-written folder, even one left by a crash, out of every scan.
    temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=store / name))
    try:
        for file, content in files.items():
            (temporary / file).write_bytes(content)
        write_spec(temporary, ModelSpec(network=reference, files=sums, **spec))
        temporary.chmod(0o755)
        return _rename_to_next(temporary, store, name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def provenance(seconds: float) -> dict[str, Any]:
    """Return what `training` says of every run: when it ended, how long it took, from which code, with what."""
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }


def _on_cpu(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    # Contiguous, so that the file does not depend on the memory layout that was fastest to train in.
    return {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}


def _rename_to_next(folder: Path, store: Path, name: str) -> Path:
    while True:
        numbers = [int(path.name) for path in (store / name).iterdir() if path.name.isdecimal()]
        version = store / name / str(max(numbers, default=0) + 1)
        try:
            return folder.rename(version)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another run took this number first
                raise


def _commit() -> str | None:
    """Return the commit of the code, with `+changes` if it was edited since; None outside a git checkout."""
    root = Path(__file__).parent.parent
    try:
        describe = ["git", "-C", os.fspath(root), "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
