"""Train the digit classifier: `python -m train.mnist`.

On MNIST if its files are there or can be downloaded, else on the 1797 small digits that scikit-learn carries, which are
distorted so strongly that the network reads MNIST's too.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.mnist import MnistCNN
from servekit.config import Settings, usable_cores
from servekit.errors import SettingError
from servekit.spec import ONNX, TensorSpec
from train import pictures
from train.augment import distort, sharpen, upscale_digits
from train.data import MIRRORS, DataError, Digits, download_mnist, load_embedded, load_mnist
from train.export import export_onnx, largest_difference
from train.loop import Point, Schedule, fit, predict
from train.settings import run, setting
from train.store import provenance, write_version

NAME = "mnist"
CLASSES = 10
INPUTS = (TensorSpec("image", "float32", (-1, 1, 28, 28)),)
OUTPUTS = (TensorSpec("logits", "float32", (-1, CLASSES)),)
EMBEDDED = "scikit-learn's digits"
HELD_OUT = 197  # of the embedded digits: what a run is scored on when MNIST's test images are not there
DATA = ("auto", "mnist", "embedded")


@dataclasses.dataclass(frozen=True)
class MnistSettings:
    """The settings of this recipe."""

    data: str = setting("auto", "mnist, embedded, or auto: mnist if it can be had, else embedded")
    epochs: int = setting(0, "passes over the data; 0 takes as many as suit the data")
    seed: int = setting(0, "the same seed gives the same weights on the same machine")

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise SettingError(f"--data must be one of: {', '.join(DATA)}.")
        if self.epochs < 0:
            raise SettingError("--epochs must not be below 0.")
        if not 0 <= self.seed < 2**63:
            raise SettingError("--seed must be between 0 and 2**63 - 1.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What suits one set of data: how long to learn, and how to distort it (see `train.augment.distort`)."""

    schedule: Schedule
    distortion: Mapping[str, Any]


MNIST_RECIPE = Recipe(
    Schedule(epochs=6, batch_size=128, learning_rate=3e-3, label_smoothing=0.05),
    {"rotation": 10.0, "shear": 0.15, "width": (0.9, 1.1), "height": (0.9, 1.1), "shift": 1.5, "elastic": 0.5},
)
EMBEDDED_RECIPE = Recipe(
    Schedule(epochs=100, batch_size=128, learning_rate=3e-3),
    {
        "rotation": 20.0,
        "shear": 0.6,  # MNIST's digits slant more than these upright ones
        "width": (0.8, 1.7),  # these are narrow: they fill all 8 rows but only 5 or 6 of the 8 columns
        "height": (0.6, 1.05),
        "shift": 2.0,
        "elastic": 1.2,  # stands in for the handwriting that 1797 digits do not show
        "cells": 6,
        "threshold": (0.4, 0.8),  # mostly thinner than at 0.5, which keeps the loops of 6, 8 and 9 open
        "contrast": (1.5, 5.0),
    },
)


def train(settings: MnistSettings, paths: Settings, digits: Digits | None = None) -> Path:
    """Train on `digits`, or on those that `settings` asks for, and write a version of `mnist`; return its folder."""
    started = time.monotonic()
    digits = digits or load_digits(paths.data_dir, settings.data)
    recipe = EMBEDDED_RECIPE if digits.source == EMBEDDED else MNIST_RECIPE
    schedule = dataclasses.replace(recipe.schedule, epochs=settings.epochs or recipe.schedule.epochs)
    print(f"Training on {len(digits.train_images)} images: {digits.source}.")
    network, curve = _fit(digits, schedule, recipe.distortion, settings.seed)
    predicted = predict(network, _to_tensor(digits.test_images)).numpy()
    score = float((predicted == digits.test_labels).mean())
    print(f"Accuracy on {len(digits.test_images)} test images ({digits.test_source}): {score:.2%}.")
    training: dict[str, Any] = {
        "data": {"source": digits.source, "sha256": digits.sha256, "rows": len(digits.train_images)},
        "test_data": {"source": digits.test_source, "rows": len(digits.test_images)},
        "settings": {**dataclasses.asdict(settings), **dataclasses.asdict(schedule), **recipe.distortion},
        "seed": settings.seed,
        "scores": {"test_accuracy": score},
    }
    onnx = export_onnx(network, INPUTS, OUTPUTS)
    training["onnx"] = {"largest_difference": largest_difference(network, onnx, INPUTS)}
    return write_version(
        paths.model_store,
        NAME,
        network,
        {ONNX: onnx, **_draw(curve, digits.test_labels, predicted)},
        handler="servekit.handlers.image:ImageHandler",
        options={"background": "black"},
        inputs=INPUTS,
        outputs=OUTPUTS,
        labels=tuple(map(str, range(CLASSES))),
        training=training | provenance(time.monotonic() - started),
    )


