"""What the master does about keys: no server starts that strangers reach without one, and rates are those of all workers."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import StatusCode
from gunicorn.config import Config

from servekit import entrance
from servekit.cli.grpc import main as grpc
from servekit.config import Settings
from servekit.entrance import addresses_of, is_loopback, require_closed
from servekit.errors import SettingError
from servekit.platforms import platform_of
from tests.grpc_server import serving
from tests.server import ROOT, environment, running, send

KEY, OWNER = "a-key-for-the-tests", "the-key-of-the-owner"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False), ("::", False), ("", False), ("192.0.2.1", False), ("nobody.invalid", False), ("\udc80", False),
    ],
)  # fmt: skip
def test_loopback_is_what_only_this_machine_reaches(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_an_open_address_needs_keys_or_a_word() -> None:
    addresses = [("127.0.0.1", 5001), "/run/servekit.sock", ("0.0.0.0", 80)]
    with pytest.raises(SettingError, match=r"0\.0\.0\.0:80 can be reached .* SERVEKIT_ALLOW_ANONYMOUS=true"):
        require_closed(Settings(), addresses)
    with pytest.raises(SettingError, match=r"\[::\]:81"):
        require_closed(Settings(), [("::", 81)])
    require_closed(Settings(), addresses[:2])
    for settings in (Settings(inference_key=KEY), Settings(keys="keys.json"), Settings(allow_anonymous=True)):
        require_closed(settings, addresses)


@pytest.mark.parametrize("environ", [{"SAGEMAKER_BIND_TO_PORT": "80"}, {"AIP_MODE": "PREDICTION"}, {"AZUREML_MODEL_DIR": "."}])
def test_the_clouds_have_a_front_that_knows_who_may_ask(environ: dict[str, str]) -> None:
    settings = Settings.from_environ(environ)
    require_closed(settings, [("0.0.0.0", 80)])
    assert platform_of(environ).settings["allow_anonymous"] and not settings.has_keys
    with pytest.raises(SettingError):
        require_closed(Settings.from_environ({**environ, "SERVEKIT_ALLOW_ANONYMOUS": "false"}), [("0.0.0.0", 80)])


def test_torchserve_has_keys_of_its_own_for_its_own_ports() -> None:
    settings = Settings(torchserve="inference_address=http://0.0.0.0:8080\nmanagement_address=http://0.0.0.0:8081")
    require_closed(settings, [("0.0.0.0", 8080), ("0.0.0.0", 8081), ("127.0.0.1", 8082)])
    with pytest.raises(SettingError, match="0.0.0.0:9000"):
        require_closed(settings, [("0.0.0.0", 9000)])


def test_sockets_that_the_server_is_given_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config()
    with socket.create_server(("0.0.0.0", 0)) as listener:
        cfg.set("bind", [f"fd://{listener.fileno()}", "127.0.0.1:5001"])
        assert addresses_of(cfg) == [("127.0.0.1", 5001), listener.getsockname()]
        cfg.set("bind", ["127.0.0.1:5001"])
        monkeypatch.setenv("GUNICORN_FD", str(listener.fileno()))
        assert addresses_of(cfg) == [("127.0.0.1", 5001), listener.getsockname()]
    with pytest.raises(SettingError, match="cannot be used"):
        addresses_of(cfg)


def test_a_reload_leaves_no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrance, "_tally", None)
    monkeypatch.setenv("SERVEKIT_INFERENCE_KEY", KEY)
    server = SimpleNamespace(cfg=Config())
    server.cfg.set("bind", ["0.0.0.0:5001"])

    def setup(app: Any) -> None:
        os.environ["SERVEKIT_INFERENCE_KEY"] = KEY  # as raw_env of Gunicorn's settings brings it back

    server.setup = setup
    entrance.prepare(server)
    sealed = os.environ["SERVEKIT_INFERENCE_KEY"]
    assert KEY not in sealed
    server.setup(None)
    assert os.environ["SERVEKIT_INFERENCE_KEY"] == sealed


def test_grpc_opens_nothing_either(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert grpc(["--bind", "0.0.0.0:0"]) == 1
    assert "0.0.0.0:0 can be reached from other machines; start it with the keys of the server" in capsys.readouterr().err


# Real servers.


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        (["--bind=0.0.0.0:0", "--worker-class=servekit.worker.Worker"], {}),
        (["--bind=127.0.0.1:0", "--bind=[::]:0", "--worker-class=gthread"], {}),
        (["--worker-class=sync", "--threads=1"], {"GUNICORN_CMD_ARGS": "--bind :0"}),
    ],
)
def test_a_server_that_is_open_to_strangers_does_not_start(options: list[str], variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "gunicorn", *options]
    ended = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "servekit cannot start: " in ended.stdout + ended.stderr
    assert ":0 can be reached from other machines, and no key is asked for" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr and "Booting worker" not in ended.stderr


def test_a_rate_is_shared_by_the_workers_and_no_log_holds_a_key(store: Path, tmp_path: Path) -> None:
    said = ("--access-logformat", "%({authorization}i)s|%({http_authorization}e)s|%(r)s", "--log-level", "debug")
    variables = {"SERVEKIT_INFERENCE_KEY": KEY, "SERVEKIT_MANAGEMENT_KEY": OWNER, "SERVEKIT_RATE_LIMIT": "20/hour"}
    with running(tmp_path / "log", *said, SERVEKIT_MODEL_STORE=str(store), WEB_CONCURRENCY="2", **variables) as server:
        for pid in [server.process.pid, *server.workers()]:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"SERVEKIT_INFERENCE_KEY=*****" in environ and not {KEY, OWNER} & set(re.split("[=\0]", environ.decode()))
        with contextlib.ExitStack() as stack:  # connections that are open together are shared out
            connections = [stack.enter_context(contextlib.closing(server.connect())) for _ in range(30)]
            answers = [send(each, "GET", "/v2", headers={"Authorization": f"Bearer {KEY}"}) for each in connections]
            workers = {pid for pid in server.workers() if _connections_of(pid)}
        assert [status for status, _, _ in answers].count(200) == 20 and answers[-1][0] == 429
        assert 3500 < int(answers[-1][1]["Retry-After"]) <= 3600 and len(workers) == 2
        for path in ("//predict", "/%70redict", "/v2/../predict", "/predict/", "/health/../predict", "/health%2f..%2fpredict"):
            assert server.post_form(path, "value=5")[0] == 401, path
        assert server.get("/health")[0] == 200
        page = server.request("GET", "/metrics", headers={"Authorization": f"Bearer {OWNER}"})[2].decode()
        assert 'servekit_shed_total{reason="rate"} 10.0' in page
        with serving(tmp_path / "grpc", f"http://127.0.0.1:{server.port}") as gateway:
            ours, owners = ([("authorization", f"Bearer {key}")] for key in (KEY, OWNER))
            assert gateway.call("Check").status == 1 and gateway.call("ServerReady").ready
            assert gateway.refusal("ModelInfer", {"model_name": "linear"})[0] is StatusCode.UNAUTHENTICATED
            tensor = {"name": "x", "datatype": "UINT8", "shape": [20, 2**20]}
            large = {"model_name": "linear", "inputs": [tensor], "raw_input_contents": [bytes(20 * 2**20)]}
            assert gateway.refusal("ModelInfer", large)[0] is StatusCode.UNAUTHENTICATED
            assert gateway.refusal("RepositoryIndex", metadata=ours)[0] is StatusCode.PERMISSION_DENIED
            assert gateway.refusal("ModelMetadata", {"name": "linear"}, metadata=ours)[0] is StatusCode.RESOURCE_EXHAUSTED
            assert {model.name for model in gateway.call("RepositoryIndex", metadata=owners).models} == {"linear", "mnist"}
    text = server.text() + (tmp_path / "grpc").read_text()
    assert "-|-|GET /v2" in text and KEY not in text and OWNER not in text


def _connections_of(pid: int) -> int:
    """Return how many sockets a worker holds beside those that it listens on and is woken by."""
    return max(0, sum(os.readlink(link).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir()) - 1)
