"""Models that change under load: what clients see of it, and what it costs.

    python -m bench.swaps                    all three parts, about two minutes
    python -m bench.swaps --part swaps       50 swaps between two versions at 200 requests/s
    python -m bench.swaps --part cycles      a network of 4 MiB registered and removed 200 times: does memory grow?
    python -m bench.swaps --part storm       many clients change and ask for 30 s: is all answered, do workers agree?
"""

import argparse
import collections
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bench import live
from bench.live import Live, Seen, Watch
from servekit.spec import STATE_FOLDER
from servekit.state import read_desired, read_reports

RATE, CLIENTS, WORKERS = 200.0, 8, 2
SETTLE_SECONDS = 10.0
FRESH = 20  # connections, which land on different workers
# What a change may be answered while others change the same models; all else is a fault of the server.
FAIR = {
    HTTPStatus.OK,
    HTTPStatus.ACCEPTED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.CONFLICT,
    HTTPStatus.SERVICE_UNAVAILABLE,
}


def watch(server: Live, seconds: float) -> Seen:
    """Return what clients see of the model `v` in so many seconds in which nothing changes."""
    with Watch(server.inference, "/predictions/v", RATE, CLIENTS, live.is_whole) as seen:
        time.sleep(seconds)
    return seen


def swap(server: Live, count: int, pause: float = 0.0) -> Seen:
    """Make 2.0 and 1.0 the default version in turn, `count` times; remove and register the other one each time.

    Returns what clients see meanwhile. Raises RuntimeError if a change is refused.
    """
    with Watch(server.inference, "/predictions/v", RATE, CLIENTS, live.is_whole) as seen:
        for number in range(count):
            new, old = ("2.0", "1.0") if number % 2 == 0 else ("1.0", "2.0")
            require(server, "PUT", f"/models/v/{new}/set-default")
            time.sleep(pause)
            require(server, "DELETE", f"/models/v/{old}")
            require(server, "POST", f"/models?url=v-{old}.mar&initial_workers={WORKERS}")
    return seen


def cycle(server: Live, file: str, name: str, count: int) -> list[float]:
    """Register and remove an archive `count` times; return the workers' own memory, MiB, before and every ten times."""
    memory = [live.proportional_memory(server.workers(), "Pss_Anon")]
    for number in range(1, count + 1):
        require(server, "POST", f"/models?url={file}&initial_workers={WORKERS}")
        status, _ = server.predict(name)
        if status != HTTPStatus.OK:
            raise RuntimeError(f"{name} answered {status}")
        require(server, "DELETE", f"/models/{name}")
        if number % 10 == 0:
            memory.append(live.proportional_memory(server.workers(), "Pss_Anon"))
    return memory