def load_digits(folder: Path, data: str = "auto", mirrors: tuple[str, ...] = MIRRORS) -> Digits:
    """Return the digits to learn from: `data` is one of DATA. Missing files of MNIST are downloaded into `folder`.

    Raises DataError for files that are damaged, and, if `data` insists on MNIST, when it cannot be had.
    """
    if data == "embedded":
        return embedded_digits(folder)
    try:
        return load_mnist(folder)
    except FileNotFoundError:
        print(f"MNIST is not in {folder} (SERVEKIT_DATA_DIR); trying to download it ...")
    try:
        download_mnist(folder, mirrors)
        return load_mnist(folder)
    except (OSError, DataError) as error:
        if data == "mnist":
            raise DataError(f"MNIST cannot be downloaded: {error}. Put its four files into {folder}.") from error
    print(f"MNIST cannot be downloaded. Training on {EMBEDDED} instead, which gives a less accurate model.")
    return embedded_digits(folder)


def embedded_digits(folder: Path) -> Digits:
    """Return scikit-learn's digits in MNIST's form; the test images are MNIST's if `folder` has them."""
    small, labels, digest = load_embedded()
    images = _to_pixels(upscale_digits(torch.from_numpy(small)))
    try:
        mnist = load_mnist(folder)
    except (OSError, DataError):
        shown = sharpen(_to_tensor(images[-HELD_OUT:]), 0.6, 3.25)
        train, test = slice(None, -HELD_OUT), (_to_pixels(shown), labels[-HELD_OUT:], f"{EMBEDDED}, held out")
    else:
        train, test = slice(None), (mnist.test_images, mnist.test_labels, mnist.source)
    return Digits(images[train], labels[train], *test, EMBEDDED, digest)


def _to_tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 255)[:, None]


def _to_pixels(images: Tensor) -> np.ndarray:
    return (images[:, 0] * 255).round().to(torch.uint8).numpy()


def _fit(
    digits: Digits, schedule: Schedule, distortion: Mapping[str, Any], seed: int
) -> tuple[MnistCNN, list[Point]]:
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())  # torch counts the cores of the machine, not those of its container
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = MnistCNN()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster to train
    curve = fit(
        network,
        (_to_tensor(digits.train_images), torch.from_numpy(digits.train_labels)),
        (_to_tensor(digits.test_images), torch.from_numpy(digits.test_labels)),
        schedule,
        partial(distort, generator=generator, **distortion),
        generator,
    )
    return network.eval(), curve


def _draw(curve: list[Point], labels: np.ndarray, predicted: np.ndarray) -> dict[str, bytes]:
    counts = pictures.confusion_counts(labels, predicted, CLASSES)
    names = [str(digit) for digit in range(CLASSES)]
    return {
        "learning_curve.png": pictures.learning_curve(curve, "Learning to read digits"),
        "confusion_matrix.png": pictures.confusion_matrix(counts, names, f"Mistakes among {len(labels)} test images"),
    }


if __name__ == "__main__":
    run(train, MnistSettings, __doc__)
