"""What a reload is refused for, and that a server which has refused one goes on as before."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from servekit.errors import StartupError
from servekit.reloads import require_startable, require_usable, take_newest
from servekit.state import State
from tests import networks
from tests.server import ROOT, Server, environment, free_ports, wait_for
from tests.versions import write_regressor


def configured(**settings: Any) -> Config:
    """Return settings of Gunicorn."""
    cfg = Config()
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def refusal(cfg: Config, **old: Any) -> str:
    """Return why a server that was started with `old` settings does not take `cfg`; "" if it does."""
    server: Any = SimpleNamespace(cfg=configured(**{"bind": ["127.0.0.1:5001"]} | old), LISTENERS=[])
    try:
        require_startable(server, cfg)
    except StartupError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"worker_class": "no.such.Worker"}, "The worker class no.such.Worker cannot be loaded (No module named 'no')"),
        ({"worker_class": "os.nothing"}, "The worker class os.nothing is none of Gunicorn's kind"),
        ({"worker_class": "nothing"}, "The worker class nothing cannot be loaded ("),
        ({"worker_class": "os.getcwd"}, "The worker class os.getcwd is none of Gunicorn's kind"),
        ({"worker_class": "builtins.dict"}, "The worker class builtins.dict is none of Gunicorn's kind"),
        ({"preload_app": True}, "preload_app cannot be used"),
        ({"workers": 0}, "at least one worker"),
        ({"worker_class": "servekit.worker.Worker", "proxy_protocol": "auto"}, "speaks neither TLS nor the proxy protocol"),
    ],
)
def test_what_servekit_cannot_do_with_gunicorn_is_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError) as caught:
        require_usable(configured(**settings))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_reload_takes_nothing_that_a_start_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "other").write_text(str(os.getppid()))
    (tmp_path / "huge").write_text("9" * 20)
    (free,) = free_ports(1)
    here, there = "127.0.0.1:5001", f"127.0.0.1:{free}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        held = f"127.0.0.1:{taken.getsockname()[1]}"
        refusals = {
            f"{held} is in use by process {os.getpid()}": {"bind": [held]},
            "127.0.0.1:5001 cannot stay while other addresses change": {"bind": [here, there]},
            "With reuse_port addresses do not change by a reload": {"bind": [there], "reuse_port": True},
            "0.0.0.0:5001 can be reached from other machines": {"bind": ["0.0.0.0:5001"]},
            "The socket fd://987 cannot be used": {"bind": ["fd://987"]},
            "is there and is no socket": {"bind": [f"unix:{tmp_path}/file"]},
            "is not there or cannot be written": {"bind": [f"unix:{tmp_path}/no/socket"]},
            "Not a directory": {"bind": [f"unix:{tmp_path}/file/socket"]},
            "'many' is not a valid port number": {"bind": ["127.0.0.1:many"]},
            "is none; choose one up to 65535": {"bind": ["127.0.0.1:70000"]},
            "did you mean SERVEKIT_ENGINE?": {"bind": [here], "raw_env": ["SERVEKIT_ENGIN=torch"]},
            "environment setting 'alone' invalid": {"bind": [here], "raw_env": ["alone"]},
            "/no/pid is not there or cannot be written": {"bind": [here], "pidfile": f"{tmp_path}/no/pid"},
            "cannot be read: Is a directory": {"bind": [here], "pidfile": str(tmp_path)},
            "/huge holds a number that no process has": {"bind": [here], "pidfile": f"{tmp_path}/huge"},
            "A variable of raw_env has no name": {"bind": [here], "raw_env": ["=x"]},
            "or holds a null character": {"bind": [here], "raw_env": ["A=b\0c"]},
            "There is no address to listen on": {"bind": []},
            "A socket's path may have 107 bytes": {"bind": [f"unix:{tmp_path}/{'a' * 107}"]},
            "/no of worker_tmp_dir is not there": {"bind": [here], "worker_tmp_dir": f"{tmp_path}/no"},
            "The certfile /no.pem cannot be read": {"bind": [here], "worker_class": "gthread", "certfile": "/no.pem"},
            "/other is another server's": {"bind": [here], "pidfile": f"{tmp_path}/other"},
            "SERVEKIT_INFERENCE_KEY must have at least": {"bind": [here], "raw_env": ["SERVEKIT_INFERENCE_KEY=short"]},
        }
        for words, settings in refusals.items():
            assert words in refusal(configured(**settings)), words
    for settings in ({"bind": [here]}, {"bind": [there, f"unix:{tmp_path}/socket"]}):
        assert refusal(configured(**settings)) == ""
    opened = {"bind": ["0.0.0.0:5001"], "raw_env": ["SERVEKIT_INFERENCE_KEY=a-key-for-the-tests"]}
    assert refusal(configured(**opened), bind=["0.0.0.0:5001"]) == ""


def test_what_ends_the_trial_of_the_models_is_said_whatever_its_last_line_holds(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(r"import os; os.write(2, b'first\n\xff gone\n'); os._exit(1)")
    cfg = configured(bind=["127.0.0.1:5001"], raw_env=[f"PYTHONPATH={tmp_path}"])
    server: Any = SimpleNamespace(cfg=cfg, LISTENERS=[])
    with pytest.raises(StartupError, match="^\ufffd gone$"):
        take_newest(server, cfg, State(tmp_path, 1))
    cfg.set("chdir", str(tmp_path))
    (tmp_path / "sitecustomize.py").unlink()
    tmp_path.rename(tmp_path.with_name("elsewhere"))
    with pytest.raises(StartupError, match="the models cannot be tried"):
        take_newest(server, cfg, State(tmp_path.with_name("elsewhere"), 1))


@contextlib.contextmanager
def serving(folder: Path, conf: Path) -> Iterator[Server]:
    """Run two workers over the store in `folder`, as `conf` says and no option."""
    # Without bytecode: Python takes a file of the same second and length for the one that it has compiled.
    variables = {"SERVEKIT_MODEL_STORE": str(folder / "store"), "WEB_CONCURRENCY": "2", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "gunicorn", "--config", str(conf)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stdout=log, stderr=log)
    try:
        server = Server(process, folder / "log")
        server.wait_until_ready()
        yield server
    finally:
        process.terminate()
        process.wait(timeout=40)


@pytest.mark.slow
@pytest.mark.starts
def test_a_reload_that_is_refused_changes_nothing_and_the_next_one_is_taken(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    conf, good = tmp_path / "conf.py", (ROOT / "gunicorn.conf.py").read_text() + "bind = ['127.0.0.1:0']\n"
    conf.write_text(good)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bad = {
            "Gunicorn's configuration cannot be read.": "1 / 0",
            "of the configuration itself": "import sys; sys.exit('of the configuration itself')",
            "The worker class no.such.Worker cannot be loaded": "worker_class = 'no.such.Worker'",
            "The worker class os.getcwd is none of Gunicorn's kind": "worker_class = 'os.getcwd'",
            f"127.0.0.1:{port} is in use by process {os.getpid()}": f"bind = ['127.0.0.1:{port}']",
            "preload_app cannot be used": "preload_app = True",
            "A server needs at least one worker": "workers = 0",
            "servekit cannot start: There is no model in": f"raw_env = ['SERVEKIT_MODEL_STORE={tmp_path}/none']",
        }
        with serving(tmp_path, conf) as server:
            write_regressor(tmp_path / "store", networks.ThreadCounter())
            before = server.workers()
            for words, line in bad.items():
                conf.write_text(f"{good}{line}\n")
                server.process.send_signal(signal.SIGHUP)
                said = f"Not reloaded, the old workers go on: {words}"
                assert wait_for(lambda said=said: said in server.text(), server.process), server.text()
            assert server.workers() == before
            os.kill(before[0], signal.SIGKILL)
            assert wait_for(lambda: "A new worker is ready: linear/1" in server.text(), server.process), server.text()
            assert server.text().count("Traceback") == 1  # Gunicorn's own, of the file that cannot be read
            conf.write_text(f"{good}workers = 1\n")
            server.process.send_signal(signal.SIGHUP)
            assert wait_for(lambda: "A new worker is ready: linear/2" in server.text(), server.process), server.text()
            assert wait_for(lambda: len(server.workers()) == 1)
            assert server.post_form("/predict", "value=5")[2] == {"input": 5.0, "prediction": 1.0}


@pytest.mark.slow
@pytest.mark.starts
def test_a_key_that_moves_within_the_configuration_is_asked_for_still(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    conf, same = tmp_path / "conf.py", (ROOT / "gunicorn.conf.py").read_text() + "bind = ['127.0.0.1:0']\nimport os\n"
    conf.write_text(f"{same}raw_env = ['SERVEKIT_INFERENCE_KEY=a-key-for-the-tests']\n")
    with serving(tmp_path, conf) as server:
        before = server.workers()
        assert server.post_form("/predict", "value=5")[0] == 401
        conf.write_text(f"{same}os.environ['SERVEKIT_INFERENCE_KEY'] = 'a-key-for-the-tests'\n")
        server.process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: server.workers() and not set(before) & set(server.workers()), server.process), server.text()
        assert [server.post_form("/predict", "value=5")[0] for _ in range(4)] == [401] * 4


@pytest.mark.slow
@pytest.mark.starts
def test_a_reload_in_which_a_hook_fails_is_taken_all_the_same(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    conf, same = tmp_path / "conf.py", (ROOT / "gunicorn.conf.py").read_text() + "bind = ['127.0.0.1:0']\n"
    conf.write_text(same)
    with serving(tmp_path, conf) as server:
        before = server.workers()
        conf.write_text(f"{same}def on_reload(server):\n    raise KeyError\n")
        server.process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: server.workers() and not set(before) & set(server.workers()), server.process), server.text()
        assert "The reload goes on, but met an error" in server.text()
        assert server.post_form("/predict", "value=5")[0] == 200
