"""The command `serve` of a container, as SageMaker starts it: its variables, and models that come and go in all workers."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servekit.config import Settings
from servekit.errors import SettingError
from servekit.platforms import format_of, platform_of, program_of, require_safe_ports
from servekit.stores import entries_of, model_entry
from tests import networks
from tests.server import ROOT, Server, environment, free_ports, wait_for
from tests.versions import write_regressor

MULTI = {"SAGEMAKER_MULTI_MODEL": "true"}


# What the variables and the folder of the models say.


def test_variables_of_sagemaker_become_settings() -> None:
    variables = {
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": "90",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT": "text/csv",
        "SAGEMAKER_MODEL_SERVER_WORKERS": "3",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "40",
        "SAGEMAKER_BIND_TO_PORT": "8123",
    }
    settings = Settings.from_environ(variables)
    assert (settings.platform, settings.deadline_seconds, settings.max_body_bytes) == ("sagemaker", 90, 6 * 2**20)
    assert (settings.default_accept, settings.multi_model) == ("text/csv", False)
    platform = platform_of(variables)
    assert (platform.bind, platform.workers, platform.log_level) == ("0.0.0.0:8123", 3, "error")
    assert Settings.from_environ(variables | {"SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS": "5"}).deadline_seconds == 5
    assert Settings.from_environ(variables | {"SERVEKIT_DEADLINE_SECONDS": "7"}).deadline_seconds == 7


def test_without_its_variables_the_defaults_are_sagemakers() -> None:
    settings = Settings.from_environ({"SERVEKIT_PLATFORM": "sagemaker"})
    assert (settings.deadline_seconds, settings.max_body_bytes, settings.default_accept) == (60, 25 * 2**20, "application/json")
    assert Settings.from_environ({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "0"}).max_body_bytes == 25 * 2**20
    many = Settings.from_environ(MULTI)
    assert (many.multi_model, many.model_store) == (True, Path("/opt/ml/models"))


@pytest.mark.parametrize(
    "variables",
    [
        {"SAGEMAKER_BIND_TO_PORT": "none"},
        {"SAGEMAKER_MODEL_SERVER_WORKERS": "many"},
        {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "-1"},
        {"SAGEMAKER_BASE_DIR": "/nowhere"},
        {"SERVEKIT_MULTI_MODEL": "true"},
        {"SERVEKIT_MULTI_MODEL": "true", "SERVEKIT_PLATFORM": "vertex"},
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variables: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=list(variables)[0]):
        Settings.from_environ(variables)


def test_other_ports_lie_in_the_safe_range() -> None:
    safe = {"SAGEMAKER_SAFE_PORT_RANGE": "9000-9100"}
    require_safe_ports({}, [1, 2])
    require_safe_ports(safe, [8080, 9000, 9100])
    require_safe_ports(safe | {"SAGEMAKER_BIND_TO_PORT": "7000"}, [7000])
    for variables, port in [(safe, 9101), (safe | {"SAGEMAKER_BIND_TO_PORT": "7000"}, 8080)]:
        with pytest.raises(SettingError, match=f"port {port} lies outside"):
            require_safe_ports(variables, [port])
    for text in ("9000", "b-c", "9100-9000", "0-1", "1-70000"):
        with pytest.raises(SettingError, match="must be two ports"):
            require_safe_ports({"SAGEMAKER_SAFE_PORT_RANGE": text}, [])


def test_a_notebook_is_no_container_that_serves() -> None:
    assert platform_of({"SAGEMAKER_INTERNAL_IMAGE_URI": "x", "SAGEMAKER_REGION": "y"}).bind == "127.0.0.1:5001"
    assert platform_of({"SAGEMAKER_PROGRAM": "inference.py"}).bind == "0.0.0.0:8080"


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    assert format_of(tmp_path, {}) == ""
    (tmp_path / "net.pth").touch()
    assert format_of(tmp_path, {}) == "sagemaker"
    (tmp_path / "other.pt").touch()
    assert format_of(tmp_path, {}) == ""
    (tmp_path / "model.pt").touch()
    assert format_of(tmp_path, {}) == "sagemaker"
    (tmp_path / "code" / "own").mkdir(parents=True)
    (tmp_path / "code" / "own" / "serve.py").touch()
    assert program_of(tmp_path, {}) is None
    assert program_of(tmp_path, {"SAGEMAKER_PROGRAM": "own/serve.py"}) == tmp_path / "code" / "own" / "serve.py"
    for program in ("../net.pth", "/etc/passwd", "none.py"):
        assert program_of(tmp_path, {"SAGEMAKER_PROGRAM": program}) is None
    (tmp_path / "model.json").touch()
    assert format_of(tmp_path, {}) == "servekit"


def test_a_store_of_a_cloud_is_one_model_or_many(tmp_path: Path) -> None:
    folder = write_regressor(tmp_path / "store", networks.Double())
    store = Settings(model_store=tmp_path / "store", platform="sagemaker")
    assert [entry.key for entry in entries_of(store)] == [("linear", "1")]
    alone = Settings(model_store=folder, platform="sagemaker")
    entries = entries_of(alone, workers=2)
    assert [(entry.key, entry.format, entry.workers) for entry in entries] == [(("model", "1"), "servekit", 2)]
    assert entries_of(Settings(model_store=folder)) == []
    assert entries_of(Settings(model_store=folder, platform="sagemaker", multi_model=True)) == []
    assert model_entry("n", tmp_path) is None


# The command.


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "servekit.cli.container", *arguments]


def run(*arguments: str, **variables: str) -> tuple[int, str]:
    variables = environment(**variables)
    ended = subprocess.run(command(*arguments), cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
    return ended.returncode, ended.stderr


def test_train_ends_with_a_sentence() -> None:
    status, text = run("train")
    assert (status, text) == (1, "servekit serves models and does not train them; start this image with the command serve.\n")


def test_an_address_outside_of_the_safe_range_ends_the_start() -> None:
    variables = {"SAGEMAKER_SAFE_PORT_RANGE": "20000-20001", "SAGEMAKER_BIND_TO_PORT": str(free_ports(1)[0])}
    status, text = run("--bind", f"127.0.0.1:{free_ports(1)[0]}", **variables)
    assert (status, "SAGEMAKER_SAFE_PORT_RANGE, 20000-20001" in text) == (1, True)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that SageMaker puts models into: one of a store, and one that brings code."""
    folder = tmp_path_factory.mktemp("models")
    write_regressor(folder / "made", networks.Double()).rename(folder / "a")
    (folder / "b" / "code").mkdir(parents=True)
    code = "import os\ndef model_fn(d): return 1\ndef transform_fn(m, b, c, a): return str(os.getpid()), 'text/plain'"
    (folder / "b" / "code" / "inference.py").write_text(code)
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two workers of a multi-model endpoint, started as SageMaker does."""
    log, port = tmp_path_factory.mktemp("sagemaker") / "log", free_ports(1)[0]
    variables = {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_MODEL_SERVER_WORKERS": "2", "SERVEKIT_MODEL_STORE": str(models)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("serve"), cwd=ROOT, env=environment(**MULTI, **variables), stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(process, log)
    server.port = port
    try:
        assert wait_for(lambda: "is ready" in server.text(), process), server.text()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=40) == 0


def load(server: Server, name: str, url: Path) -> int:
    return server.post("/models", json.dumps({"model_name": name, "url": str(url)}), "application/json")[0]


def test_models_come_and_go_in_every_worker(server: Server, models: Path) -> None:
    assert server.get("/ping")[::2] == (200, b"")
    assert server.get("/models")[2] == {"models": []}
    assert [load(server, "h1", models / "a"), load(server, "h2", models / "b"), load(server, "h1", models / "a")] == [200, 200, 409]
    workers = server.workers()
    seen: set[int] = set()

    def all_have_answered() -> bool:
        assert server.post("/models/h1/invoke", "1\n2\n", "text/csv")[::2] == (200, [2, 4])
        seen.add(int(server.post("/models/h2/invoke", "", "text/csv")[2]))
        return len(seen) == 2

    assert wait_for(all_have_answered) and seen == set(workers)
    for name in ("h1", "h2"):
        assert server.request("DELETE", f"/models/{name}")[0] == 200
    assert {server.post("/models/h1/invoke", "1\n", "text/csv")[0] for _ in range(10)} == {404}
    assert server.workers() == workers  # as many as before, though no model asks for any
    assert server.get("/ping")[0] == 200


def test_a_worker_that_is_replaced_holds_the_models(server: Server, models: Path) -> None:
    assert load(server, "h3", models / "a") == 200
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    assert wait_for(lambda: len(server.workers()) == 2 and before[0] not in server.workers())
    assert wait_for(lambda: "A new worker is ready: h3/1" in server.text())
    server.process.send_signal(signal.SIGHUP)
    assert wait_for(lambda: not set(before) & set(server.workers()) and len(server.workers()) == 2)
    assert wait_for(lambda: server.text().count("A new worker is ready: h3/1") >= 3)
    assert {server.post("/models/h3/invoke", "1\n", "text/csv")[0] for _ in range(10)} == {200}
    assert server.request("DELETE", "/models/h3")[0] == 200


def test_no_header_breaks_out_of_an_answer(server: Server) -> None:
    field = b"X-Amzn-SageMaker-Custom-Attributes: a\rSet-Cookie: b=c\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + field + b"\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"Set-Cookie" not in answer
