"""`python -m bench` measures servekit beside its limits, `python -m bench --peers` beside its peers."""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import machine, report, results
from bench.engine import EngineFailed, newest
from bench.peers.install import pins
from bench.peers.launches import prepare
from bench.plan import jobs, rounds


def main() -> None:
    """Measure, write JSON, tables and chart, and end with 1 if anything has no result."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the servers are stopped too
    cores = machine.split_cores()
    print(cores.note, flush=True)
    try:
        version = newest(options.store)
    except EngineFailed as error:
        sys.exit(f"{error}.")
    failed: dict[str, str] = {}
    peers = None
    if options.peers:
        peers, failed = prepare(version, len(cores.servers))
    options.worker_class = options.worker_class or own_worker()
    listed = jobs(options.store, len(cores.servers), options.worker_class, peers)
    runs = []
    for run in rounds(listed, cores, options):
        print(progress(run), flush=True)
        runs.append(run)
    result = describe(options, cores, version, runs, failed)
    write(result, options)
    bad = [f"{each['server']}: {each['bad']}" for each in result["cases"] if "bad" in each]
    bad += [f"{peer}: {reason}" for peer, reason in failed.items()]
    if bad:
        sys.exit("Without a result:\n  " + "\n  ".join(bad))


def parse() -> argparse.Namespace:
    """Read the command line."""
    store = Path(os.environ.get("SERVEKIT_MODEL_STORE", "model_store"))
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--peers", action="store_true", help="install the peers under .bench/ and measure them too")
    parser.add_argument("--rounds", type=int, default=3, help="how often every case is run (default: 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a case is measured (default: 3)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds of load over 16 connections before that (default: 1)")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="how long an idle server is watched (default: 5)")
    parser.add_argument("--steps", type=int, default=6, help="rates that a search in the open loop tries (default: 6)")
    parser.add_argument("--store", type=Path, default=store, help=f"the model store (default: {store})")
    parser.add_argument("--worker-class", help="Gunicorn's worker class measured alone (default: that of servekit)")
    parser.add_argument("--only", help="only servers whose name contains this")
    parser.add_argument("--output", type=Path, default=machine.ROOT / "bench", help="where README.md and results/ are")
    return parser.parse_args()


def own_worker() -> str:
    """Return the worker class that gunicorn.conf.py names; the file sets variables too, hence a process for it."""
    code = "import runpy; print(runpy.run_path('gunicorn.conf.py')['worker_class'])"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=machine.ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def progress(run: dict[str, Any]) -> str:
    """Return the line that is printed after a run."""
    what = f"round {run['round']}  {run['server']}, {run['case']}, {run['connections']}"
    if "failed" in run:
        return f"{what}: {run['failed']}"
    if run["errors"]:
        return f"{what}: no result, {run['errors']} errors {run.get('faults', '')}"
    tail = f", p99 {run['p99_ms']:.1f} ms" if "p99_ms" in run else ""
    return f"{what}: {run['requests_per_second']:.0f}/s{tail}"


def describe(
    options: argparse.Namespace, cores: machine.Cores, version: Path, runs: list[dict[str, Any]], failed: dict[str, str]
) -> dict[str, Any]:
    """Return the whole result: what, where, how, every run, the medians, the ratios."""
    cases = results.summarise(runs, options.rounds)
    names = ("rounds", "seconds", "warmup", "idle_seconds", "steps", "worker_class")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe() | {"note": cores.note, "server_cores": cores.servers, "load_core": cores.load},
        "versions": machine.versions(),
        "peers": pins() if options.peers else {},
        "model": sorted(path.name for path in version.iterdir()),
        "settings": {name: getattr(options, name) for name in names},
        "failed": failed,
        "ratios": results.ratios(cases),
        "cases": cases,
        "runs": runs,
    }


def write(result: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the JSON file, the chart and the section of README.md, and print the tables."""
    name = "peers" if options.peers else "servekit"
    chart = "chart.png" if options.peers else "servekit.png"
    folder = options.output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "-peers" if options.peers else ""
    path = folder / f"{result['date']}-{result['commit']['id']}{suffix}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    report.draw(result["cases"], options.output / chart)
    text = report.section(result, chart)
    report.write_section(options.output / "README.md", name, text)
    print(text)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
