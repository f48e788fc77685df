"""What a change costs a request: `python -m bench.turns OTHER` compares this checkout with another one of this project.

Each is loaded as a worker loads it, in a process of its own on the same core, and both are called in turns, so that
whatever else the machine does meets both. Time is that of the processor, of the fastest round and of the middle one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = ("raw", "multipart", "form")
ROUNDS = 60
CALLS = 200  # in a round

_CHILD = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
from functools import partial
from servekit.app import create_app
from bench.cases import CASES
from bench.path import call
app = create_app()
print("ready", flush=True)
stages = {name: partial(call, app, CASES[name]()) for name in sys.argv[3:]}
for line in sys.stdin:
    stage = stages[line.strip()]
    for _ in range(20):
        stage()
    started = time.process_time_ns()
    for _ in range(int(sys.argv[2])):
        stage()
    print(time.process_time_ns() - started, flush=True)
"""


class Side:
    """One checkout, loaded in a process of its own."""

    def __init__(self, checkout: Path, core: int, metrics: str) -> None:
        variables = {**os.environ, "PYTHONPATH": str(checkout), "PROMETHEUS_MULTIPROC_DIR": metrics, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _CHILD, str(core), str(CALLS), *CASES]
        self._process = subprocess.Popen(
            command, cwd=checkout, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def measure(self, case: str) -> float:
        """Return the microseconds of a call of `case` in one round."""
        assert self._process.stdin
        self._process.stdin.write(f"{case}\n")
        self._process.stdin.flush()
        return int(self._answer()) / CALLS / 1000

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("A side of the comparison ended; its message stands above.")
        return line


def main() -> None:
    """Measure both sides in turns and print a table."""
    parser = argparse.ArgumentParser(prog="bench.turns", description=__doc__)
    parser.add_argument("other", type=Path, help="the checkout that this one is compared with")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        sides = [Side(options.other.resolve(), core, first), Side(Path.cwd(), core, second)]
        print("| request | other, µs | this, µs | fastest | middle |\n|---|---|---|---|---|")
        for case in CASES:
            print(_row(case, sides, options.rounds), flush=True)
        for side in sides:
            side.end()


def _row(case: str, sides: list[Side], rounds: int) -> str:
    times: list[list[float]] = [[], []]
    for number in range(rounds):
        order = (0, 1) if number % 2 else (1, 0)  # who comes second finds the processor warm
        for index in order:
            times[index].append(sides[index].measure(case))
    (before, after), middle = map(min, times), [statistics.median(each) for each in times]
    ratios = [after / before - 1, middle[1] / middle[0] - 1]
    return f"| {case} | {before:.1f} | {after:.1f} | " + " | ".join(f"{ratio:+.1%}" for ratio in ratios) + " |"


if __name__ == "__main__":
    main()
