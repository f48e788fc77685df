"""What stands in the documentation is there, and what is there stands in the documentation."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from servekit.app import create_app
from servekit.config import PREFIX, Settings
from servekit.errors import InvalidInput
from servekit.metrics import families, meters
from servekit.repository import Repository
from tests.server import ROOT, Server, environment, wait_for
from tests.test_spec import SPEC
from train.linear import LinearSettings
from train.mnist import MnistSettings
from train.settings import parse_settings

DOCS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
README = DOCS["README.md"]


def shell_blocks(text: str) -> list[tuple[str, str]]:
    """Return each block of shell lines of `text` with the JSON block that follows it, if one does."""
    return re.findall(r"```sh\n(.*?)```(?:\n```json\n(.*?)```)?", text, re.DOTALL)


CURLS = [(line, answer) for block, answer in shell_blocks(README) for line in block.splitlines() if line.startswith("curl")]


def test_every_setting_is_documented_with_its_default() -> None:
    for field in dataclasses.fields(Settings):
        assert f"| `{PREFIX}{field.name.upper()}` | `{field.default}` |" in DOCS["docs/config.md"]


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = DOCS["docs/metrics.md"]
    for metric in vars(families).values():
        if isinstance(metric, families.Counter | families.Histogram | families.Gauge):
            family = metric.describe()[0]
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "none"
            assert f"| `{name}` | {labels} |" in documented
    for words in (meters.OUTCOMES, meters.SHED_REASONS, meters.KEY_REASONS, meters.RESTART_REASONS):
        assert all(f"`{word}`" in documented for word in words)


OWN = ("predict", "linear", "mnist", "ops", "prometheus_metrics", "docs")  # blueprints of servekit's own routes


def test_every_route_is_documented(store: Path) -> None:
    documented = documented_routes(DOCS["docs/http.md"])
    for rule in create_app(Settings(model_store=store)).url_map.iter_rules():
        assert re.sub(r"<[^:>]*:", "<", re.sub(r"\([^)]*\)", "", rule.rule)) in documented, rule.rule
        if rule.endpoint.split(".")[0] in OWN and "<" not in rule.rule:
            assert f"{rule.rule}`" in README, rule.rule


def documented_routes(text: str) -> set[str]:
    """Return every route in backquotes: `[/x]` with and without x; `.../y` or `:y` is another end of the one before."""
    routes: set[str] = set()
    stems: set[str] = set()
    for found in re.findall(r"`(?:[A-Z]+ )?([.:]*/[^` ]*|:[a-z]+)`", text):
        if found.startswith((".../", ":")):
            routes |= {stem + found.removeprefix("...") for stem in stems}
            continue
        forms = {""}
        for part in re.split(r"(\[[^]]*\])", found):
            forms = {form + part.strip("[]") for form in forms} | (forms if part.startswith("[") else set())
        routes |= forms
        stems = {re.sub(r"(:|/)[a-z]+$", "", form) for form in forms} | {form for form in forms if form.endswith(">")}
    return routes


def test_a_picture_that_a_page_sends_is_named_there() -> None:
    for name, text in DOCS.items():
        assert "digit.png" not in text or "docs/images/seven.png" in text, name


def test_servers_are_started_by_what_works_in_any_folder_and_trains_nothing_into_a_store() -> None:
    blocks = [block for text in DOCS.values() for block in re.findall(r"```(?:ba)?sh\n(.*?)```", text, re.DOTALL)]
    for line in (line for block in blocks for line in block.splitlines()):
        assert not re.search(r" gunicorn( |$)", line), line
        assert "SERVEKIT_MODEL_STORE" not in line or "make serve" not in line, line


def test_links_lead_somewhere() -> None:
    for name, text in DOCS.items():
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


@pytest.fixture(scope="module")
def made_server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as `make serve` starts it, on another port so that a running one is left alone."""
    log = tmp_path_factory.mktemp("make") / "log"
    variables = environment(SERVEKIT_MODEL_STORE=str(store), GUNICORN_CMD_ARGS="--bind 127.0.0.1:0", WEB_CONCURRENCY="1")
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "serve"], cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(process, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        os.killpg(process.pid, 2)  # as ctrl-C does
        process.wait(timeout=40)


def test_the_readme_begins_with_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in shell_blocks(README)[0][0].splitlines()]
    assert commands == ["make serve", "make test"]