def slope(memory: list[float]) -> float:
    """Return by how many KiB a cycle the memory grows, over the second half of what `cycle` gives."""
    half = memory[len(memory) // 2 :]
    return statistics.linear_regression([10.0 * number for number in range(len(half))], half).slope * 1024


def storm(server: Live, seconds: float, clients: int = 12, seed: int = 1) -> "collections.Counter[str]":
    """Let clients change and ask at random; return how often each kind of request was answered with which status."""
    tally: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        while time.monotonic() < end:
            kind, ask = chance.choice(_requests(server, chance))
            try:
                status = ask()[0]
            except OSError as error:
                tally[f"{kind} {error!r}"] += 1
            else:
                tally[f"{kind} {status}"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


def faults(tally: "collections.Counter[str]") -> list[str]:
    """Return what of a storm's answers is a fault of the server."""
    fair = {str(int(status)) for status in FAIR}
    return [f"{count} times: {kind}" for kind, count in tally.items() if kind.rpartition(" ")[2] not in fair]


def disagreements(server: Live) -> list[str]:
    """Return in what the workers differ from what is desired, or in what they say; wait for changes under way first."""
    until = time.monotonic() + SETTLE_SECONDS
    while (found := _differences(server)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def require(server: Live, method: str, path: str) -> Any:
    """Send a request to the management API and return its answer; raise RuntimeError if it is refused."""
    status, answer = server.manage(method, path)
    if status != HTTPStatus.OK:
        raise RuntimeError(f"{method} {path}: {status} {answer}")
    return answer


def _requests(server: Live, chance: random.Random) -> list[tuple[str, Callable[[], tuple[int, Any]]]]:
    version = chance.choice(("1.0", "2.0", "3.0"))
    workers = chance.choice((0, 1, 2, 3))
    synchronous = chance.choice(("true", "false"))
    scale = f"/models/v/{version}?min_worker={workers}&max_worker=4&synchronous={synchronous}"
    register = f"/models?url=v-{version}.mar&initial_workers=1&synchronous={synchronous}"
    return [
        ("register", lambda: server.manage("POST", register)),
        ("unregister", lambda: server.manage("DELETE", f"/models/v/{version}")),
        ("scale", lambda: server.manage("PUT", scale)),
        ("default", lambda: server.manage("PUT", f"/models/v/{version}/set-default")),
        ("describe", lambda: server.manage("GET", "/models/v/all")),
        ("list", lambda: server.manage("GET", "/models")),
        ("predict", lambda: server.predict("v")),
        ("predict", lambda: server.predict(f"v/{version}")),
    ]


def _differences(server: Live) -> list[str]:
    folder = server.log.parent / "store" / STATE_FOLDER
    desired, workers = read_desired(folder), server.workers()
    wanted = sorted(entry.key for entry in desired.entries() if entry.workers)
    found = [] if len(workers) == desired.workers else [f"{len(workers)} workers, and {desired.workers} desired"]
    reports = {report.pid: sorted(report.loaded) for report in read_reports(folder)}
    found += [f"{pid} holds {reports.get(pid)}" for pid in workers if reports.get(pid) != wanted]
    described = {_without_memory(server.manage("GET", "/models/v/all")[1]) for _ in range(FRESH)}
    return found + ([] if len(described) == 1 else [f"{len(described)} descriptions"])


def _without_memory(described: Any) -> str:
    """Return a description without what changes from one look to the next."""
    if not isinstance(described, list):
        return str(described)
    for model in described:
        for worker in model["workers"]:
            del worker["memoryUsage"]
    return str(described)


def show_swaps(folder: Path, count: int) -> None:
    """Print what 50 swaps do to clients, and to memory."""
    files = [live.write_versioned(folder / "store", "v", version, 0.002, batch_size=4) for version in ("1.0", "2.0")]
    with live.serving(folder, files[0], WORKERS) as server:
        require(server, "POST", f"/models?url={files[1]}&initial_workers={WORKERS}")
        swap(server, 4)
        before = live.proportional_memory(server.workers())
        quiet = watch(server, 10.0)
        began = time.monotonic()
        busy = swap(server, count, pause=0.2)
        seconds = time.monotonic() - began
        after = live.proportional_memory(server.workers())
    for name, seen in (("without swaps", quiet), ("with swaps", busy)):
        times = f"p50 {seen.percentile(0.5):.1f} ms, p99 {seen.percentile(0.99):.1f} ms, max {max(seen.seconds) * 1000:.0f} ms"
        print(f"{name}: {len(seen.seconds)} requests, {len(seen.failures)} failed, {len(seen.mixed)} mixed, {times}")
    print(f"{count} swaps in {seconds:.1f} s; memory of {WORKERS} workers (PSS) {before:.1f} -> {after:.1f} MiB")
    print(*busy.failures[:5], *busy.mixed[:5], sep="\n")


def show_cycles(folder: Path, count: int) -> None:
    """Print what comes and goes of memory with a network that does."""
    file = live.write_wide(folder / "store", "wide", "1.0")
    first = live.write_versioned(folder / "store", "v", "1.0")
    with live.serving(folder, first, WORKERS) as server:
        memory = cycle(server, file, "wide", count)
        left = list((folder / "store" / STATE_FOLDER / "archives").iterdir())
    print("memory of the workers (PSS without files, MiB), every ten cycles:", *(f"{value:.1f}" for value in memory))
    print(f"slope over the second half {slope(memory):.1f} KiB a cycle; {len(left) - 1} unpacked folders left over")


def show_storm(folder: Path, seconds: float) -> None:
    """Print how requests of many clients were answered, and whether the workers agree at the end."""
    files = [live.write_versioned(folder / "store", "v", version, 0.002) for version in ("1.0", "2.0", "3.0")]
    with live.serving(folder, files[0], WORKERS, SERVEKIT_MAX_WORKERS="4") as server:
        tally = storm(server, seconds)
        print(f"{sum(tally.values())} requests in {seconds:.0f} s:", dict(sorted(tally.items())))
        print("faults:", faults(tally) or "none", "disagreements:", disagreements(server) or "none")
        print("log:", *[line for line in server.log.read_text().splitlines() if "Traceback" in line][:5] or ["no traceback"])


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.swaps", description="Models that change under load.")
    parser.add_argument("--part", choices=("swaps", "cycles", "storm"), action="append")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0, help="of the storm")
    options = parser.parse_args()
    parts = {
        "swaps": lambda folder: show_swaps(folder, options.swaps),
        "cycles": lambda folder: show_cycles(folder, options.cycles),
        "storm": lambda folder: show_storm(folder, options.seconds),
    }
    for name in options.part or parts:
        with tempfile.TemporaryDirectory(prefix="servekit-swaps-") as folder:
            parts[name](Path(folder))


if __name__ == "__main__":
    main()
