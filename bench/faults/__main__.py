"""`python -m bench.faults [NAME ...]` does every fault, or those named, to a server of its own, and prints a table.

All of them together write bench/results/DATE-COMMIT-faults.json and the table of bench/faults/README.md, too.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import datetime
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench.faults
from bench import live, machine, report
from bench.faults.fault import Fault, NotMeasured, Outcome

LAST_SECONDS = 20.0  # for a fault that is told to stop to end its servers
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphans become our children, so that none of them stays


def main() -> None:
    """Do the faults, print and write what came of them; end with 1 if a row is not reached."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults; all of them if none is named")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--outcome", type=Path, help=argparse.SUPPRESS)  # this process does one fault, and writes it here
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that what has been started is ended
    faults = find_faults()
    if options.list:
        print("\n".join(f"{fault.name:16} {fault.title}" for fault in faults.values()))
    elif unknown := [name for name in options.names if name not in faults]:
        sys.exit(f"There is no fault {unknown[0]}; there are {', '.join(faults)}.")
    elif options.outcome:
        options.outcome.write_text(json.dumps(dataclasses.asdict(do(faults[options.names[0]]))))
    else:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        show([faults[name] for name in options.names or faults], is_all=not options.names)


def find_faults() -> dict[str, Fault]:
    """Return the faults of all modules beside this one by their names."""
    found: dict[str, Fault] = {}
    for module in pkgutil.iter_modules(bench.faults.__path__):
        if module.name not in ("__main__", "models", "costly"):
            listed = getattr(importlib.import_module(f"bench.faults.{module.name}"), "FAULTS", ())
            found |= {fault.name: fault for fault in listed}
    return found


def do(fault: Fault) -> Outcome:
    """Do a fault in this process; one that cannot be done is not reached."""
    try:
        return fault.run()
    except NotMeasured as error:
        return Outcome(f"not measured: {error}", False)
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return Outcome(f"not measured: {type(error).__name__}: {error}"[:200], False)


def do_apart(fault: Fault) -> dict[str, Any]:
    """Do a fault in a fresh process, for no longer than it may take; return its row."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="servekit-faults-") as folder:
        path = Path(folder) / "outcome.json"
        command = [sys.executable, "-m", "bench.faults", fault.name, "--outcome", str(path)]
        process = subprocess.Popen(command, cwd=machine.ROOT, start_new_session=True)
        reason = ""
        try:
            process.wait(fault.limit_seconds)
        except subprocess.TimeoutExpired:
            reason = f"not measured: it was ended after {fault.limit_seconds:.0f} s"
        finally:
            end(process)
        if path.exists() and not reason:
            outcome = json.loads(path.read_text())
        else:
            reason = reason or f"not measured: it ended with {process.returncode}"
            outcome = dataclasses.asdict(Outcome(reason, False))
    row = {"name": fault.name, "title": fault.title, "to_reach": fault.to_reach}
    return row | outcome | {"seconds": round(time.monotonic() - began, 1)}


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, and everything that it has left behind."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)
    until = time.monotonic() + LAST_SECONDS
    while (left := live.children(os.getpid())) and time.monotonic() < until:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            if pid != process.pid:
                with contextlib.suppress(OSError):
                    os.waitpid(pid, 0)
        process.poll()
    process.poll()


def show(faults: list[Fault], is_all: bool) -> None:
    """Do the faults one after another and say what came of them."""
    load = os.getloadavg()[0]
    rows = []
    for fault in faults:
        rows.append(row := do_apart(fault))
        mark = "reached" if row["is_reached"] else "NOT REACHED"
        print(f"{fault.name}: {mark}, {row['measured']} ({row['seconds']:.0f} s)", flush=True)
    result = {
        "date": datetime.date.today().isoformat(),
        "commit": machine.commit(),
        "machine": machine.describe() | {"load_average": round(load, 2), "note": machine.split_cores().note},
        "versions": machine.versions(),
        "faults": rows,
    }
    text = table(result)
    print(f"\n{text}")
    if is_all:
        write(result, text)
    if missed := [row["name"] for row in rows if not row["is_reached"]]:
        sys.exit(f"Not reached: {', '.join(missed)}.")


def table(result: dict[str, Any]) -> str:
    """Return the rows as Markdown, with the machine and the commit."""
    lines = ["| fault | to reach | measured | |", "|---|---|---|---|"]
    for row in result["faults"]:
        cells = [row["title"], row["to_reach"], row["measured"], "reached" if row["is_reached"] else "**not reached**"]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    about, commit = result["machine"], result["commit"]
    changed = " with changes" if commit["is_changed"] else ""
    place = f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB. {about['note']}"
    lines += ["", f"{result['date']}, commit {commit['id']}{changed}; {place} Load before: {about['load_average']}."]
    return "\n".join(lines) + "\n"


def write(result: dict[str, Any], text: str) -> None:
    """Write the JSON file and the table of README.md."""
    path = machine.ROOT / "bench" / "results" / f"{result['date']}-{result['commit']['id']}-faults.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    report.write_section(machine.ROOT / "bench" / "faults" / "README.md", "faults", text)
    print(f"Wrote {path}.")


if __name__ == "__main__":
    main()
