"""The command `servekit`: what it starts, stops and shows, and the one sentence when it cannot. Real processes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servekit.cli import background, main, parser
from servekit.cli.check import check_at, own_lines
from servekit.cli.models import rows_of, table
from servekit.cli.torchserve import environ_of, exposure_of, located, read_properties
from servekit.desired import Desired, Entry
from servekit.errors import ModelLoadError, SettingError, StartupError
from servekit.ports import holder_of, require_free
from servekit.state import Report
from servekit.torchserve.properties import NamedArchive, Properties
from tests.server import ROOT, Server, children, environment, free_ports, wait_for
from tests.versions import edit


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the smallest real model."""
    from servekit.config import Settings
    from train.linear import LinearSettings, train

    folder = tmp_path_factory.mktemp("cli") / "model_store"
    train(LinearSettings(epochs=100), Settings(model_store=folder))
    return folder


def variables(**extra: str) -> dict[str, str]:
    """Return an environment in which servekit is found from any folder, as where it is installed."""
    return environment(PYTHONPATH=str(ROOT), **extra)


def command(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `servekit` in `folder` and wait for its end."""
    return subprocess.run(
        [sys.executable, "-m", "servekit", *arguments],
        cwd=folder,
        env=variables(**extra),
        capture_output=True,
        text=True,
        timeout=90,
    )


@contextlib.contextmanager
def serving(folder: Path, *arguments: str, **extra: str) -> Iterator[Server]:
    """Run `servekit serve` in `folder` for the length of a `with` block."""
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "servekit", "serve", *arguments],
            cwd=folder,
            env=variables(**extra),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, folder / "log")
    try:
        server.wait_until_ready()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_serve_works_from_any_folder(tmp_path: Path, store: Path) -> None:
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--model-store", str(store), "--workers", "1") as server:
        assert server.post_form("/predict", "value=5")[0] == 200
        assert len(children(server.process.pid)) == 1
    assert server.process.returncode == 0


def test_serve_respects_the_settings_of_its_folder(tmp_path: Path, store: Path) -> None:
    settings = 'from servekit.server import *\nbind = "127.0.0.1:0"\nthreads = 1\nworkers = 1\nworker_class = "sync"\n'
    (tmp_path / "gunicorn.conf.py").write_text(settings)
    shutil.copytree(store, tmp_path / "model_store")
    with serving(tmp_path) as server:
        assert "1 (sync)" in server.text()
        assert server.post_form("/predict", "value=5")[0] == 200


def test_serve_without_a_model_says_so(tmp_path: Path) -> None:
    ended = command(tmp_path, "serve", "--bind", "127.0.0.1:0", "--model-store", "nowhere")
    assert ended.returncode != 0
    assert "servekit cannot start: There is no model in nowhere; run `make train`" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("where", ["arguments", "variable", "file"])
def test_a_port_in_use_is_named_with_the_process_that_holds_it(tmp_path: Path, taken: int, where: str) -> None:
    arguments = ["--bind", f"127.0.0.1:{taken}"] if where == "arguments" else []
    extra = {"GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{taken}"} if where == "variable" else {}
    if where == "file":
        (tmp_path / "gunicorn.conf.py").write_text(f'bind = "127.0.0.1:{taken}"\n')
    ended = command(tmp_path, "serve", *arguments, **extra)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and "python" in ended.stderr
    assert ended.stderr.startswith(
        f"servekit cannot start: 127.0.0.1:{taken} is in use by process {os.getpid()} ("
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (("203.0.113.1", 8080), "203.0.113.1:8080 is no address of this machine; choose another one."),
        (("no-such-host.invalid", 8080), "The host of the address no-such-host.invalid:8080 is not known"),
    ],
)
def test_an_address_that_is_none_is_refused(address: tuple[str, int], words: str) -> None:
    with pytest.raises(StartupError, match=re.escape(words)):
        require_free(address)


def test_a_free_address_is_taken(taken: int) -> None:
    require_free(("127.0.0.1", free_ports(1)[0]))
    with pytest.raises(StartupError, match="is in use by process"):
        require_free(("127.0.0.1", taken))


def test_the_process_of_another_user_is_named_by_its_user(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    uid = 0 if os.getuid() else 65534
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    lines = [f"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 {uid} 0 4711 1 0 100 0\n"]
    lines += ["   1: 0100007F:1F91 00000000:0000 01 00000000:00000000 00:00000000 00000000 1 0 4712 1 0 100 0\n"]
    (tmp_path / "net" / "tcp").write_text(head + "".join(lines))
    assert holder_of(8080, tmp_path) == f"a process of the user {'root' if uid == 0 else 'nobody'}"
    assert holder_of(8081, tmp_path) == "another process"
    (tmp_path / "42" / "fd").mkdir(parents=True)
    (tmp_path / "42" / "fd" / "3").symlink_to("socket:[4711]")
    (tmp_path / "42" / "cmdline").write_bytes(b"java\0-jar\0server.jar\0")
    assert holder_of(8080, tmp_path) == "process 42 (java -jar server.jar)"


def properties_of(*arguments: str, **environ: str) -> Properties:
    return read_properties(parser().parse_args(["torchserve", *arguments]), environ)


def test_the_flags_of_torchserve_win_over_its_file(tmp_path: Path) -> None:
    file = tmp_path / "config.properties"
    file.write_text("model_store=from-file\njob_queue_size=7\nload_models=all\n")
    flags = ["--start", "--ts-config", str(file), "--model-store", "from-flag", "--models", "a=a.mar", "b.mar"]
    properties = properties_of(*flags, "--dt", "--enable-model-api", "--ncs", "--foreground")
    assert properties.model_store == Path("from-flag") and properties.job_queue_size == 7
    assert properties.load_models == (NamedArchive("a", "a.mar"), NamedArchive(None, "b.mar"))
    assert properties.disable_token_authorization and properties.enable_model_api
    assert properties.warning == ""
    assert not properties_of("--ts-config", str(file)).disable_token_authorization


def test_the_file_of_the_environment_wins_over_that_of_the_flag(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"model_store={name}\n")
    flags = ["--ts-config", str(tmp_path / "one")]
    assert properties_of(*flags).model_store == Path("one")
    assert properties_of(*flags, TS_CONFIG_FILE=str(tmp_path / "two")).model_store == Path("two")


def test_flags_without_effect_are_named_in_one_sentence() -> None:
    flags = ["--workflow-store", "w", "--log-config", "l", "--cpp-log-config", "c", "--ppath", "p"]
    properties = properties_of(*flags, METRICS_LOCATION="m")
    assert properties.warning == (
        "These settings have no effect: METRICS_LOCATION, cpp_log_config, log_config, plugins_path, workflow_store "
        "(not supported)."
    )


def test_a_file_of_settings_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nowhere cannot be read: No such file or directory"):
        properties_of("--ts-config", str(tmp_path / "nowhere"))
    (tmp_path / "bad").write_text("job_queue_size=many\n")
    with pytest.raises(SettingError, match="bad: job_queue_size=many cannot be used; give a whole number from 1 on"):
        properties_of("--ts-config", str(tmp_path / "bad"))


@pytest.fixture
def chapter(tmp_path: Path) -> Iterator[Path]:
    """The folder of a reader who made an archive in `model-store`; the tests in it run there."""
    (tmp_path / "model-store").mkdir()
    (tmp_path / "model-store" / "simple_linear.mar").touch()
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("simple_linear.mar", "simple_linear.mar"),
        ("model-store/simple_linear.mar", "model-store/simple_linear.mar"),
        ("other/x.mar", "other/x.mar"),
        ("other/../other/x.mar", "{folder}/other/x.mar"),  # two dots are refused in what a server looks for
        ("both.mar", "{folder}/model-store/both.mar"),  # the one in this folder is another one
        ("linked.mar", "{folder}/other/x.mar"),  # a server follows no link out of its store
        ("https://host/x.mar", "https://host/x.mar"),
        ("all", "all"),
    ],
)
def test_an_archive_is_looked_for_in_the_store_and_then_from_this_folder(chapter: Path, source: str, found: str) -> None:
    (chapter / "other").mkdir()
    (chapter / "other" / "x.mar").touch()
    (chapter / "model-store" / "linked.mar").symlink_to(chapter / "other" / "x.mar")
    for folder in (chapter, chapter / "model-store"):
        (folder / "both.mar").touch()
    properties, notes = located(Properties.parse("model_store=model-store", flags={"load_models": source}))
    assert properties.model_store == chapter / "model-store"
    assert [archive.source for archive in properties.load_models] == [found.format(folder=chapter)]
    assert notes == []


def test_the_other_spelling_of_the_store_is_understood_and_said(chapter: Path) -> None:
    flags = {"load_models": "simple_linear=model_store/simple_linear.mar"}
    properties, notes = located(Properties.parse("model_store=model-store", flags=flags))
    assert properties.load_models == (NamedArchive("simple_linear", "model_store/simple_linear.mar"),)
    taken = chapter / "model-store" / "simple_linear.mar"
    assert notes == [f"There is no model_store/simple_linear.mar; {taken} is loaded in its place."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "There is no model store; give --model-store"),
        ("model_store=nowhere", "The model store nowhere is no folder"),
        (
            "model_store=model-store\nload_models=a=missing.mar",
            "The archive missing.mar is neither in the model store .*/model-store nor in this folder; "
            "the store has simple_linear.mar.$",
        ),
        ("model_store=model-store\nload_models=model-store", "The archive model-store is neither in the model store"),
        ("model_store=empty\nload_models=a.mar", "nor in this folder; make it first.$"),
    ],
)
def test_what_is_missing_at_the_start_is_refused(chapter: Path, text: str, words: str) -> None:
    (chapter / "empty").mkdir()
    with pytest.raises(StartupError, match=words):
        located(Properties.parse(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", ""),
        ("disable_token_authorization=true", ""),
        ("inference_address=http://0.0.0.0:8080", ""),
        ("metrics_address=http://0.0.0.0:8082\ndisable_token_authorization=true", ""),
        (
            "inference_address=http://0.0.0.0:8080\ndisable_token_authorization=true",
            "Tokens are off: whoever reaches http://0.0.0.0:8080 may use the server.",
        ),
        (
            "management_address=http://[::]:8081\ndisable_token_authorization=true\nenable_model_api=true",
            "Tokens are off: whoever reaches http://[::]:8081 may use the server, and make it load models and run their code.",
        ),
    ],
)
def test_a_server_that_is_open_to_all_says_so(text: str, sentence: str) -> None:
    assert exposure_of(Properties.parse(text)) == sentence


def test_the_server_gets_the_settings_and_not_what_is_hidden_from_it() -> None:
    properties = Properties.parse("model_store=/store\nblacklist_env_vars=.*(SECRET|KEY).*")
    given = {"MY_SECRET_NAME": "x", "HOME": "/root", "SERVEKIT_MODEL_STORE": "other", "SERVEKIT_INFERENCE_KEY": "k" * 16}
    environ = environ_of(properties, given)
    expected = {"HOME", "PYTHONUNBUFFERED", "SERVEKIT_MAX_BODY_BYTES", "SERVEKIT_MODEL_STORE", "SERVEKIT_TORCHSERVE"}
    assert environ.keys() == expected | {"SERVEKIT_INFERENCE_KEY"}
    assert environ["SERVEKIT_MAX_BODY_BYTES"] == "6553500"
    assert environ["SERVEKIT_MODEL_STORE"] == "/store"
    assert Properties.parse(environ["SERVEKIT_TORCHSERVE"]) == properties


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model_store=nowhere", "servekit cannot start: The model store nowhere is no folder"),
        ("inference_address=https://127.0.0.1:8443", "config.properties: inference_address=https://127.0.0.1:8443 cannot"),
        ("management_address=http://127.0.0.1:{taken}", "servekit cannot start: 127.0.0.1:{taken} is in use by process"),
    ],
)
def test_torchserve_that_cannot_start_says_why_in_one_sentence(tmp_path: Path, taken: int, text: str, words: str) -> None:
    addresses = [f"{name}_address=http://127.0.0.1:{free_ports(1)[0]}\n" for name in ("inference", "management", "metrics")]
    (tmp_path / "config.properties").write_text("model_store=.\n" + "".join(addresses) + text.format(taken=taken))
    ended = command(tmp_path, "torchserve", "--start", "--pid-file", "pid")
    assert ended.returncode == 1
    assert words.format(taken=taken) in ended.stderr and ended.stderr.count("\n") == 1
    assert not (tmp_path / "logs").exists() and not (tmp_path / "pid").exists()


def settings_of_gunicorn(folder: Path, **extra: str) -> list[str]:
    """Return what servekit's settings are with these variables: addresses, workers, timeout, level of the log."""
    code = "import servekit.server as s; print(*s.bind, s.workers, s.timeout, getattr(s, 'loglevel', '-'))"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables(**extra), capture_output=True, text=True, timeout=60
    )
    return (ended.stdout + ended.stderr).split()


