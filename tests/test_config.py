import os
from pathlib import Path

import pytest

from servekit.config import Settings, usable_cores, visible_gpus
from servekit.errors import SettingError


def test_defaults_need_no_environment() -> None:
    assert Settings.from_environ({"PATH": "/bin"}) == Settings()


def test_variables_win_over_defaults() -> None:
    environ = {"SERVEKIT_MODEL_STORE": "/srv/models", "SERVEKIT_MAX_BODY_BYTES": "1000", "SERVEKIT_DEADLINE_SECONDS": "0.5"}
    settings = Settings.from_environ(environ)
    assert settings.model_store == Path("/srv/models")
    assert (settings.max_body_bytes, settings.deadline_seconds) == (1000, 0.5)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(SettingError, match="SERVEKIT_MODLE_STORE; did you mean SERVEKIT_MODEL_STORE?"):
        Settings.from_environ({"SERVEKIT_MODLE_STORE": "x"})


def test_an_unknown_setting_that_is_near_to_none_lists_them() -> None:
    with pytest.raises(SettingError, match="Unknown setting SERVEKIT_QQ; there are: SERVEKIT_ALLOW_ANONYMOUS, SERVEKIT_BODY"):
        Settings.from_environ({"SERVEKIT_QQ": "x"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MAX_BODY_BYTES", "many"),
        ("MAX_BODY_BYTES", "0"),
        ("MAX_BODY_BYTES", "1.5"),
        ("DEADLINE_SECONDS", "-1"),
        ("DEADLINE_SECONDS", "nan"),
        ("DEADLINE_SECONDS", "inf"),
        ("LOG_FORMAT", "xml"),
        ("ENGINE", "tensorrt"),
        ("MAX_WAITING", "0"),
        ("LONG_PASS_SECONDS", "0"),
        ("HEADER_SECONDS", "-1"),
        ("BODY_SECONDS", "nan"),
        ("WRITE_SECONDS", "inf"),
        ("MODEL_STORE", " "),
    ],
)
def test_an_impossible_value_names_its_setting(name: str, text: str) -> None:
    with pytest.raises(SettingError, match=f"SERVEKIT_{name} must be"):
        Settings.from_environ({f"SERVEKIT_{name}": text})


def test_cores_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    one = next(iter(os.sched_getaffinity(0)))
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {one})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("", None), ("50000 100000", 1), ("100000 100000", 1)])
def test_cores_are_cut_by_a_quota_of_cgroup_v2(tmp_path: Path, quota: str, cores: int | None) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/app/child\n")
    write(tmp_path / "sys/fs/cgroup/app/cpu.max", quota)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("quota", "cores"), [("-1", None), ("100000", 1)])
def test_cores_are_cut_by_a_quota_of_cgroup_v1(tmp_path: Path, quota: str, cores: int | None) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/app\n")
    write(tmp_path / "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", quota)
    write(tmp_path / "sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_gpus_are_counted_as_far_as_the_process_sees_them(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert visible_gpus({}, tmp_path) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert visible_gpus({}, tmp_path / "dev") == 0
