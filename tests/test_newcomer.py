"""What somebody tries who is new to `servekit torchserve`, and the one sentence where it cannot work."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from servekit.cli import main
from tests.reader import Reader
from tests.server import ROOT, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.starts]

SETTINGS = """
    inference_address=http://127.0.0.1:8080
    management_address=http://127.0.0.1:8081
    metrics_address=http://127.0.0.1:8082
    """
ECHO = """
    import logging

    logging.getLogger(__name__).info("The echo is there.")
    print("It is printed, too.")


    def handle(data, context):
        return data and [row.get("body") for row in data]
    """
ARCHIVE = "servekit torch-model-archiver --model-name {name} --version 1.0 --handler {name}.py --export-path model_store"
START = "servekit torchserve --start --model-store model_store --disable-token-auth --models "
STOP = "servekit torchserve --stop"
PREDICT = 'curl -s http://localhost:8080/predictions/echo -H "Content-Type: text/plain" -d hello'


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Somebody with one archive, in a folder whose name has a blank."""
    someone = Reader(tmp_path / "my serving", tmp_path / "my home")
    someone.types("mkdir model_store")
    someone.write("config.properties", SETTINGS)
    pack(someone, "echo", ECHO)
    yield someone
    someone.leaves()


def pack(reader: Reader, name: str, handler: str) -> None:
    reader.write(f"{name}.py", handler)
    reader.types(ARCHIVE.format(name=name))


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("echo=ecko.mar", "The archive ecko.mar is neither in the model store .* nor in this folder; the store has echo.mar."),
        ("nowhere/echo2.mar", "The archive nowhere/echo2.mar is neither in the model store .*; the store has echo.mar."),
        ("model_store", "The archive model_store is neither in the model store .*; the store has echo.mar."),
        ("cut.mar", "cut.mar cannot be served: cut.mar cannot be unpacked: .*"),
        ("broken", "The model broken cannot be loaded: SyntaxError: .* \\(broken.py:2\\)."),
        ("failing", "The model failing cannot be loaded: KeyError: 'no such key' \\(failing.py:2\\)."),
    ],
)
def test_an_archive_that_cannot_be_served_ends_the_start_with_one_sentence(
    reader: Reader, models: str, sentence: str
) -> None:
    if models == "cut.mar":
        (reader.folder / "cut.mar").write_bytes(b"PK")
    if models == "broken":
        pack(reader, models, "def handle(data, context):\n    return (\n")
    if models == "failing":
        pack(reader, models, "def handle(data, context):\n    {}['no such key']\n")
    source = models if models.endswith(".mar") or models == "model_store" else f"{models}.mar"
    assert re.fullmatch(f"servekit cannot start: {sentence}", reader.fails(START + source))
    assert reader.types(STOP).stdout == "No server runs.\n"


def test_a_start_without_a_store_or_with_files_that_are_not_there(reader: Reader) -> None:
    start = "servekit torchserve --start"
    assert "There is no model store; give --model-store" in reader.fails(start)
    assert "The model store model-store is no folder; make it" in reader.fails(f"{start} --model-store model-store")
    words = "The file of settings config/config.properties cannot be read: No such file or directory."
    assert words in reader.fails(f"{start} --model-store model_store --ts-config config/config.properties")
    assert "nowhere cannot be read" in reader.fails(f"{start} --model-store model_store", TS_CONFIG_FILE="nowhere")
    archive = ARCHIVE.format(name="echo")
    assert "echo.mar exists already; --force (-f) overwrites it." in reader.fails(archive)
    words = "The export path model-store is not a folder; make it first."
    assert words in reader.fails(archive.replace("model_store", "model-store"))


