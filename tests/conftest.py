"""What tests share: digits, trained models, and one real server a run."""

import io
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server import WORKER_CLASSES, Server, running
from tests.training import few_digits, train_both
from train.data import Digits

# Where the tests run in the background of a shell, ctrl-C is ignored, and so it would be in the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


def png(pixels: np.ndarray) -> bytes:
    """Return `pixels`, a uint8 array, as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def digits() -> Digits:
    """The pictures that the models of the tests learn from and are asked about."""
    return few_digits()


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, digits: Digits) -> Path:
    """A model store as `make train` writes it, with the digit classifier trained for seconds only."""
    folder = tmp_path_factory.mktemp("model_store")
    train_both(folder, digits)
    return folder


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