def test_the_settings_of_torchserve_become_those_of_gunicorn(tmp_path: Path) -> None:
    text = Properties.parse("default_workers_per_model=3\ndefault_response_timeout=200\nlog_level=WARN").to_text()
    addresses = [f"127.0.0.1:{port}" for port in (8080, 8081, 8082)]
    found = settings_of_gunicorn(tmp_path, SERVEKIT_TORCHSERVE=text)
    assert found == [*addresses, "3", "30", "warning"]
    found = settings_of_gunicorn(tmp_path, SERVEKIT_TORCHSERVE="enable_metrics_api=false", WEB_CONCURRENCY="2")
    assert found == [*addresses[:2], "2", "30", "info"]
    assert settings_of_gunicorn(tmp_path, WEB_CONCURRENCY="2") == ["127.0.0.1:5001", "2", "30", "info"]
    assert " ".join(settings_of_gunicorn(tmp_path, SERVEKIT_TORCHSERVE="job_queue_size=0")) == (
        "servekit cannot start: job_queue_size=0 cannot be used; give a whole number from 1 on."
    )


def write_config(folder: Path) -> str:
    """Write a `config.properties` with free ports into `folder`; return the address for predictions, without http."""
    ports = [free_ports(1)[0] for _ in range(3)]
    names = ("inference", "management", "metrics")
    lines = [f"{name}_address=http://127.0.0.1:{port}\n" for name, port in zip(names, ports, strict=True)]
    (folder / "config.properties").write_text("".join(lines) + "log_level=WARN\n")
    return f"127.0.0.1:{ports[0]}"


