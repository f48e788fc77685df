"""What tests share: digits, trained models, and one real server a run."""

import fcntl
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# What tests share asserts, too, where Python is told to leave asserts out.
pytest.register_assert_rewrite(*(f"tests.{path.stem}" for path in Path(__file__).parent.glob("*")))

from tests.server import WORKER_CLASSES, Server, running  # noqa: E402
from tests.training import few_digits, train_both  # noqa: E402
from train.data import Digits  # noqa: E402

# Where the tests run in the background of a shell, ctrl-C is ignored, and so it would be in the processes under test.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In a run of all tests hypothesis tries the same examples each time, and few; `make fuzz` looks for others.
settings.register_profile("bounded", derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long bytes by their argument: gzip's hold the time, and processes that share a run must agree on names."""
    return argname if isinstance(val, bytes) and len(val) > 16 else None


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
    """A model store as `make train` writes it, with the digit classifier trained for seconds only; nobody writes into it.

    The processes of one run share it: the first trains, the others wait.
    """
    run = tmp_path_factory.getbasetemp()
    run = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    with (run / "training.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (run / "model_store").exists():
            shutil.rmtree(run / "unfinished", ignore_errors=True)  # of a process that was ended meanwhile
            train_both(run / "unfinished", digits)
            (run / "unfinished").rename(run / "model_store")
    return run / "model_store"


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
