"""Model stores of misbehaving networks, written as a user would write them."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from servekit.spec import TensorSpec
from tests import networks
from train.store import write_version

VALUE = TensorSpec("value", "float32", (-1, 1))
PREDICTION = TensorSpec("prediction", "float32", (-1, 1))


def write_regressor(store: Path, network: nn.Module | None = None, name: str = "linear", **spec: Any) -> Path:
    """Write a version of a regressor and return its folder."""
    fields: dict[str, Any] = {
        "handler": "servekit.handlers.regression:RegressionHandler",
        "inputs": (VALUE,),
        "outputs": (PREDICTION,),
    }
    return write_version(store, name, network or networks.Infinite(), {}, **(fields | spec))


def edit(folder: Path, **members: Any) -> None:
    """Change members of the model.json in `folder`; None removes one."""
    path = folder / "model.json"
    content = json.loads(path.read_text()) | members
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
