import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from servekit.torchserve.host import MIN_SECONDS, Processors, gpus, readings
from tests.server import ROOT, environment


def test_processors_and_memory_are_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat, memory = tmp_path / "proc/stat", tmp_path / "proc/meminfo"
    stat.write_text("cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 1 1 1\n")
    memory.write_text("MemTotal:  4096 kB\nMemFree:  1 kB\nMemAvailable:  1024 kB\n\n")
    processors = Processors(tmp_path)
    stat.write_text("cpu  120 0 110 760 110 0 0 0 70 0\n")  # 30 of 100 ticks; a guest's are within the user's
    time.sleep(MIN_SECONDS)
    found = {name: value for name, _, value in readings(processors, tmp_path)}
    assert found["CPUUtilization"] == 30
    stat.write_text("cpu  130 0 110 760 110 0 0 0 70 0\n")
    assert processors.percent() == 30  # too soon to say
    assert (found["MemoryUsed"], found["MemoryAvailable"], found["MemoryUtilization"]) == (3, 1, 75)


def test_a_system_that_does_not_say_is_left_out(tmp_path: Path) -> None:
    found = {name for name, device, _ in readings(Processors(tmp_path), tmp_path) if device is None}
    assert found == {"DiskUsage", "DiskAvailable", "DiskUtilization"}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\n")
    assert not any(name == "MemoryUsed" for name, _, _ in readings(Processors(tmp_path), tmp_path))


class TwoGpus:
    """NVIDIA's library as it answers on a machine whose second of three GPUs is broken, and third one cut up."""

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        device._obj.value = index.value + 1
        return 15 if index.value == 1 else 0

    def nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:
        memory._obj.total, memory._obj.used = 80 * 2**30, 20 * 2**30
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, use: Any) -> int:
        use._obj.gpu = 60
        return 3 if device.value == 3 else 0


def test_gpus_are_measured_one_by_one() -> None:
    memory = [("GPUMemoryUtilization", 25.0), ("GPUMemoryUsed", 20 * 1024.0)]
    first = [(name, "0", value) for name, value in [*memory, ("GPUUtilization", 60.0)]]
    assert list(gpus(TwoGpus())) == [*first, *((name, "2", value) for name, value in memory)]


NVML = """
struct memory { unsigned long long total, free, used; };
struct use { unsigned int gpu, memory; };
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) { *device = (void *)0x7fffdeadbeef; return index; }
int nvmlDeviceGetMemoryInfo(void *device, struct memory *memory) {
    memory->total = 80ull << 30; memory->free = 60ull << 30; memory->used = 20ull << 30;
    return device != (void *)0x7fffdeadbeef;
}
int nvmlDeviceGetUtilizationRates(void *device, struct use *use) {
    use->gpu = 60; use->memory = 5;
    return device != (void *)0x7fffdeadbeef;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_nvidias_library_is_called_as_its_header_says(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", source], check=True)
    code = "from servekit.torchserve.host import gpus; print(list(gpus()))"
    variables = environment(LD_LIBRARY_PATH=str(tmp_path))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    readings = [("GPUMemoryUtilization", "0", 25.0), ("GPUMemoryUsed", "0", 20480.0), ("GPUUtilization", "0", 60.0)]
    assert done.stdout.strip() == str(readings)
