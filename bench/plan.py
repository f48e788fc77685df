"""What is measured and in which order: in each round every server once, so that a drifting machine drifts for all."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.cases import CASES
from bench.engine import BATCHES, ENGINES, EngineFailed, measure
from bench.machine import ROOT, Cores
from bench.servers import Launch, Server, ServerFailed, bare_worker, environment, running, servekit, trivial

CONNECTIONS = (1, 16, 64)  # of every server
MANY = (*CONNECTIONS, 256)  # of servekit by itself
COSTS_AT = 16  # connections of the case after which memory and idle processor time are measured
WARM_CONNECTIONS = 16  # of the warm-up, also where a case has but one: all workers shall be warm
RISE_SECONDS = 0.3  # of the case itself before its measurement
OPEN_CONNECTIONS = 128  # of an open loop: more than a server that keeps the limit has under way
OPEN_LIMIT_MS = 10.0
LOAD_SECONDS = 120.0  # that a load generator may take beyond its own time
Run = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Job:
    """One case: a server, what it is sent, over how many connections; the rate is searched in an open loop."""

    launch: Launch
    case: str
    connections: int
    is_open: bool = False

    @property
    def label(self) -> str:
        """The name of the case in results."""
        return f"{self.case}, open loop" if self.is_open else self.case


def jobs(store: Path, workers: int, worker_class: str, peers: list[Launch] | None) -> list[Job]:
    """Return the jobs of one round: servekit's cases and limits, or those that compare and the `peers`."""
    own = servekit(store.resolve(), workers)
    if peers is None:
        listed = [Job(own, case, connections) for case in CASES for connections in MANY]
        listed.append(Job(own, "raw", OPEN_CONNECTIONS, is_open=True))
    else:
        listed = [Job(own, "raw", connections) for connections in CONNECTIONS]
        listed += [Job(own, "multipart", connections) for connections in CONNECTIONS[1:]]
    listed.append(Job(bare_worker(worker_class), "raw", 64))
    listed.append(Job(trivial(workers), "raw", 64))
    for peer in peers or []:
        listed += [Job(peer, case_of(peer), connections) for connections in CONNECTIONS]
    return listed


def rounds(listed: list[Job], cores: Cores, options: argparse.Namespace) -> Iterator[Run]:
    """Run `listed` `options.rounds` times over, each job in a server of its own, and the engines; give each run.

    A server that cannot be started is a run with the reason as `failed`, and is not tried again.
    """
    lost: set[str] = set()
    engines = [engine for engine in ENGINES if is_wanted(f"engine {engine}", options)]
    for number in range(1, options.rounds + 1):
        for engine in engines:
            for batch in BATCHES:
                if f"engine {engine}" not in lost:
                    run = _engine(engine, batch, cores, options)
                    lost |= {run["server"]} if "failed" in run else set()
                    yield run | {"round": number}
        for job in listed:
            if job.launch.name not in lost and is_wanted(job.launch.name, options):
                run = _serve(job, cores, options)
                lost |= {run["server"]} if "failed" in run else set()
                yield run | {"round": number}


def case_of(launch: Launch) -> str:
    """Return the case with one image that every server is measured with: the PNG, or the tensor where it reads no PNG."""
    return "tensor" if launch.request.content_type == "application/json" else "raw"


def is_wanted(name: str, options: argparse.Namespace) -> bool:
    """Return whether `--only` lets the server `name` be measured."""
    return not options.only or options.only.lower() in name.lower()


def _engine(engine: str, batch: int, cores: Cores, options: argparse.Namespace) -> Run:
    run = {"server": f"engine {engine}", "settings": "no HTTP", "case": "rows", "connections": batch}
    try:
        found = measure(options.store, engine, batch, cores.servers, options.seconds / 2)
    except EngineFailed as error:
        return run | {"failed": str(error)}
    return run | {"requests_per_second": found["rows_per_second"], "each": found["each"], "errors": 0}


def _serve(job: Job, cores: Cores, options: argparse.Namespace) -> Run:
    run = {"server": job.launch.name, "settings": job.launch.settings, "case": job.label, "connections": job.connections}
    try:
        with running(job.launch, cores.servers) as server:
            run["start_seconds"] = server.start_seconds
            server.settle()
            run |= _load(job, server, cores, options)
            if job.connections == COSTS_AT and job.case == case_of(job.launch):
                run["pss_mb"] = server.pss_mb()
                run["idle_cpu"] = server.idle_cpu(options.idle_seconds)
    except ServerFailed as error:
        return run | {"failed": str(error)}
    return run


def _load(job: Job, server: Server, cores: Cores, options: argparse.Namespace) -> Run:
    """Send the load of `job` and return what was seen; before it a warm-up that reaches every worker."""
    path = job.launch.request.path if job.case == case_of(job.launch) else None
    common = ["--port", str(server.port), "--case", job.case, "--core", str(cores.load)] + (["--path", path] if path else [])
    seconds = max(options.warmup, job.launch.warmup)
    warm = _generate([*common, "--connections", str(WARM_CONNECTIONS), "--warmup", "0", "--seconds", str(seconds)], seconds)
    seconds, steps = options.seconds, 1
    common += ["--connections", str(job.connections), "--warmup", str(RISE_SECONDS)]
    if job.is_open:
        seconds, steps = options.seconds * 2 / 3, 2 * options.steps  # each rate is tried twice at most
        common += ["--search", "--limit-ms", str(OPEN_LIMIT_MS), "--steps", str(options.steps)]
    seen = _generate([*common, "--seconds", str(seconds)], (seconds + RISE_SECONDS) * steps)
    if warm["errors"]:
        return seen | {"errors": seen["errors"] + warm["errors"], "faults": warm["faults"]}
    return seen


def _generate(arguments: list[str], seconds: float) -> Run:
    """Run the load generator in a fresh process, for `seconds` if all goes well, and return what it reports."""
    command = [sys.executable, "-m", "bench.load", *arguments]
    limit = seconds + LOAD_SECONDS
    try:
        ended = subprocess.run(command, cwd=ROOT, env=environment({}), capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise ServerFailed(f"the load did not end in {limit:.0f} s") from None
    if ended.returncode:
        raise ServerFailed(f"the load generator failed: {ended.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(ended.stdout))
