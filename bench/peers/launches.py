"""How each peer is started: at its best settings, with the network of the store, a worker on each server core."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bench.cases import raw, tensor
from bench.machine import ROOT
from bench.peers.install import FOLDER, VERSION, PeerFailed, call, install, packages, program, source
from bench.servers import Launch

BATCHES = (1, 8)
TORCHSERVE_DELAY_MS = 1  # how long TorchServe waits for a batch of 8; less is not possible
JVM_SECONDS = 5.0  # of load until the virtual machine has compiled what is used most
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def plain_flask(version: Path, workers: int) -> list[Launch]:
    """Return Flask as people write it: sync workers, two a core and one, each with torch's own number of threads."""
    count = 2 * workers + 1

    def command(port: int, folder: Path) -> list[str]:
        gunicorn = [str(program("plain_flask", "gunicorn")), "--bind", f"127.0.0.1:{port}", "--workers", str(count)]
        return [*gunicorn, "app:app"]

    variables = {"MODEL": str(version / "model.pth"), "PYTHONPATH": f"{ROOT}:{source('plain_flask')}"}
    return [Launch("plain Flask", f"torch, {count} sync workers, default threads", command, variables)]


def torchserve(version: Path, workers: int) -> list[Launch]:
    """Return TorchServe with batches of 1 and of 8; raise PeerFailed without Java."""
    if shutil.which("java") is None:
        raise PeerFailed("there is no java, which TorchServe needs; on Debian and Ubuntu: apt-get install default-jre")
    store = FOLDER / "torchserve-store"
    store.mkdir(exist_ok=True)
    archiver = [str(program("torchserve", "torch-model-archiver")), "--model-name", "mnist", "--version", "1.0", "--force"]
    call(
        [*archiver, "--model-file", str(ROOT / "models" / "mnist.py"), "--handler", str(source("torchserve") / "handler.py")]
        + ["--extra-files", str(version / "model.pth"), "--export-path", str(store)]
    )
    return [_torchserve(store, workers, batch) for batch in BATCHES]


def _torchserve(store: Path, workers: int, batch: int) -> Launch:
    model = {
        "defaultVersion": True,
        "marName": "mnist.mar",
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": batch,
        "maxBatchDelay": TORCHSERVE_DELAY_MS,
        "responseTimeout": 60,
    }

    def command(port: int, folder: Path) -> list[str]:
        lines = [f"{name}_address=http://127.0.0.1:{port + i}" for i, name in enumerate(("inference", "management", "metrics"))]
        lines += ["disable_token_authorization=true", "disable_system_metrics=true", "load_models=mnist.mar"]
        lines += ["models=" + json.dumps({"mnist": {"1.0": model}})]
        (folder / "config.properties").write_text("\n".join(lines) + "\n")
        start = [str(program("torchserve", "torchserve")), "--start", "--foreground", "--model-store", str(store)]
        start += ["--ts-config", "config.properties", "--log-config", str(source("torchserve") / "log4j2.xml")]
        return [*start, "--no-config-snapshots"]

    variables = {**ONE_THREAD, "PATH": f"{program('torchserve').parent}:/usr/local/bin:/usr/bin:/bin"}
    settings = f"torch, {workers} workers, batch {batch}"
    request = raw("/predictions/mnist")
    return Launch(f"TorchServe, batch {batch}", settings, command, variables, request, ports=3, warmup=JVM_SECONDS)


def mosec(version: Path, workers: int) -> list[Launch]:
    """Return mosec with torch and with ONNX Runtime, with batches of 1 and of 8."""
    return [_mosec(version, workers, engine, batch) for engine in ("torch", "onnx") for batch in BATCHES]


def _mosec(version: Path, workers: int, engine: str, batch: int) -> Launch:
    def command(port: int, folder: Path) -> list[str]:
        # The path of its sockets is random by default too, but not inside our folder.
        where = ["--address", "127.0.0.1", "--port", str(port), "--path", str(folder / "sockets")]
        return [str(program("mosec")), str(source("mosec") / "server.py"), *where, "--log-level", "warning"]

    variables = {
        **ONE_THREAD,
        "MODEL": str(version / {"torch": "model.pth", "onnx": "model.onnx"}[engine]),
        "ENGINE": engine,
        "WORKERS": str(workers),
        "BATCH": str(batch),
        "PYTHONPATH": str(ROOT),
    }
    settings = f"{engine}, {workers} workers, batch {batch}"
    return Launch(f"mosec, {engine}, batch {batch}", settings, command, variables, raw("/inference"))


def triton(version: Path, workers: int) -> list[Launch]:
    """Return Triton's own server, which the package of pytriton carries, with a model in Python."""
    carried = packages("triton") / "pytriton" / "tritonserver"

    def command(port: int, folder: Path) -> list[str]:
        model = folder / "models" / "mnist"
        (model / "1").mkdir(parents=True)
        shutil.copy(source("triton") / "model.py", model / "1")
        config = (source("triton") / "config.pbtxt").read_text()
        config = config.replace("{instances}", str(workers)).replace("{onnx}", str(version / "model.onnx"))
        (model / "config.pbtxt").write_text(config)
        backend = folder / "backends" / "python"
        backend.mkdir(parents=True)
        stub = carried / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
        for file in [*(carried / "backends" / "python").glob("*.*"), stub]:
            (backend / file.name).symlink_to(file)
        server = [str(carried / "bin" / "tritonserver"), "--model-repository", str(folder / "models")]
        server += ["--backend-directory", str(folder / "backends"), "--allow-grpc", "false", "--log-info", "false"]
        server += ["--http-address", "127.0.0.1", "--http-port", str(port), "--allow-metrics", "false"]
        return server

    variables = {
        **ONE_THREAD,
        "PATH": f"{program('triton').parent}:/usr/local/bin:/usr/bin:/bin",
        "LD_LIBRARY_PATH": str(packages("triton") / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(packages("triton")),
    }
    settings = f"onnx in its Python backend, {workers} instances, JSON tensors"
    answer = rb'"name":\s*"predicted_class"[^{}]*"data":\s*\[7\]'
    return [Launch("Triton", settings, command, variables, tensor(), answer)]


PEERS: dict[str, Callable[[Path, int], list[Launch]]] = {
    "plain_flask": plain_flask,
    "torchserve": torchserve,
    "mosec": mosec,
    "triton": triton,
}


def prepare(version: Path, workers: int) -> tuple[list[Launch], dict[str, str]]:
    """Install every peer; return how to start those that can be, and the reason for each that cannot."""
    ready: list[Launch] = []
    failed: dict[str, str] = {}
    for peer, launches in PEERS.items():
        try:
            install(peer)
            ready += launches(version.resolve(), workers)
        except PeerFailed as error:
            failed[peer] = str(error)
    return ready, failed
