"""Train the linear regressor on six points of y = 2x - 1: `python -m train.linear`."""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from models.linear import LinearRegressor
from servekit.config import Settings
from servekit.spec import ONNX, TensorSpec
from train.export import export_onnx, largest_difference
from train.settings import run, setting
from train.store import provenance, write_version

NAME = "linear"
INPUTS = (TensorSpec("value", "float32", (-1, 1)),)
OUTPUTS = (TensorSpec("prediction", "float32", (-1, 1)),)
POINTS = np.array([(-1, -3), (0, -1), (1, 1), (2, 3), (3, 5), (4, 7)], dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class LinearSettings:
    """The settings of this recipe."""

    epochs: int = setting(600, "steps, each over all six points")
    learning_rate: float = setting(0.05, "size of a step of plain gradient descent")
    seed: int = setting(0, "the same seed gives the same weights")


def train(settings: LinearSettings, paths: Settings) -> Path:
    """Learn the line and write a version of the model `linear`; return its folder."""
    started = time.monotonic()
    torch.manual_seed(settings.seed)
    network = LinearRegressor()
    loss = fit(network, settings)
    training: dict[str, Any] = {
        "data": {"source": "y = 2x - 1 at -1, 0, 1, 2, 3, 4", "sha256": hashlib.sha256(POINTS.tobytes()).hexdigest()},
        "settings": dataclasses.asdict(settings),
        "seed": settings.seed,
        "scores": {"mean_squared_error": loss},
    }
    onnx = export_onnx(network, INPUTS, OUTPUTS)
    training["onnx"] = {"largest_difference": largest_difference(network, onnx, INPUTS)}
    return write_version(
        paths.model_store,
        NAME,
        network,
        {ONNX: onnx},
        handler="servekit.handlers.regression:RegressionHandler",
        inputs=INPUTS,
        outputs=OUTPUTS,
        training=training | provenance(time.monotonic() - started),
    )


def fit(network: torch.nn.Module, settings: LinearSettings) -> float:
    """Fit `network` to the points in place; return the last mean squared error."""
    inputs, targets = torch.from_numpy(POINTS[:, :1]), torch.from_numpy(POINTS[:, 1:])
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate)
    with tqdm(range(settings.epochs), desc=NAME, unit="step", leave=False) as steps:
        for _ in steps:
            optimizer.zero_grad()
            loss = functional.mse_loss(network(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        steps.set_postfix(loss=f"{loss.item():.2g}")
    return loss.item()


if __name__ == "__main__":
    run(train, LinearSettings, __doc__)
