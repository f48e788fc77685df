"""What tests with real clients share: servers under test, the models that they serve, and one digit.

The clients' environment has no servekit: everything of the project runs as a process of the project's own Python, which
SERVEKIT_PYTHON names (by default that of `.venv`).
"""

import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("SERVEKIT_PYTHON") or str(ROOT / ".venv" / "bin" / "python")
START_SECONDS = 90.0  # on a machine that is busy with other tests
# Settings that must not reach a server under test: ours, Gunicorn's, and those by which a cloud is recognised.
OURS = ("SERVEKIT_", "GUNICORN_", "MAKE", "MFLAGS", "SAGEMAKER_", "AIP_", "AZUREML_")


class Server:
    """A server under test: its process, and where it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0

    @property
    def address(self) -> str:
        """Host and port, as tritonclient takes them."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The address as a URL, without a slash at its end."""
        return f"http://{self.address}"

    def text(self) -> str:
        """Return all that it has printed so far."""
        return self.log.read_text()


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without settings of servekit, Gunicorn or a cloud, and with `extra`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    inherited.pop("WEB_CONCURRENCY", None)
    return inherited | extra


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = START_SECONDS) -> Any:
    """Return the first true value of `condition()`; a false one when `seconds` are over or `process` has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if value := condition():
            return value
        time.sleep(0.05)
    return condition()


@contextlib.contextmanager
def running(log: Path, *command: str, **variables: str) -> Iterator[Server]:
    """Run `command` with the project's Python (`-m gunicorn ...`) for the length of a `with` block; its port is 0."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PYTHON, *command], cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained `model_store` and `digits.npz`, made once by the project's own code."""
    folder = tmp_path_factory.mktemp("trained")
    data = os.environ.get("SERVEKIT_DATA_DIR", "data/mnist")
    command = [PYTHON, "-m", "tests.training", str(folder)]
    made = subprocess.run(
        command, cwd=ROOT, env=environment(SERVEKIT_DATA_DIR=data), capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="session")
def store(trained: Path) -> Path:
    """A model store as `make train` writes it: `linear` and `mnist`, each in version 1."""
    return trained / "model_store"


@pytest.fixture(scope="session")
def digit(trained: Path) -> bytes:
    """The first test picture, as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.load(trained / "digits.npz")["images"][0]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def digit_class(trained: Path) -> int:
    """What that digit is."""
    return int(np.load(trained / "digits.npz")["labels"][0])


@pytest.fixture(scope="session")
def pixels(trained: Path) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """That digit as the network takes it: `(1, 28, 28)` float32 between 0 and 1, light on black."""
    image = np.load(trained / "digits.npz")["images"][0]
    return (image[None] / 255).astype(np.float32)


@pytest.fixture(scope="session")
def serve(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server: `serve(platform="", **variables)`; it lives until the run ends, and one like it is not started twice.

    `platform` is a cloud's name. Unless `variables` say otherwise it serves `store` with one worker on a free port.
    """
    servers: dict[tuple[str, ...], Server] = {}
    with contextlib.ExitStack() as stack:

        def start(platform: str = "", **variables: str) -> Server:
            key = (platform, *(f"{name}={value}" for name, value in sorted(variables.items())))
            if key not in servers:
                chosen = {"SERVEKIT_PLATFORM": platform} if platform else {}
                settings = {"SERVEKIT_MODEL_STORE": str(store), "WEB_CONCURRENCY": "1"} | chosen | variables
                log = tmp_path_factory.mktemp("server") / "log"
                command = ("-m", "gunicorn", "--bind", "127.0.0.1:0")
                server = stack.enter_context(running(log, *command, **settings))
                pattern = r"address  http://127\.0\.0\.1:(\d+)"
                found = wait_for(lambda: re.search(pattern, server.text()), server.process)
                assert found, server.text()
                server.port = int(found[1])
                servers[key] = server
            return servers[key]

        yield start


@pytest.fixture(scope="session")
def apart() -> Iterator[Callable[..., Any]]:
    """Call `apart(function, *arguments)` in a process of its own.

    kserve and tritonclient.grpc cannot be imported into one process (both register Triton's protobuf messages), so what
    asks with kserve is a function that imports it, called by this; its module may import tritonclient.grpc in functions
    only. Arguments and what it returns are handed over as copies; what it raises is raised.
    """
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=120)
