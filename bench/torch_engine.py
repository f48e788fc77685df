"""What makes the torch engine faster on one core: `python -m bench.torch_engine`, with a table as its answer.

Each variant runs in a fresh process, is compared with the network itself, and is the median of several runs.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCHES = (1, 8, 32)
RUNS = 5
SECONDS = 0.5  # of a run
VARIANTS = ("eager", "channels last", "torch.compile", "AOTInductor", "ONNX Runtime")
TOLERANCE = 1e-4
LIMIT_SECONDS = 300.0


def main() -> None:
    """Measure every variant of the newest `mnist` of the model store and print the table."""
    store = Path(os.environ.get("SERVEKIT_MODEL_STORE", "model_store")) / "mnist"
    folder = max((path for path in store.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    print("| variant | " + " | ".join(f"us a row at {rows}" for rows in BATCHES) + " | s to be ready |")
    print("|---" * (len(BATCHES) + 2) + "|")
    for variant in VARIANTS:
        command = [sys.executable, "-W", "ignore", "-m", "bench.torch_engine", variant, str(folder)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
        if ended.returncode:
            print(f"| {variant} | {(ended.stderr.strip().splitlines() or ['failed'])[-1][:100]} |")
            continue
        seen = json.loads(ended.stdout.splitlines()[-1])
        print(f"| {variant} | " + " | ".join(f"{value:.0f}" for value in seen["us"]) + f" | {seen['ready']:.1f} |", flush=True)


def measure(variant: str, folder: Path) -> dict[str, Any]:
    """Return the microseconds a row at each of BATCHES, and the seconds until the variant was ready."""
    import torch

    from models.mnist import MnistCNN

    os.sched_setaffinity(0, {0})
    torch.set_num_threads(1)
    network = MnistCNN().eval().requires_grad_(False)
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    started = time.monotonic()
    with torch.inference_mode(variant != "AOTInductor"), torch.no_grad():
        call = make(variant, network, folder)
        for rows in BATCHES:
            images = torch.rand(rows, 1, 28, 28)
            difference = (call(images) - network(images)).abs().max().item()
            assert difference < TOLERANCE * max(1.0, network(images).abs().max().item()), f"off by {difference}"
        ready = time.monotonic() - started
        return {"us": [microseconds(call, torch.rand(rows, 1, 28, 28)) for rows in BATCHES], "ready": ready}


def make(variant: str, network: Any, folder: Path) -> Callable[[Any], Any]:
    """Return what turns images into logits the way of `variant`."""
    import torch

    if variant == "channels last":
        network.to(memory_format=torch.channels_last)
        return lambda images: network(images.to(memory_format=torch.channels_last))
    if variant == "torch.compile":
        return torch.compile(network, dynamic=True)
    if variant == "AOTInductor":
        rows = torch.export.Dim("rows", min=1, max=64)
        exported = torch.export.export(network, (torch.rand(2, 1, 28, 28),), dynamic_shapes=({0: rows},))
        return torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package(exported))
    if variant == "ONNX Runtime":
        from servekit.engines.onnx import OnnxEngine
        from servekit.spec import read_spec

        engine = OnnxEngine.from_version(folder, read_spec(folder))
        return lambda images: torch.from_numpy(engine({"image": images.numpy()})["logits"])
    return network


def microseconds(call: Callable[[Any], Any], images: Any) -> float:
    """Return the median over RUNS of the microseconds a row."""
    seen = []
    for _ in range(RUNS):
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            call(images)
            count += 1
        seen.append((time.perf_counter() - started) / count / len(images) * 1e6)
    return statistics.median(seen)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
    else:
        main()
