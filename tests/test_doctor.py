"""`servekit doctor`: what it says of fake machines, and of a real store in a process of its own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from servekit.cli import main
from servekit.cli.doctor import gunicorn_settings, settings, store, without_keys
from servekit.cli.doctor.limits import limits
from servekit.cli.doctor.machine import machine, memory
from servekit.cli.doctor.packages import packages
from servekit.cli.doctor.ports import ports
from servekit.cli.doctor.report import Section, Weight, advice_of, as_json, as_text, size, would_start
from servekit.config import Settings
from servekit.errors import StartupError
from servekit.ports import require_free
from tests import networks
from tests.server import ROOT, environment, running
from tests.versions import edit, write_regressor

GUNICORN: dict[str, Any] = {
    **dict.fromkeys(gunicorn_settings.NAMES, 0),
    **{"bind": ["127.0.0.1:5001"], "workers": 4, "worker_class": "servekit.worker.Worker", "timeout": 30, "preload_app": False},
    "speaks": True,
    **{"graceful_timeout": 25, "keepalive": 75, "worker_connections": 1000, "backlog": 2048, "accesslog": "-", "errorlog": "-"},
    "origins": dict.fromkeys(gunicorn_settings.NAMES, "servekit"),
}


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def files(root: Path, **texts: str | int) -> Path:
    """Write files below `root`, their names with __ for / and _DOT_ for a dot; return `root`."""
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def said(section: Section, weight: Weight | None = None) -> str:
    """Return the advice of a section, of one weight or all, in one text."""
    return "\n".join(text for each, text in section.advice if weight in (None, each))


# The machine.

MEMINFO = "MemTotal:        8388608 kB\nMemFree:          100000 kB\nMemAvailable:    4194304 kB"


def test_memory_is_that_of_the_machine_without_a_limit(tmp_path: Path) -> None:
    assert memory(files(tmp_path, proc__meminfo=MEMINFO)) == (8 * 2**30, 4 * 2**30, "")
    assert memory(tmp_path / "elsewhere") == (0, 0, "")


def test_memory_is_cut_by_the_lowest_limit_of_cgroup_2(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/pod/container")
    files(tmp_path, sys__fs__cgroup__pod__memory_DOT_max=2**30, sys__fs__cgroup__pod__container__memory_DOT_max="max")
    files(tmp_path, sys__fs__cgroup__pod__memory_DOT_current=2**29)
    files(tmp_path, sys__fs__cgroup__pod__memory_DOT_stat="anon 1\ninactive_file 1024")
    assert memory(tmp_path) == (2**30, 2**29 + 1024, "limit of a control group")


def test_memory_is_cut_by_the_limit_of_cgroup_1(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="4:memory:/box\n3:cpu:/")
    files(tmp_path, sys__fs__cgroup__memory__memory_DOT_limit_in_bytes=9223372036854771712)
    files(tmp_path, sys__fs__cgroup__memory__box__memory_DOT_limit_in_bytes=2**31)
    files(tmp_path, sys__fs__cgroup__memory__box__memory_DOT_usage_in_bytes=2**30)
    assert memory(tmp_path) == (2**31, 2**30, "limit of a control group")


def test_the_machine_names_cores_memory_and_gpus(tmp_path: Path) -> None:
    files(tmp_path, proc__meminfo=MEMINFO, proc__self__cgroup="0::/", sys__fs__cgroup__cpu_DOT_max="100000 100000")
    files(tmp_path, dev__nvidia0="", dev__nvidiactl="", bin__none="")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 80000 MiB'\n")
    tool.chmod(0o755)
    section = machine({"PATH": f"{tool.parent}:/usr/bin:/bin"}, tmp_path, user=1000)
    assert section.facts["cores usable"].value == 1
    assert section.facts["memory"].text == "8.0 GiB"
    assert section.facts["GPUs"].value == 1 and section.facts["GPU 0"].value == "NVIDIA H100, 81559 MiB, 80000 MiB"
    assert section.advice == []


def test_a_gpu_without_its_tool_is_counted_only(tmp_path: Path) -> None:
    section = machine({"PATH": "/nowhere"}, files(tmp_path, dev__nvidia0=""), user=0)
    assert section.facts["GPUs"].value == 1 and "GPU 0" not in section.facts
    assert "run the server as a user of its own" in said(section, Weight.CONSIDER)


# Settings.


def test_settings_name_their_origin(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    environ = {"SERVEKIT_MAX_WAITING": "7", "SAGEMAKER_BASE_DIR": str(tmp_path), "SAGEMAKER_BIND_TO_PORT": "8080"}
    section = settings.section_of(*settings.read(environ), environ)
    assert (section.facts["max_waiting"].value, section.facts["max_waiting"].origin) == (7, "SERVEKIT_MAX_WAITING")
    assert section.facts["model_store"].origin == section.facts["deadline_seconds"].origin == "platform sagemaker"
    assert section.facts["engine"].origin == "default"
    assert section.advice == []


def test_every_wrong_setting_is_named_and_the_others_count() -> None:
    environ = {"SERVEKIT_MAX_WAITING": "many", "SERVEKIT_MODEL_STOR": "x", "SERVEKIT_LOG_FORMAT": "json"}
    chosen, wrong = settings.read(environ)
    assert chosen == Settings(log_format="json")
    section = settings.section_of(chosen, wrong, environ)
    assert "SERVEKIT_MAX_WAITING must be a number." in said(section, Weight.STOPS)
    assert "did you mean SERVEKIT_MODEL_STORE?" in said(section, Weight.STOPS)


def test_settings_that_do_not_go_together_are_named() -> None:
    chosen, wrong = settings.read({"SERVEKIT_MULTI_MODEL": "true"})
    assert chosen == Settings(platform="auto") and wrong == ["SERVEKIT_MULTI_MODEL must be false unless the platform is sagemaker."]


def test_what_may_hold_a_key_is_not_shown() -> None:
    secret = "hush-hush-hush-hush"
    names = ("SERVEKIT_INFERENCE_KEY", "SERVEKIT_MANAGEMENT_KEY", "SERVEKIT_TORCHSERVE")
    environ = {name: f"keystore_pass={secret}{name}" for name in names}
    chosen, wrong = settings.read(environ)
    section = settings.section_of(chosen, wrong, environ)
    shown = json.dumps(as_json([section])) + as_text([section])
    assert wrong == [] and secret not in shown and "sha256:" not in shown
    assert section.facts["inference_key"].text == section.facts["torchserve"].text == settings.MASK


def test_a_key_in_the_command_of_another_process_is_not_shown() -> None:
    command = "process 7 (gunicorn --env SERVEKIT_MANAGEMENT_KEY=hush-hush --bind :1)"
    assert without_keys(command) == "process 7 (gunicorn --env SERVEKIT_MANAGEMENT_KEY=set, not shown --bind :1)"


def test_a_key_that_cannot_be_used_is_refused_without_showing_it() -> None:
    environ = {"SERVEKIT_MANAGEMENT_KEY": "short-secret"}
    section = settings.section_of(*settings.read(environ), environ)
    assert "SERVEKIT_MANAGEMENT_KEY must have at least" in said(section, Weight.STOPS)
    assert "short-secret" not in json.dumps(as_json([section])) + as_text([section])


# Gunicorn.


def changed(**values: Any) -> Section:
    return gunicorn_settings.section_of({**GUNICORN, **values}, cores=4)


def test_good_settings_of_gunicorn_need_no_word() -> None:
    assert changed().advice == []


@pytest.mark.parametrize(
    ("values", "weight", "words"),
    [
        ({"workers": 9}, Weight.CHANGE, "set WEB_CONCURRENCY=4"),
        ({"workers": 1}, Weight.CONSIDER, "3 of 4 usable cores have no worker"),
        ({"workers": 0}, Weight.STOPS, "at least one worker"),
        ({"preload_app": True}, Weight.STOPS, "preload_app cannot be used"),
        ({"speaks": False}, Weight.STOPS, "neither TLS nor the proxy protocol"),
        ({"worker_class": "sync"}, Weight.CHANGE, "sync shares no forward passes"),
        ({"timeout": 0}, Weight.CHANGE, "never replaced"),
        ({"graceful_timeout": 90}, Weight.CONSIDER, "terminationGracePeriodSeconds"),
        ({"keepalive": 2}, Weight.CONSIDER, "set it to 75"),
        ({"max_requests": 1000}, Weight.CONSIDER, "max_requests_jitter"),
    ],
)
def test_settings_of_gunicorn_that_hurt_are_named(values: dict[str, Any], weight: Weight, words: str) -> None:
    assert words in said(changed(**values), weight)


def test_gunicorns_settings_are_read_with_their_origins(tmp_path: Path) -> None:
    lines = ["import os", "from servekit.server import *", "print('hello')", "backlog = 64", "keepalive = 75"]
    lines += ["os.environ['SERVEKIT_LOG_FORMAT'] = 'json'", "raw_env = ['SERVEKIT_MAX_WAITING=9']"]
    (tmp_path / "gunicorn.conf.py").write_text("\n".join(lines))
    variables = environment(PYTHONPATH=str(ROOT), WEB_CONCURRENCY="2", GUNICORN_CMD_ARGS="--bind 127.0.0.1:7001 --timeout=9")
    found = gunicorn_settings.read(variables, tmp_path)
    values = {name: (found[name], found["origins"][name]) for name in ("bind", "timeout", "workers", "backlog", "keepalive")}
    assert values == {
        "bind": (["127.0.0.1:7001"], "GUNICORN_CMD_ARGS"),
        "timeout": (9, "GUNICORN_CMD_ARGS"),
        "workers": (2, "WEB_CONCURRENCY"),
        "backlog": (64, "gunicorn.conf.py"),
        "keepalive": (75, "servekit"),
    }
    assert found["origins"]["max_requests"] == found["origins"]["forwarded_allow_ips"] == "Gunicorn's default"
    assert found["address"] == [["127.0.0.1", 7001]]
    assert found["variables"] == {"SERVEKIT_LOG_FORMAT": "json", "SERVEKIT_MAX_WAITING": "9"}
    section = settings.section_of(*settings.read(found["variables"]), found["variables"], found["variables"])
    assert section.facts["max_waiting"].origin == "SERVEKIT_MAX_WAITING, in Gunicorn's configuration"
    assert not (tmp_path / "__pycache__").exists()


def test_a_configuration_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("workers = many\n")
    section = gunicorn_settings.section_of(gunicorn_settings.read(environment(PYTHONPATH=str(ROOT)), tmp_path), cores=4)
    assert said(section, Weight.STOPS) == "Gunicorn's settings cannot be used: NameError: name 'many' is not defined."


def test_a_number_of_workers_that_is_none_stops_the_start(tmp_path: Path) -> None:
    found = gunicorn_settings.read(environment(WEB_CONCURRENCY="many"), tmp_path)
    words = said(gunicorn_settings.section_of(found, cores=4), Weight.STOPS)
    assert words == "Gunicorn's settings cannot be used: WEB_CONCURRENCY must be a whole number above 0."


# Ports.


def taken(address: tuple[str, int]) -> None:
    raise StartupError(f"{address[0]}:{address[1]} is in use by process 7; stop it, or choose another address.")


def free(address: tuple[str, int]) -> None:
    pass


CLOSED = Settings(inference_key="a-key-that-nobody-knows")


def of_ports(*addresses: Any, settings: Settings = CLOSED, environ: dict[str, str] | None = None, **others: Any) -> Section:
    given = {"reuse_port": False, "is_served": False, "free": free, **others}
    return ports(addresses, settings=settings, environ=environ or {}, **given)


def test_a_port_that_another_process_holds_stops_the_start() -> None:
    section = of_ports(["127.0.0.1", 5001], is_served=True, free=taken, holder=lambda port: "process 7 (nginx)")
    assert "is in use by process 7" in said(section, Weight.STOPS)


def test_a_port_that_the_running_server_holds_does_not() -> None:
    section = of_ports(["0.0.0.0", 5001], is_served=True, free=taken, holder=lambda port: "process 7 (python -m gunicorn)")
    assert section.advice == []
    assert section.facts["0.0.0.0:5001"].text.startswith("held by the server that runs, process 7")


def test_ports_say_who_reaches_them(tmp_path: Path) -> None:
    path = str(tmp_path / "s.sock")
    with socket.create_server(("127.0.0.1", 0)) as given:
        section = of_ports(["::1", 1], ["127.0.0.1", 2], ["10.0.0.1", 3], path, given.fileno())
        assert section.facts[path].value == section.facts[f"fd://{given.fileno()}"].value == "socket"
    assert section.facts["[::1]:1"].text == section.facts["127.0.0.1:2"].text == "free, for loopback"
    assert "every network" in section.facts["10.0.0.1:3"].text
    assert section.facts["keys"].text == "asked for; 1 known" and section.advice == []


def test_an_address_that_strangers_reach_without_a_key_stops_the_start_with_its_own_words() -> None:
    stops = said(of_ports(["0.0.0.0", 5001], settings=Settings()), Weight.STOPS)
    assert stops.startswith("0.0.0.0:5001 can be reached from other machines, and no key is asked for")
    assert of_ports(["127.0.0.1", 5001], settings=Settings()).advice == []
    section = of_ports(["0.0.0.0", 5001], settings=Settings(allow_anonymous=True))
    assert "Whoever reaches 0.0.0.0:5001 is let in" in said(section, Weight.CONSIDER) and len(section.advice) == 1


def test_sockets_that_are_given_and_not_there_or_open_to_strangers_stop_the_start(tmp_path: Path) -> None:
    assert "The socket fd://987 cannot be used: Bad file descriptor." in said(of_ports(987), Weight.STOPS)
    assert "is not there or cannot be written" in said(of_ports(f"{tmp_path}/none/socket"), Weight.STOPS)
    with socket.create_server(("0.0.0.0", 0)) as given:
        assert "can be reached from other machines" in said(of_ports(given.fileno(), settings=Settings()), Weight.STOPS)


def test_a_file_of_keys_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    section = of_ports(["127.0.0.1", 5001], settings=Settings(keys=str(tmp_path / "none.json")))
    assert "cannot be read" in said(section, Weight.STOPS)


def test_a_port_outside_of_sagemakers_range_stops_the_start() -> None:
    section = of_ports(["0.0.0.0", 9500], reuse_port=True, environ={"SAGEMAKER_SAFE_PORT_RANGE": "9000-9100"}, free=taken)
    assert "lies outside of SAGEMAKER_SAFE_PORT_RANGE" in said(section, Weight.STOPS)


def test_a_real_port_that_is_taken_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        section = of_ports(["127.0.0.1", holder.getsockname()[1]], free=require_free)
    assert f"process {os.getpid()}" in said(section, Weight.STOPS)


# The store.

SOUND = {
    **{"name": "linear", "version": "1", "format": "servekit", "error": ""},
    **{"engine": "onnx", "device": "cpu", "seconds": 0.2},
}


def of_store(free: int = 0, gpus: int = 0, settings: Settings = Settings(), **found: Any) -> Section:  # noqa: B008 - frozen
    return store.section_of({"models": [SOUND], "memory": 2**30, "error": "", **found}, settings, 4, free, gpus)


def test_a_sound_store_needs_no_word() -> None:
    section = of_store(free=100 * 2**30)
    assert section.facts["linear/1"].text == "servekit, onnx on cpu, loaded in 0.2 s"
    assert section.advice == []


def test_workers_that_the_memory_does_not_hold_are_counted() -> None:
    assert "set WEB_CONCURRENCY=2." in said(of_store(free=3 * 2**30), Weight.CHANGE)


def test_a_gpu_that_no_model_uses_is_named() -> None:
    assert "linear/1 would compute on the CPU" in said(of_store(gpus=1), Weight.CONSIDER)


def test_archives_are_referred_to_their_own_command(tmp_path: Path) -> None:
    (tmp_path / "a.mar").touch()
    assert "servekit check" in said(of_store(settings=Settings(model_store=tmp_path)), Weight.CONSIDER)


def test_each_version_is_loaded_as_the_server_would_and_a_broken_one_says_why(tmp_path: Path) -> None:
    write_regressor(tmp_path / "model_store", networks.Double())
    broken = write_regressor(tmp_path / "model_store", networks.Double(), "broken")
    edit(broken, network="tests.networks:NoSuchNetwork")
    (tmp_path / "model_store" / "deadly" / "1").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    found = store.load_all(environment(PYTHONPATH=str(ROOT), PROMETHEUS_MULTIPROC_DIR=str(tmp_path)), tmp_path)
    section = store.section_of(found, Settings(), 1, 0, 0)
    assert section.facts["linear/1"].text.startswith("servekit, torch on cpu, loaded in ")
    assert section.facts["memory of a worker"].value > 2**20
    stops = said(section, Weight.STOPS)
    assert "NoSuchNetwork" in stops and "deadly/1/model.json is missing" in stops
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_ends_the_process_is_told_of(tmp_path: Path) -> None:
    look = 'os.write(2, b"\\xff\\nno key here: " + os.environb[b"SERVEKIT_INFERENCE_KEY"].split(b":")[0])'
    (tmp_path / "deadly.py").write_text(f"import os\n{look}\nos._exit(9)\n")
    folder = write_regressor(tmp_path / "model_store", networks.Double())
    edit(folder, network="deadly:Network")
    found = store.load_all(environment(PYTHONPATH=str(ROOT), SERVEKIT_INFERENCE_KEY="a-key-that-nobody-knows"), tmp_path)
    assert found["error"].endswith("no key here: sha256")
    assert found["error"].startswith("Loading a model ended its process with status 9")


def test_a_store_that_takes_too_long_is_told_of(tmp_path: Path) -> None:
    found = store.load_all(environment(PYTHONPATH=str(ROOT)), tmp_path, seconds=0.01)
    assert found["error"] == "The models did not load within 0 seconds."


# Limits.


def of_limits(
    root: Path,
    gunicorn: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    descriptors: tuple[int, int] = (4096, -1),
    free: int = 2**40,
) -> Section:
    (root / "dev" / "shm").mkdir(parents=True, exist_ok=True)
    (root / "store").mkdir(exist_ok=True)
    chosen = Settings(model_store=root / "store")
    return limits(chosen, {**GUNICORN, **(gunicorn or {})}, environ or {}, 4, root, descriptors, lambda _: Usage(2**41, 1, free))


def test_good_limits_need_no_word(tmp_path: Path) -> None:
    section = of_limits(files(tmp_path, proc__sys__net__core__somaxconn=4096))
    assert section.advice == []
    assert section.facts["open files (ulimit -n)"].text == "4096 (up to unlimited)"
    assert section.facts["OMP_NUM_THREADS"].text == "1"


def test_too_few_descriptors_are_named(tmp_path: Path) -> None:
    assert "raise it to 1100" in said(of_limits(tmp_path, descriptors=(1024, 4096)), Weight.CHANGE)
    assert of_limits(tmp_path, descriptors=(-1, -1)).advice == []


def test_little_room_on_disks_and_in_shared_memory_is_named(tmp_path: Path) -> None:
    text = said(of_limits(tmp_path, free=2**20), Weight.CHANGE)
    assert "/dev/shm has 1.0 MiB left" in text and "The disk of the model store has 1.0 MiB left" in text


def test_a_machine_without_shared_memory_is_told_so(tmp_path: Path) -> None:
    section = limits(Settings(model_store=tmp_path), GUNICORN, {}, 4, tmp_path / "bare", (4096, 4096))
    assert "mount a tmpfs there" in said(section, Weight.CHANGE)


def test_a_folder_of_logs_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    section = of_limits(tmp_path, {"accesslog": str(tmp_path / "no" / "access.log"), "errorlog": str(tmp_path / "e.log")})
    assert "The folder of the accesslog" in said(section, Weight.STOPS)
    assert "errorlog" not in said(section)


def test_a_folder_of_metrics_that_cannot_be_one_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder, is_refused in (("file", True), ("file/below", True), ("new/below", False)):
        section = of_limits(tmp_path, environ={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / folder)})
        assert ("cannot be used as a folder" in said(section, Weight.STOPS)) is is_refused
    assert not (tmp_path / "new").exists()


def test_few_processes_and_a_short_queue_are_named(tmp_path: Path) -> None:
    files(tmp_path, proc__self__cgroup="0::/", sys__fs__cgroup__pids_DOT_max=100, sys__fs__cgroup__pids_DOT_current=60)
    section = of_limits(files(tmp_path, proc__sys__net__core__somaxconn=128))
    assert "allows 40 more processes" in said(section, Weight.CHANGE)
    assert "lets 128 connections wait" in said(section, Weight.CONSIDER)


@pytest.mark.parametrize(("threads", "is_named"), [("1", False), ("4", True), ("", False), ("many", False)])
def test_threads_that_fight_for_the_cores_are_named(tmp_path: Path, threads: str, is_named: bool) -> None:
    text = said(of_limits(tmp_path, environ={"OMP_NUM_THREADS": threads} if threads else {}), Weight.CHANGE)
    assert ("OMP_NUM_THREADS=4 gives each of 4 workers 4 threads" in text) is is_named


def test_a_slow_clock_and_a_wrong_one_are_named(tmp_path: Path) -> None:
    files(tmp_path, sys__devices__system__clocksource__clocksource0__current_clocksource="hpet")
    (tmp_path / "store" / "m" / "1").mkdir(parents=True)
    os.utime(tmp_path / "store" / "m" / "1", (2**33, 2**33))
    section = of_limits(tmp_path)
    assert "hpet is slow to read" in said(section, Weight.CONSIDER)
    assert "The clock is behind" in said(section, Weight.CHANGE)


# Packages.

REQUIREMENTS = [
    *("flask>=3.1", "gunicorn>=27", 'greenlet>=3.5; extra == "fast"'),
    *('onnxruntime>=1.31; extra == "onnx"', "pytest>=9; extra == 'test'"),
]


def of_packages(versions: dict[str, str], requirements: Sequence[str] = REQUIREMENTS) -> Section:
    def version_of(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    return packages(lambda name: requirements, version_of)


def test_packages_that_are_new_enough_need_no_word() -> None:
    section = of_packages({"flask": "3.1.0+local", "gunicorn": "27.0", "greenlet": "3.10", "onnxruntime": "2rc1"})
    assert section.advice == [] and "pytest" not in section.facts


def test_packages_that_are_old_or_missing_are_named() -> None:
    section = of_packages({"flask": "3.0.9", "onnxruntime": "1.31.0"})
    assert "flask 3.0.9 is older than 3.1" in said(section, Weight.CHANGE)
    assert "gunicorn must be installed" in said(section, Weight.STOPS)
    assert "greenlet must be installed for the event-loop worker" in said(section, Weight.CHANGE)


def test_a_servekit_that_is_no_package_is_told_so() -> None:
    def nothing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    assert "not installed as a package" in said(packages(nothing), Weight.CONSIDER)


# The report.


def test_the_report_orders_advice_by_weight() -> None:
    first, second = Section("First"), Section("Second")
    first.add("memory", 2**20, size(2**20), "limit")
    first.consider("C.")
    second.change("B.")
    second.stops("A.")
    assert [text for _, text in advice_of([first, second])] == ["A.", "B.", "C."]
    text = as_text([first, second])
    assert "  memory  1.0 MiB  (limit)" in text
    assert text.endswith("  1. stops the start: A.\n  2. change: B.\n  3. consider: C.")
    assert as_json([first, second]) == {
        "would_start": False,
        "sections": {"First": {"memory": {"value": 2**20, "origin": "limit"}}, "Second": {}},
        "advice": [
            {"weight": "stops the start", "text": "A."},
            {"weight": "change", "text": "B."},
            {"weight": "consider", "text": "C."},
        ],
    }
    assert would_start([first]) and as_text([]).endswith("  nothing")


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes_are_readable(count: int, text: str) -> None:
    assert size(count) == text


def test_the_report_has_no_word_for_a_terminal() -> None:
    section = Section("Settings")
    section.add("model_store", "", "a\x1b[2Jb\udc80\u009bc\nd é")
    section.change("Name another than \x1b]0;x\x07.")
    text = as_text([section])
    assert "a\\x1b[2Jb\\udc80\\x9bc\\nd é" in text and "\\x1b]0;x\\x07" in text
    assert all(line.isprintable() for line in text.splitlines())


def doctor(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    variables = environment(PYTHONPATH=str(ROOT), GUNICORN_CMD_ARGS="--bind 127.0.0.1:0") | extra
    command = [sys.executable, "-m", "servekit", "doctor", *arguments]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


def test_the_command_reports_on_this_folder_and_changes_nothing(tmp_path: Path) -> None:
    write_regressor(tmp_path / "model_store", networks.Double())
    before = sorted(tmp_path.rglob("*"))
    ended = doctor(tmp_path, "--json")
    report = json.loads(ended.stdout)
    assert (ended.returncode, report["would_start"], ended.stderr) == (0, True, "")
    assert report["sections"]["Model store"]["linear/1"]["value"]["error"] == ""
    assert set(report["sections"]) == {"Machine", "Settings", "Gunicorn", "Ports", "Model store", "Limits", "Packages"}
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_says_why_a_server_would_not_start(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "--model-store", "nowhere")
    assert ended.returncode == 1
    assert "1. stops the start: There is no model in nowhere" in ended.stdout


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("mkdir gone; cd gone; rmdir ../gone; {}", 1, "servekit cannot start: The current folder is not there any more; "),
        ("{} > /dev/full", 1, "servekit: The report cannot be written: No space left on device."),
        ("({}; echo $? > status) | true; exit $(cat status)", 1, ""),  # as without models
    ],
)
def test_a_report_that_cannot_be_made_or_written_is_one_sentence(tmp_path: Path, line: str, status: int, words: str) -> None:
    command = line.format(f"{sys.executable} -m servekit doctor")
    variables = environment(PYTHONPATH=str(ROOT), GUNICORN_CMD_ARGS="--bind 127.0.0.1:0")
    ended = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert ended.stderr.startswith(words) and len(ended.stderr.splitlines()) == bool(words)


@pytest.mark.slow
def test_the_command_beside_its_running_server_finds_nothing_that_stops(tmp_path: Path) -> None:
    write_regressor(tmp_path / "store", networks.Double())
    with running(tmp_path / "log", SERVEKIT_MODEL_STORE=str(tmp_path / "store"), WEB_CONCURRENCY="1") as server:
        address = f"--bind 127.0.0.1:{server.port}"
        ended = doctor(tmp_path, SERVEKIT_MODEL_STORE=str(tmp_path / "store"), GUNICORN_CMD_ARGS=address)
    assert ended.returncode == 0, ended.stdout
    assert "held by the server that runs" in ended.stdout


def test_the_flags_are_told(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "--json" in capsys.readouterr().out


REFUSED = {
    "an unknown setting": {"SERVEKIT_MODEL_STOR": "x"},
    "an engine that the model has no file for": {"SERVEKIT_ENGINE": "onnx"},
    "an address for strangers": {"GUNICORN_CMD_ARGS": "--bind 0.0.0.0:0"},
    "workers that are no number": {"WEB_CONCURRENCY": "some"},
    "TLS": {"GUNICORN_CMD_ARGS": "--bind 127.0.0.1:0 --certfile c.pem"},
    "a worker class that is none": {"GUNICORN_CMD_ARGS": "--bind 127.0.0.1:0 --worker-class tests.none.Such"},
    "metrics without a folder": {"PROMETHEUS_MULTIPROC_DIR": "/proc/1/no"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variables", REFUSED.values(), ids=REFUSED)
def test_what_the_doctor_says_would_not_start_does_not(tmp_path: Path, variables: dict[str, str]) -> None:
    write_regressor(tmp_path / "model_store", networks.Double())
    (tmp_path / "c.pem").touch()
    ended = doctor(tmp_path, **variables)
    assert (ended.returncode, ended.stderr) == (1, ""), ended.stdout
    assert "1. stops the start: " in ended.stdout
    given = environment(PYTHONPATH=str(ROOT), GUNICORN_CMD_ARGS="--bind 127.0.0.1:0") | variables
    start = subprocess.run([sys.executable, "-m", "servekit", "serve"], cwd=tmp_path, env=given, capture_output=True, timeout=60)
    assert start.returncode != 0