@pytest.mark.parametrize(("line", "answer"), CURLS, ids=[line for line, _ in CURLS])
def test_a_curl_line_of_the_readme_answers_as_it_says(made_server: Server, line: str, answer: str) -> None:
    line = line.replace("http://localhost:5001", made_server.url)
    ended = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == "" or "%" in ended.stderr  # curl's progress
    assert form_of(ended.stdout) == form_of(answer)


def form_of(answer: str) -> str:
    """Return `answer` with every number with a fraction, which another training changes, in the same words."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?|\d+e-\d+", "<number>", answer.strip())


def test_a_second_make_serve_starts_at_once(made_server: Server, store: Path, tmp_path: Path) -> None:
    variables = environment(SERVEKIT_MODEL_STORE=str(store), GUNICORN_CMD_ARGS="--bind 127.0.0.1:0", WEB_CONCURRENCY="1")
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            ["make", "serve"], cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        assert wait_for(lambda: "is ready" in (tmp_path / "log").read_text(), process)
        assert not re.search("Installing|Training|Wrote", (tmp_path / "log").read_text())
    finally:
        os.killpg(process.pid, 2)
        process.wait(timeout=40)


def test_the_training_commands_that_are_documented_have_settings_that_exist() -> None:
    commands = re.findall(r"\.venv/bin/python -m train\.(\w+)([^`\n]*)`", README + DOCS["docs/training.md"])
    assert len(commands) >= 6
    for recipe, options in commands:
        settings = {"linear": LinearSettings, "mnist": MnistSettings}[recipe]
        assert parse_settings(settings, options.split(), None) != settings() or not options


def test_make_help_lists_every_verb_with_its_sentence() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    verbs = re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split()
    assert [line.split()[1] for line in listed.splitlines()] == verbs
    assert all(len(line.split()) > 3 for line in listed.splitlines())
    for verb in re.findall(r"`make (\w+)", "".join(DOCS.values())):
        assert verb in verbs


def test_an_old_python_is_refused_with_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    variables = environment()
    ended = subprocess.run(
        ["make", "venv", f"PYTHON={old}", f"VENV={tmp_path}/venv"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "servekit needs Python 3.11 or newer" in ended.stdout and "make PYTHON=" in ended.stdout


@pytest.mark.slow
@pytest.mark.starts
def test_an_installation_that_fails_says_what_to_do(tmp_path: Path) -> None:
    # Its own folder, since a failed installation must not mark the real one as stale.
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "setup.cfg").write_text((ROOT / "setup.cfg").read_text().replace("flask>=3.1", "flask>=999"))
    (tmp_path / "constraints.txt").write_text("")
    ended = subprocess.run(["make", "venv"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode != 0
    assert "The installation failed: read the message above" in ended.stdout
    assert not (tmp_path / ".venv" / ".serve").exists()


def test_the_example_of_ones_own_model_writes_a_version_that_serves(tmp_path: Path) -> None:
    code = re.search(r"   ```python\n(.*?)   ```", DOCS["docs/models.md"], re.DOTALL)[1]
    code = "".join(line.removeprefix("   ") for line in code.splitlines(keepends=True)).replace(
        'Path("model_store")', f"Path({str(tmp_path)!r})"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert ended.stdout == f"Wrote {tmp_path}/mnist/1.\n", ended.stderr
    assert Repository.load(Settings(model_store=tmp_path)).get("mnist").version == "1"


def test_the_example_of_ones_own_handler_refuses_what_it_says() -> None:
    code = re.findall(r"^```python\n(.*?)^```", DOCS["docs/models.md"], re.DOTALL | re.MULTILINE)[-1]
    names: dict[str, object] = {}
    exec(code, names)
    handler = names["Celsius"](SPEC)
    assert handler.preprocess({"value": np.array([[212.0]])})["value"].tolist() == [[100.0]]
    with pytest.raises(InvalidInput, match="Nothing is colder"):
        handler.preprocess({"value": np.array([[-500.0]])})
