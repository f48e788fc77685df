"""Models that change while they are asked: swaps, corrupt ones among them, and management by many at once."""

import contextlib
import hashlib
import http.client
import json
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench.faults import rig
from bench.faults.fault import Fault, Outcome
from bench.faults.ledger import Load, to_model
from servekit.spec import STATE_FOLDER
from servekit.state import read_desired, read_reports

RATE = 100.0
SWAPS, POLL, SWAP_SECONDS = 50, "0.1", 20.0
SECONDS, CLIENTS, SIGNAL_PAUSE_SECONDS, SETTLE_SECONDS = 60.0, 4, 3.0, 20.0
MODEL = "swapped"
FAILED_LOADS = r'^servekit_model_load(?:s_total\{[^}]*result="failed"[^}]*\}|_failures_total\S*) (\S+)'


# Swaps.


def swaps() -> Outcome:
    """Put new versions of a model into the store, every other one corrupt, and look at what clients are answered."""
    with rig.new_store() as store:
        write_version(store, 1)
        with rig.server(store=store, SERVEKIT_POLL_SECONDS=POLL) as server:
            with Load(server.port, RATE, make=to_model(MODEL), judge=is_whole) as ledger:
                refused = [_swap(server, number) for number in range(2, SWAPS + 2)]
            metrics, log = rig.ask(server.port, "/metrics")[1].decode(), server.log()
    failed, wrong = ledger.failed(), ledger.wrong()
    kinds = Counter(kind for kind in refused if kind)
    unsaid = [kind for kind, words in CORRUPT_WORDS.items() if kinds[kind] and not re.search(words, log)]
    counted = sum(map(float, re.findall(FAILED_LOADS, metrics, re.MULTILINE)))
    is_reached = not failed and not wrong and not unsaid and counted >= sum(kinds.values())
    return Outcome(
        f"{SWAPS - sum(kinds.values())} swaps and {sum(kinds.values())} corrupt ones ({len(kinds)} kinds) under {RATE:.0f}/s: "
        f"{len(failed)} of {len(ledger.sent)} failed, {len(wrong)} not of one version; the old one went on each time, "
        f"{'each reason in the log' if not unsaid else 'no reason for ' + ', '.join(unsaid)}, {counted:.0f} failed loads counted",
        is_reached,
        {"statuses": ledger.statuses(), "wrong": len(wrong), "corrupt": dict(kinds), "unsaid": unsaid, "counted": counted,
         "p99_ms": ledger.p(99), "tracebacks": log.count("Traceback")},
    )  # fmt: skip


def write_version(store: Path, number: int, corrupt: Callable[[Path], None] | None = None) -> None:
    """Write version `number`, whose answer to x is number * x + 1000 * number, whole or corrupt, at one moment."""
    import torch

    hidden = rig.add_model(store, f".{MODEL}", str(number))
    weights = {"dense.weight": torch.full((1, 1), float(number)), "dense.bias": torch.tensor([1000.0 * number])}
    torch.save(weights, hidden / "model.pth")
    _sign(hidden)
    if corrupt:
        corrupt(hidden)
    (store / MODEL).mkdir(exist_ok=True)
    hidden.rename(store / MODEL / str(number))


def is_whole(nonce: int, body: bytes) -> bool:
    """Return whether an answer is one to this request, and made by the version that it names."""
    answer = json.loads(body)
    version, value = int(answer["model_version"]), answer["outputs"][0]["data"][0]
    return bool(answer["id"] == str(nonce) and abs(value - version * (nonce + 1000)) < 1)


def _sign(folder: Path) -> None:
    """Let model.json name the hash of the weights that lie beside it."""
    described = json.loads((folder / "model.json").read_text())
    described["files"] = {"model.pth": hashlib.sha256((folder / "model.pth").read_bytes()).hexdigest()}
    (folder / "model.json").write_text(json.dumps(described))


def _truncate(folder: Path) -> None:
    content = (folder / "model.pth").read_bytes()
    (folder / "model.pth").write_bytes(content[: len(content) // 2])


def _flip_bit(folder: Path) -> None:
    content = bytearray((folder / "model.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.pth").write_bytes(content)


def _name_wrong_network(folder: Path) -> None:
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"network": "models.mnist:MnistCNN"}))


def _name_wrong_hash(folder: Path) -> None:
    described = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(described | {"files": {"model.pth": "0" * 64}}))


def _spoil_weights(folder: Path) -> None:
    import torch

    torch.save({"dense.weight": torch.full((1, 1), float("nan")), "dense.bias": torch.zeros(1)}, folder / "model.pth")
    _sign(folder)


def _remove_weights(folder: Path) -> None:
    (folder / "model.pth").unlink()


CORRUPT: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate, "a flipped bit": _flip_bit, "another network": _name_wrong_network,
    "another hash": _name_wrong_hash, "NaN weights": _spoil_weights, "no weights": _remove_weights,
}  # fmt: skip
CORRUPT_WORDS = {kind: "is not served, what was served goes on: .+" for kind in CORRUPT} | {
    "another network": "does not fit the network", "NaN weights": "not a number|NaN",
}  # fmt: skip


