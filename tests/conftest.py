"""What tests share: digits, trained models, and one real server a run."""

import dataclasses
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from servekit.config import Settings
from tests.server import WORKER_CLASSES, Server, running
from train.data import Digits
from train.linear import LinearSettings
from train.linear import train as train_linear
from train.mnist import EMBEDDED, MnistSettings, load_digits
from train.mnist import train as train_mnist

# Where the tests run in the background of a shell, ctrl-C is ignored, and so it would be in the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def png(pixels: np.ndarray) -> bytes:
    """Return `pixels`, a uint8 array, as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def digits() -> Digits:
    """Real MNIST if SERVEKIT_DATA_DIR has it, else the digits that scikit-learn carries; nothing is downloaded.

    Of MNIST a third to learn from and a fifth, spread evenly, to score with: enough to read well, and quick.
    """
    found = load_digits(Settings.from_environ(os.environ).data_dir, mirrors=())
    every = max(1, len(found.test_images) // 2000)
    test = {"test_images": found.test_images[::every], "test_labels": found.test_labels[::every]}
    return dataclasses.replace(found.first(20_000), **test)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A model store as `make train` writes it, with the digit classifier trained for seconds only."""
    epochs = 20 if digits.source == EMBEDDED else 1
    paths = Settings(model_store=tmp_path_factory.mktemp("model_store"))
    train_linear(LinearSettings(), paths)
    train_mnist(MnistSettings(epochs=epochs), paths, digits)
    return paths.model_store


@pytest.fixture(scope="session", params=WORKER_CLASSES)
def server(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that most tests talk to: two workers, default settings; once with each worker class."""
    log = tmp_path_factory.mktemp("server") / "log"
    arguments = ("--worker-class", request.param)
    with running(log, *arguments, SERVEKIT_MODEL_STORE=str(store), WEB_CONCURRENCY="2") as server:
        yield server


@pytest.fixture(scope="session")
def digit(digits: Digits) -> bytes:
    """The first test image, as a PNG."""
    return png(digits.test_images[0])
