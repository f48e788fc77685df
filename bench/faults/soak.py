"""A million requests, good and bad, over several contracts: does the server keep anything of them?

Memory is judged by a line through the second half of what was measured, so what a server takes at first is not held
against it. The same judgement of a model that does keep something must find it.
"""

import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from bench import machine
from bench.cases import Request, binary_tensor, form, multipart, raw, tensor
from bench.faults import rig
from bench.faults.fault import Fault, NotMeasured, Outcome

REQUESTS, LEAK_REQUESTS = 1_000_000, 60_000
SAMPLES = 60
CLIENTS = 3  # processes
BURST = 24  # requests that are sent on a connection before the answers to them are read
BURSTS = 25  # on a connection
SLOPE_MIB = 1.0  # in 100 000 requests
MORE_DESCRIPTORS, MORE_THREADS = 12, 3  # than in the middle: those of connections and errands under way
PATIENCE_SECONDS = 30.0
JSON = "application/json"


def requests(model: str) -> list[bytes]:
    """Return what is sent, one after the other: four good ones of five, mostly of `model`; none of them ends a connection."""
    value = json.dumps({"inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}]}).encode()
    infer = Request(f"/v2/models/{model}/infer", JSON, value)
    row = Request(f"/v1/models/{model}:predict", JSON, b'{"instances":[[5]]}')
    prediction = Request(f"/predictions/{model}", JSON, b'{"value": [5]}')
    good = [*[infer] * 8, form(), form(), form("/linear/predict"), row, row, prediction, raw(), multipart(), tensor()]
    good += [binary_tensor()]
    bad = [
        Request("/predict", "application/x-www-form-urlencoded", b"value=many"),
        Request("/predict", "image/png", b"\x89PNG\r\n\x1a\n no picture"),
        Request(f"/v2/models/{model}/infer", JSON, b'{"inputs": [1, '),
        Request("/v2/models/nobody/infer", JSON, value),
        Request("/nowhere", JSON, b"{}"),
        Request(f"/v1/models/{model}:predict", JSON, b'{"instances":[["a"]]}'),
    ]
    return [each.encode() for each in (good + bad)[:BURST]]


def client(port: int, model: str, share: int, sent: "Synchronized[int]", answered: "Synchronized[int]") -> None:
    """Send `share` requests over one connection after the other, and count; every connection ends in another way."""
    os.sched_setaffinity(0, {machine.split_cores().load})
    mixed = requests(model)
    burst = b"".join(mixed)
    too_large = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 30000000\r\n\r\n"
    left, number = share, 0
    while left > 0:
        number += 1
        with socket.create_connection((rig.HOST, port), PATIENCE_SECONDS) as sock:
            for _ in range(BURSTS):
                sock.sendall(burst)
                count = read(sock, len(mixed))
                note(sent, len(mixed))
                note(answered, count)
                left -= len(mixed)
            if number % 3 == 0:
                sock.sendall(too_large)
                note(sent, 1)
                note(answered, read(sock, 1))
            elif number % 3 == 1:
                sock.sendall(burst[: len(burst) // 2])  # and leave


def read(sock: socket.socket, count: int) -> int:
    """Read the answers to `count` requests; return how many came."""
    found, data = 0, b""
    while found < count:
        piece = sock.recv(1 << 16)
        if not piece:
            break
        data = data[-8:] + piece  # a status line may lie across two pieces
        found += data.count(b"HTTP/1.1 ") - data[:8].count(b"HTTP/1.1 ")
    return found


def note(counter: "Synchronized[int]", count: int) -> None:
    """Add to a counter that processes share."""
    with counter.get_lock():
        counter.value += count


def sample(server: rig.Server, sent: int) -> dict[str, Any]:
    """Return what the server's processes hold now."""
    pids = server.members()
    memory = server.memory("Pss_Anon") + server.memory("Pss_Shmem")  # not that of libraries, which others share, too
    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)
    return {"sent": sent, "mib": round(memory, 2), "descriptors": descriptors, "threads": threads}


def slope(samples: Sequence[dict[str, Any]]) -> float:
    """Return by how many MiB the memory grows in 100 000 requests, over the second half of `samples`."""
    half = samples[len(samples) // 2 :]
    line = statistics.linear_regression([each["sent"] for each in half], [each["mib"] for each in half])
    return line.slope * 100_000


def growth(samples: Sequence[dict[str, Any]], what: str) -> float:
    """Return by how much the middle value of the last few `samples` is above that of those in the middle."""
    few, middle = max(1, len(samples) // 10), len(samples) // 2
    return statistics.median(each[what] for each in samples[-few:]) - statistics.median(
        each[what] for each in samples[middle : middle + few]
    )


def soak(model: str, count: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Send `count` requests, mostly to `model`; return what the server held meanwhile, and what became of them."""
    context = multiprocessing.get_context("spawn")
    sent, answered = context.Value("q", 0), context.Value("q", 0)
    with rig.new_store() as store:
        if model == "leak":
            rig.add_model(store, model, network="bench.faults.costly:Leak")
        with rig.server(store=store, options=("--access-logfile", os.devnull)) as server:
            common = (server.port, model, count // CLIENTS + 1, sent, answered)
            clients = [context.Process(target=client, args=common) for _ in range(CLIENTS)]
            samples: list[dict[str, Any]] = []
            workers, began = server.pids(), time.monotonic()
            for each in clients:
                each.start()
            while any(each.is_alive() for each in clients):
                if sent.value >= count * (len(samples) + 1) / SAMPLES:
                    samples.append(sample(server, sent.value))
                time.sleep(0.05)
            seconds = time.monotonic() - began
            is_broken = any(each.exitcode for each in clients)
            deaths = len(set(workers) - set(server.pids()))
            tracebacks = server.log().count("Traceback")
    if is_broken or len(samples) < SAMPLES // 2:
        raise NotMeasured(f"a client ended with an error after {sent.value} requests, or too little was measured")
    figures = {"sent": sent.value, "answered": answered.value, "seconds": round(seconds, 1)}
    return samples, figures | {"worker_deaths": deaths, "tracebacks": tracebacks}


def keeps_nothing(count: int = REQUESTS) -> Outcome:
    """Send the mixture to a server whose models are sound."""
    samples, figures = soak("linear", count)
    grown = slope(samples)
    more = {what: growth(samples, what) for what in ("descriptors", "threads")}
    measured = (
        f"{grown:+.2f} MiB in 100 000 of {figures['sent']} requests; descriptors {more['descriptors']:+.0f}, "
        f"threads {more['threads']:+.0f}; {figures['answered']} answered, {figures['worker_deaths']} dead workers, "
        f"{figures['tracebacks']} tracebacks, {figures['sent'] / figures['seconds']:.0f}/s"
    )
    is_flat = more["descriptors"] <= MORE_DESCRIPTORS and more["threads"] <= MORE_THREADS
    is_sound = figures["answered"] == figures["sent"] and not figures["worker_deaths"] and not figures["tracebacks"]
    return Outcome(measured, grown < SLOPE_MIB and is_flat and is_sound, {**figures, **more, "samples": samples})


def finds_a_leak(count: int = LEAK_REQUESTS) -> Outcome:
    """Send the mixture to a model that keeps something of every row: it must be found."""
    samples, figures = soak("leak", count)
    grown = slope(samples)
    return Outcome(f"{grown:+.1f} MiB in 100 000 requests: found", grown >= SLOPE_MIB, {**figures, "samples": samples})


FAULTS = [
    Fault(
        "soak",
        "1 million requests, errors among them",
        "memory slope under 1 MB per 100 000, descriptors and threads flat",
        keeps_nothing,
        limit_seconds=600.0,
    ),
    Fault(
        "leak",
        "a model that keeps 1000 bytes a row",
        "found by the same judgement",
        finds_a_leak,
        limit_seconds=240.0,
    ),
]