def test_torchserve_in_the_background_is_announced_found_and_stopped(tmp_path: Path, store: Path) -> None:
    address = write_config(tmp_path)
    start = ["torchserve", "--start", "--model-store", str(store), "--pid-file", "pid"]
    ended = command(tmp_path, *start, LOG_LOCATION="the logs")
    assert ended.returncode == 0, ended.stderr
    pid = int((tmp_path / "pid").read_text())
    try:
        assert ended.stdout == f"The server runs as process {pid}; its log is the logs/ts_log.log.\n"
        assert wait_for(lambda: '"GET /ping HTTP/1.1"' in (tmp_path / "the logs" / "access_log.log").read_text())
        ended = command(tmp_path, *start)
        assert ended.returncode == 1 and f"A server runs already as process {pid}; stop it with" in ended.stderr
        ended = command(tmp_path, *start[:-1], "other-pid")
        assert ended.returncode == 1 and f"{address} is in use by process {pid} (" in ended.stderr
        assert (tmp_path / "key_file.json").exists()
        (tmp_path / "elsewhere").mkdir()
        ended = command(tmp_path / "elsewhere", "torchserve", "--stop", "--pid-file", "../pid")
        assert (ended.returncode, ended.stdout) == (0, f"The server, process {pid}, has stopped.\n")
        assert not (tmp_path / "key_file.json").exists() and not (tmp_path / "pid").exists()
        host, _, port = address.partition(":")
        require_free((host, int(port)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_torchserve_in_the_foreground_is_the_process_that_was_started(tmp_path: Path, store: Path) -> None:
    write_config(tmp_path)
    arguments = ["--foreground", "--model-store", str(store), "--pid-file", "pid"]
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "servekit", "torchserve", *arguments],
            cwd=tmp_path,
            env=variables(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        assert wait_for(lambda: (tmp_path / "pid").exists(), process), (tmp_path / "log").read_text()
        assert int((tmp_path / "pid").read_text()) == process.pid
        assert not (tmp_path / "logs").exists()
        assert wait_for(lambda: children(process.pid), process)
        ended = command(tmp_path, "torchserve", "--stop", "--pid-file", "pid")
        assert ended.stdout == f"The server, process {process.pid}, has stopped.\n"
        assert process.wait(timeout=40) == 0
    finally:
        process.kill()
        process.wait()


START = """
import os, sys
from pathlib import Path
from servekit.cli import background
from servekit.cli.serve import torchserve_options
from servekit.errors import StartupError
bind, patience = sys.argv[1], float(sys.argv[2])
host, _, port = bind.partition(":")
address = port if host == "unix" else (host, int(port))
options = torchserve_options("--pid=pid", f"--bind={bind}", "--workers=1")
try:
    print(background.start(options, os.environ, Path("logs"), [address], patience))
except StartupError as error:
    print(error)
"""


def start_in_background(folder: Path, store: Path, bind: str = "", patience: float = 60) -> str:
    """Start a server in the background from `folder`, and return what is said of it."""
    ended = subprocess.run(
        [sys.executable, "-c", START, bind or f"127.0.0.1:{free_ports(1)[0]}", str(patience)],
        cwd=folder,
        env=variables(SERVEKIT_MODEL_STORE=str(store)),
        capture_output=True,
        text=True,
        timeout=90,
    )
    return ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("bind", "patience", "words"), [("unix:{folder}/socket", 60, ""), ("", 0, " and still loads its models")]
)
def test_a_start_waits_for_the_first_answer_but_not_for_ever(
    tmp_path: Path, store: Path, bind: str, patience: float, words: str
) -> None:
    said = start_in_background(tmp_path, store, bind.format(folder=tmp_path), patience)
    pid = int(re.search(r"process (\d+)", said)[1])
    try:
        assert said == f"The server runs as process {pid}{words}; its log is logs/ts_log.log.\n"
        assert wait_for(lambda: "is ready" in (tmp_path / "logs" / "ts_log.log").read_text())
        assert background.stop(tmp_path / "pid") == f"The server, process {pid}, has stopped."
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_server_in_the_background_that_ends_says_why(tmp_path: Path) -> None:
    said = start_in_background(tmp_path, tmp_path)
    assert said == f"There is no model in {tmp_path}; run `make train`, or set SERVEKIT_MODEL_STORE.\n"
    assert not (tmp_path / "pid").exists()


def test_a_log_folder_that_cannot_be_written_is_refused(tmp_path: Path, store: Path) -> None:
    (tmp_path / "logs").touch()
    assert "The folder of the logs logs cannot be written" in start_in_background(tmp_path, store)


def test_a_stop_without_a_server_is_no_error(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    assert background.stop(pid_file) == "No server runs."
    pid_file.write_text("not a number")
    assert background.stop(pid_file) == "No server runs."


def test_a_process_that_is_no_server_is_left_alone(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with subprocess.Popen(["sleep", "60"]) as other:
        pid_file.write_text(str(other.pid))
        assert f"process {other.pid}, which is no server of servekit's; it is left alone" in background.stop(pid_file)
        assert other.poll() is None
        background.require_none(pid_file)  # the number was that of an earlier server
        assert not pid_file.exists()
        other.terminate()


def test_what_the_log_says_last_is_said_when_there_is_no_sentence(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.py").write_text("raise MemoryError('none left')\n")  # found before the real one
    said = start_in_background(tmp_path, tmp_path)
    assert said == "The server ended with: MemoryError: none left; look at logs/ts_log.log for more.\n"


def test_torchserve_itself_is_not_started_beside(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("")
    with subprocess.Popen([sys.executable, "-c", "input()", "org.pytorch.serve.ModelServer"], stdin=subprocess.PIPE) as java:
        (tmp_path / "pid").write_text(str(java.pid))
        assert wait_for(lambda: b"org.pytorch" in Path(f"/proc/{java.pid}/cmdline").read_bytes())
        with pytest.raises(StartupError, match=f"TorchServe itself runs already as process {java.pid}"):
            background.require_none(tmp_path / "pid")
        java.terminate()


def test_the_table_of_models_shows_workers_and_the_last_error() -> None:
    folders = {"format": "torchserve", "source": "x.mar", "folder": "/x"}
    entries = [Entry("linear", "1", workers=2, **folders), Entry("linear", "2", workers=0, **folders)]
    entries += [Entry("new", "1.0", **folders), Entry("noop", "1.0", **folders)]
    failure = "Traceback (most recent call last):\n  ...\nValueError: bad\n"
    reports = [
        Report(17, 0.0, (("linear", "1"),), {"noop/1.0": failure}),
        Report(18, 1.0, (("linear", "1"),), {"linear/3": "model.onnx has another SHA-256."}),
    ]
    assert table(rows_of(Desired.of(entries), reports)).splitlines() == [
        "NAME    VERSION  DEFAULT  STATUS      WORKERS  LAST ERROR",
        "linear  1        yes      ready       17, 18",
        "linear  2                 not loaded  -",
        "new     1.0      yes      loading     -",
        "noop    1.0      yes      failed      -        ValueError: bad",
        "linear  3                 refused     -        model.onnx has another SHA-256.",
    ]


def test_a_port_that_is_none_is_one_sentence() -> None:
    with pytest.raises(StartupError, match=r"127\.0\.0\.1:99999 is none; choose one up to 65535"):
        require_free(("127.0.0.1", 99999))


def test_models_lists_what_the_workers_of_a_server_hold(tmp_path: Path, store: Path) -> None:
    with serving(tmp_path, "--bind", "127.0.0.1:0", "--model-store", str(store), "--workers", "1") as server:
        ended = command(tmp_path, "models", "--model-store", str(store))
        worker = children(server.process.pid)[0]
        assert ended.stdout.splitlines()[1].split() == ["linear", "1", "yes", "ready", str(worker)]
    ended = command(tmp_path, "models", "--model-store", str(store))
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"servekit: No server runs over the model store {store}; start one")


def test_a_version_folder_is_checked(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "linear" / "1"
    shutil.copytree(store / "linear" / "1", folder)
    assert main(["check", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder} is fine: linear, version 1, handler ")
    edit(folder, handler="servekit.handlers.regression:Nothing")
    assert main(["check", str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"{folder}/model.json: the handler ")


def test_what_is_no_archive_is_refused_by_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "missing.mar")]) == 1
    assert capsys.readouterr().err == f"{tmp_path}/missing.mar: There is no such file or folder.\n"


class Loaded:
    """Notes what it is to load, and fails as it is told."""

    def __init__(self, cause: Exception | None = None) -> None:
        self.cause = cause

    def __call__(self, entry: Entry, *_: object) -> None:
        self.entry = entry
        if self.cause is not None:
            raise ModelLoadError("The handler fails.") from self.cause


def archive_in(folder: Path, handler: str = "x = 1\n", **manifest: str) -> Path:
    """Write an archive with one file of code."""
    path = folder / "my model.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": {"handler": "handler.py", **manifest}}))
        archive.writestr("handler.py", handler)
        archive.writestr("requirements.txt", "")
    return path


def test_an_archive_is_unpacked_elsewhere_and_loaded_as_a_server_would(tmp_path: Path) -> None:
    path = archive_in(tmp_path, modelName="mine", modelVersion="2.0")
    (tmp_path / "temporary").mkdir()
    loaded = Loaded()
    said = check_at(path, tmp_path / "temporary", load=loaded)
    assert said == f"{path} is fine: mine, version 2.0, handler handler.py."
    assert loaded.entry.format == "torchserve" and loaded.entry.options["batch_size"] == 1
    assert (Path(loaded.entry.folder) / "handler.py").read_text() == "x = 1\n"
    assert Path(loaded.entry.folder).is_relative_to(tmp_path / "temporary")


def test_a_package_that_is_missing_may_be_among_the_requirements(tmp_path: Path) -> None:
    path = archive_in(tmp_path, modelName="mine", requirementsFile="requirements.txt")
    sentences = {ImportError("x"): "The handler fails. Its requirements.txt may name it: try --install."}
    sentences |= {ValueError("x"): "The handler fails."}
    for cause, sentence in sentences.items():
        temporary = tmp_path / type(cause).__name__
        temporary.mkdir()
        with pytest.raises(ModelLoadError, match=f"^{re.escape(sentence)}$"):
            check_at(path, temporary, load=Loaded(cause))


def test_an_archive_that_cannot_be_served_is_explained(tmp_path: Path) -> None:
    path = archive_in(tmp_path, modelName="mine", handler="def handle(data, context):\n    return nothing\n")
    ended = command(tmp_path, "check", path.name)
    assert ended.returncode == 1 and ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert lines[0].startswith(f"{path.name}: ") and "NameError" in lines[0]
    assert lines[1] == '  File "handler.py", line 2, in handle'
    assert lines[-1] == "NameError: name 'nothing' is not defined"


def test_an_archive_that_cannot_be_unpacked_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.mar").write_bytes(b"PK")
    assert main(["check", str(tmp_path / "cut.mar")]) == 1
    said = capsys.readouterr().err
    assert said.count("cut.mar") == 1 and said.count("\n") == 1


def test_an_archive_that_the_command_makes_is_fine(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def handle(data, context):\n    return data\n")
    (tmp_path / "store").mkdir()
    flags = ["--model-name", "echo", "--version", "2.0", "--handler", "echo.py", "--export-path", "store"]
    assert command(tmp_path, "torch-model-archiver", *flags).returncode == 0
    again = command(tmp_path, "torch-model-archiver", *flags)
    assert again.returncode == 1 and again.stderr.startswith("servekit torch-model-archiver: ")
    ended = command(tmp_path, "check", "store/echo.mar")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "store/echo.mar is fine: echo, version 2.0, handler echo.py.\n"


def test_what_is_neither_archive_nor_version_is_refused_by_the_check(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a model archive nor .* nor a version folder with a model.json."):
        check_at(tmp_path, tmp_path / "temporary", load=Loaded())


def test_the_check_of_a_folder_around_a_model_says_what_to_check(store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.pbtxt").write_text('backend: "onnxruntime"')
    for folder, said in (
        (store / "linear", f"It holds versions; check one of them: {store}/linear/1."),
        (store, "It is a model store; check one of its models: linear."),
        (tmp_path, "It has a config.pbtxt and no version; put the model's file into a folder called 1."),
    ):
        with pytest.raises(ModelLoadError) as caught:
            check_at(folder, tmp_path / "temporary", load=Loaded())
        assert str(caught.value) == said


def test_a_folder_of_sagemaker_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model" / "code" / "inference.py"
    file.parent.mkdir(parents=True)
    file.write_text("def model_fn(model_dir): return 3")
    assert main(["check", str(tmp_path / "model")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/model is fine: model, version 1, handler inference.py.\n"
    assert main(["check", str(tmp_path / "x" / ".." / "model")]) == 1  # there is no x
    (tmp_path / "x").mkdir()
    assert main(["check", str(tmp_path / "x" / ".." / "model")]) == 0
    capsys.readouterr()
    file.write_text("def model_fn(model_dir): return nothing")
    assert main(["check", str(tmp_path / "model")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"{tmp_path}/model: The model model cannot be loaded: NameError") and "code/inference.py" in said


def failure_in(folder: Path, code: str) -> Exception:
    """Return an error as the engine gives it when the handler `code`, a file in `folder`, fails."""
    file = folder / "handler.py"
    file.write_text(code)
    try:
        try:
            scope: dict[str, Any] = {}
            exec(compile(code, str(file), "exec"), scope)
            scope["initialize"]()
        except Exception as error:
            raise StartupError("The handler fails.") from error
    except StartupError as error:
        return error
    raise AssertionError("it did not fail")


def test_the_error_of_a_handler_is_shown_at_its_own_line(tmp_path: Path) -> None:
    code = "import json\n\ndef initialize():\n    json.loads('{')\n"
    assert list(own_lines(failure_in(tmp_path, code), [tmp_path])) == [
        '  File "handler.py", line 4, in initialize',
        "    json.loads('{')",
        "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ]


def test_code_that_cannot_be_read_is_shown_at_its_own_line(tmp_path: Path) -> None:
    lines = list(own_lines(failure_in(tmp_path, "x = (\n"), [tmp_path]))
    assert lines[0] == '  File "handler.py", line 1' and lines[-1] == "SyntaxError: '(' was never closed"


def test_an_error_outside_of_the_archive_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    failure = failure_in(tmp_path, "raise ValueError('x')\n")
    assert list(own_lines(failure, [tmp_path / "elsewhere"])) == []
    assert list(own_lines(StartupError("x"), [tmp_path])) == []


def test_the_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["torchserve", "-v"]) == 0
    assert "0.12.0" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["torchserve", "--model-stroe", "x", "--stop"])
    assert ended.value.code == 2 and "--model-stroe" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("serve", "torchserve", "torch-model-archiver", "models", "check"))
