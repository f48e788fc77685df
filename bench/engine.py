"""The engine alone: forward passes with no HTTP, one process a core. No server can give more answers than this.

    python -m bench.engine --store model_store --engine onnx --batch 8 --cores 0,1,2
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import ROOT
from bench.servers import environment

BATCHES = (1, 8, 32)
ENGINES = ("onnx", "torch")
Pass = Callable[[], Any]


class EngineFailed(Exception):
    """An engine could not be measured."""


def newest(store: Path) -> Path:
    """Return the version folder of `mnist` that a server would take: the one with the highest number."""
    versions = [folder for folder in (store / "mnist").glob("*") if folder.name.isdigit()]
    if not versions:
        raise EngineFailed(f"{store} holds no mnist model; train one with make train")
    return max(versions, key=lambda folder: int(folder.name))


def measure(store: Path, engine: str, batch: int, cores: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Return the rows a second of a process on each of the `cores`, and their sum; raise EngineFailed with the reason.

    The processes load first and then begin together.
    """
    command = [sys.executable, "-m", "bench.engine", "--store", str(store.resolve()), "--engine", engine]
    command += ["--batch", str(batch), "--seconds", str(seconds), "--core"]
    variables = environment({"OMP_NUM_THREADS": "1"})
    processes = [
        subprocess.Popen(
            [*command, str(core)], cwd=ROOT, env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for core in cores
    ]  # fmt: skip
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise EngineFailed(process.communicate(timeout=60)[1].strip().splitlines()[-1])
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        each = [float(process.communicate(timeout=seconds + 60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return {"engine": engine, "batch": batch, "rows_per_second": round(sum(each), 1), "each": each}


def load(folder: Path, engine: str, batch: int) -> Pass:
    """Return a function that runs one forward pass of `batch` rows on one thread."""
    rows = np.random.default_rng(0).random((batch, 1, 28, 28), np.float32)
    if engine == "torch":
        return _load_torch(folder, rows)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: rows})


def _load_torch(folder: Path, rows: np.ndarray) -> Pass:
    import torch

    from models.mnist import MnistCNN

    torch.set_num_threads(1)
    network = MnistCNN()
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    network.eval().requires_grad_(False)
    image = torch.from_numpy(rows)

    def run() -> Any:
        with torch.inference_mode():
            return network(image).numpy()

    return run


def count(run: Pass, batch: int, seconds: float) -> float:
    """Return the rows a second of calling `run` for `seconds`."""
    passes = 0
    begin = time.perf_counter()
    while (elapsed := time.perf_counter() - begin) < seconds:
        run()
        passes += 1
    return round(passes * batch / elapsed, 1)


def main() -> None:
    """Measure on one core and print rows a second, or on several and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.engine", description="Measures an engine without HTTP.")
    parser.add_argument("--store", type=Path, default=Path("model_store"), help="the model store")
    parser.add_argument("--engine", choices=ENGINES, default="onnx", help="what runs the network")
    parser.add_argument("--batch", type=int, default=1, help="rows of a forward pass")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long is measured")
    parser.add_argument("--cores", default="0", help="cores, with commas between: one process on each")
    parser.add_argument("--core", type=int, help="be the process on this core")
    options = parser.parse_args()
    if options.core is None:
        cores = tuple(int(core) for core in options.cores.split(","))
        print(json.dumps(measure(options.store, options.engine, options.batch, cores, options.seconds)))
        return
    os.sched_setaffinity(0, {options.core})
    run = load(newest(options.store), options.engine, options.batch)
    count(run, options.batch, 0.3)
    print("ready", flush=True)
    sys.stdin.readline()
    print(count(run, options.batch, options.seconds))


if __name__ == "__main__":
    main()