def _swap(server: rig.Server, number: int) -> str:
    """Write a version and wait until it is served or refused, as is right; return how it was corrupt, or ""."""
    kind = list(CORRUPT)[number // 2 % len(CORRUPT)] if number % 2 else ""
    write_version(server.store, number, CORRUPT.get(kind))
    if kind:
        server.await_log(rf"{MODEL}/{number} is not served, what was served goes on", seconds=SWAP_SECONDS)
    else:
        server.await_log(rf"Serving {MODEL}/{number} now", seconds=SWAP_SECONDS)
    return kind


# Management by many.


def management() -> Outcome:
    """Load, unload and list models, add versions and workers, and predict, all at once; do the workers agree at the end?"""
    tally: Counter[str] = Counter()
    with rig.new_store() as store:
        for name in ("first", "second"):
            rig.add_model(store, name)
        write_version(store, 1)
        with rig.server(store=store, SERVEKIT_POLL_SECONDS="1", SERVEKIT_MANAGEMENT="true") as server:
            stop = threading.Event()
            threads = [threading.Thread(target=_manage, args=(server, stop, tally, each)) for each in range(CLIENTS)]
            threads.append(threading.Thread(target=_add_versions, args=(server, stop)))
            with Load(server.port, RATE) as ledger:
                for thread in threads:
                    thread.start()
                _signal_for(server, SECONDS)
                stop.set()
                for thread in threads:
                    thread.join()
            disagreements = _disagreements(server)
            tracebacks = server.log().count("Traceback")
    answered = Counter(tally) + Counter({f"predict {status}": count for status, count in ledger.statuses().items()})
    bad = {what: count for what, count in answered.items() if what.rpartition(" ")[2] not in ("200", "400", "404", "409", "503")}
    failed = ledger.failed()
    return Outcome(
        f"{sum(answered.values())} requests in {SECONDS:.0f} s: {sum(bad.values())} answered 500 or not at all, {len(failed)} of "
        f"{len(ledger.sent)} predictions failed, {tracebacks} tracebacks; {', '.join(disagreements) or 'all workers agree'}",
        not bad and not failed and not disagreements and not tracebacks,
        {"answers": dict(sorted(answered.items())), "bad": bad, "disagreements": disagreements, "p99_ms": ledger.p(99)},
    )


def _manage(server: rig.Server, stop: threading.Event, tally: Counter[str], number: int) -> None:
    chance = random.Random(number)
    while not stop.wait(0.02):
        name = chance.choice(("first", "second"))
        verb, path, body = chance.choice((
            ("load", f"/v2/repository/models/{name}/load", b"{}"),
            ("unload", f"/v2/repository/models/{name}/unload", b"{}"),
            ("index", "/v2/repository/index", b"{}"),
            ("ready", f"/v2/models/{name}/ready", b""),
            ("infer", f"/v2/models/{name}/infer", to_model(name)(number + 1).body),
        ))  # fmt: skip
        status: object = "no answer"
        with contextlib.suppress(OSError, http.client.HTTPException):
            status = rig.ask(server.port, path, body, content_type="application/json", timeout=60)[0]
        tally[f"{verb} {status}"] += 1


def _add_versions(server: rig.Server, stop: threading.Event) -> None:
    number = 2
    while not stop.wait(2.0):
        write_version(server.store, number, _truncate if number % 3 == 0 else None)
        number += 1


def _signal_for(server: rig.Server, seconds: float) -> None:
    """Ask for a worker more and a worker less in turn."""
    until, more = time.monotonic() + seconds, True
    while time.monotonic() < until:
        time.sleep(SIGNAL_PAUSE_SECONDS)
        server.signal(signal.SIGTTIN if more else signal.SIGTTOU)
        more = not more
    if not more:
        server.signal(signal.SIGTTOU)


def _disagreements(server: rig.Server) -> list[str]:
    """Return in what the workers differ from what is desired, or in what they answer; wait for changes under way first."""
    until = time.monotonic() + SETTLE_SECONDS
    while (found := _differences(server)) and time.monotonic() < until:
        time.sleep(0.2)
    return found


def _differences(server: rig.Server) -> list[str]:
    folder, workers = server.store / STATE_FOLDER, server.pids()
    wanted = sorted(entry.key for entry in read_desired(folder).entries() if entry.workers)
    found = [] if len(workers) == rig.WORKERS else [f"{len(workers)} workers"]
    reports = {report.pid: sorted(report.loaded) for report in read_reports(folder)}
    found += [f"{pid} holds {reports.get(pid)}" for pid in workers if reports.get(pid) != wanted]
    said = {rig.ask(server.port, "/v2/repository/index", b"{}", content_type="application/json")[1] for _ in range(20)}
    return found + ([] if len(said) == 1 else [f"{len(said)} different lists"])


FAULTS = (
    Fault(
        "swaps",
        f"{SWAPS} swaps of a model, every other one corrupt: {', '.join(CORRUPT)}",
        "0 failed, each answer wholly one version; a corrupt one leaves the old serving and says why",
        swaps,
        limit_seconds=180.0,
    ),
    Fault(
        "management",
        f"loading, unloading, listing, new versions, more and fewer workers beside predictions for {SECONDS:.0f} s",
        "no 500, all workers agree at the end",
        management,
        limit_seconds=180.0,
    ),
)
