"""The models that tests ask: trained as `make train` trains them, for seconds only.

`python -m tests.training FOLDER` leaves them in FOLDER/model_store for tests of another environment, beside ten digits
of the test pictures in FOLDER/digits.npz.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np

from servekit.config import Settings
from train.data import Digits
from train.linear import LinearSettings
from train.linear import train as train_linear
from train.mnist import EMBEDDED, MnistSettings, load_digits
from train.mnist import train as train_mnist


def few_digits() -> Digits:
    """Real MNIST if SERVEKIT_DATA_DIR has it, else the digits that scikit-learn carries; nothing is downloaded.

    Of MNIST a sixth to learn from and a tenth, spread evenly, to score with: enough to read most, and quick.
    """
    found = load_digits(Settings.from_environ(os.environ).data_dir, mirrors=())
    every = max(1, len(found.test_images) // 1000)
    test = {"test_images": found.test_images[::every], "test_labels": found.test_labels[::every]}
    return dataclasses.replace(found.first(10_000), **test)


def train_both(model_store: Path, digits: Digits) -> None:
    """Write both models into `model_store`."""
    paths = Settings(model_store=model_store)
    train_linear(LinearSettings(), paths)
    train_mnist(MnistSettings(epochs=8 if digits.source == EMBEDDED else 1), paths, digits)


def main(folder: Path) -> None:
    """Leave models and digits in `folder`."""
    digits = few_digits()
    train_both(folder / "model_store", digits)
    np.savez(folder / "digits.npz", images=digits.test_images[:10], labels=digits.test_labels[:10])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