def test_a_start_from_another_folder_with_all_that_is_elsewhere(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "my settings").write_text((reader.folder / "config.properties").read_text() + "load_models=all\n")
    (reader.folder / "config.properties").unlink()
    logs, archive = tmp_path / "my logs", reader.folder / "model_store" / "echo.mar"
    variables = {"TS_CONFIG_FILE": str(tmp_path / "my settings"), "LOG_LOCATION": str(logs)}
    reader.types("mkdir elsewhere empty")
    line = "cd elsewhere && servekit torchserve --start --model-store ../model_store --disable-token-auth"
    reader.starts(line, f"{logs}/ts_log.log", **variables)
    assert reader.types(PREDICT).stdout == "hello"
    assert "INFO" in (found := (logs / "ts_log.log").read_text()) and "The echo is there." in found
    assert "It is printed, too." in found
    # the line is written when the answer has been sent
    assert wait_for(lambda: '"POST /predictions/echo HTTP/1.1" 200' in (logs / "access_log.log").read_text())
    assert "echo" in reader.types("cd / && servekit models").stdout
    reader.types(STOP)

    line = f"servekit torchserve --start --model-store empty --disable-token-auth --models '{archive}'"
    reader.starts(line, f"{logs}/ts_log.log", **variables)
    assert reader.types(PREDICT).stdout == "hello"
    named = {"modelName": "echo", "modelUrl": str(archive)}
    assert reader.asks("curl -s http://localhost:8081/models") == {"models": [named]}


def test_the_archive_of_the_store_goes_before_one_of_that_name_here(reader: Reader) -> None:
    reader.write("echo.py", "def handle(data, context):\n    return ['another']\n")
    reader.types(ARCHIVE.format(name="echo").replace("model_store", "."))
    reader.starts(START + "echo.mar")
    assert reader.types(PREDICT).stdout == "hello"


def test_a_server_in_the_foreground_ends_with_ctrl_c_and_takes_its_keys_along(reader: Reader) -> None:
    line = "exec servekit torchserve --foreground --model-store model_store --models all"
    with (reader.folder / "screen").open("wb") as screen:
        process = subprocess.Popen(
            line, shell=True, cwd=reader.folder, env=reader.variables, stdout=screen, stderr=screen, start_new_session=True
        )
    try:
        live = "curl -sf http://localhost:8080/health/live"  # without a key
        assert wait_for(lambda: reader.tries(live).returncode == 0, process), (reader.folder / "screen").read_text()
        assert (reader.folder / "key_file.json").stat().st_mode & 0o777 == 0o600
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=40) == 0
        assert not (reader.folder / "key_file.json").exists() and not (reader.folder / "logs").exists()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (reader.folder / "screen").read_text()


def test_ctrl_c_ends_a_server_that_still_loads(reader: Reader) -> None:
    pack(reader, "slow", "import time\n\ndef handle(data, context):\n    time.sleep(60)\n")
    process = subprocess.Popen(
        f"exec {START}slow.mar", shell=True, cwd=reader.folder, env=reader.variables, start_new_session=True
    )
    try:
        assert wait_for(lambda: "Booting worker" in reader.log(), process)
        server = reader.pid()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=40) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(server, 0)
    finally:
        process.kill()
        process.wait()


def test_keys_that_cannot_be_written_end_the_start(reader: Reader) -> None:
    reader.types("mkdir key_file.json")
    said = reader.fails("servekit torchserve --start --model-store model_store")
    assert said.startswith(f"servekit cannot start: The keys cannot be written to {reader.folder}/key_file.json: ")


def flags_in(text: str) -> set[str]:
    """Return what stands in `text` that looks like a flag."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text)) - {"-h", "--help"}


@pytest.mark.parametrize("name", ["serve", "torchserve", "torch-model-archiver", "models", "check"])
def test_every_flag_is_documented(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    section = re.search(rf"## `servekit {name}.*?(?=\n## )", (ROOT / "docs" / "cli.md").read_text(), re.DOTALL)[0]
    options = capsys.readouterr().out.partition("options:")[2]
    declared = {flag for line in options.splitlines() if line.startswith("  -") for flag in flags_in(line)}
    assert declared <= flags_in(section)
