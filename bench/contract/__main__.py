"""`python -m bench.contract` shows how servekit's answers differ from TorchServe's; `record` takes TorchServe's down anew."""

import argparse
import signal
import sys

from bench.contract import golden, targets
from bench.contract.cases import Case, Group
from bench.contract.exchange import Answer, exchange
from bench.contract.groups import GROUPS
from bench.contract.normal import normalise
from bench.contract.targets import Running, Target
from bench.peers.install import install, pins


def main() -> None:
    """Record, or compare and end with 1 if there is a difference that is not accepted."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the server is stopped too
    chosen = [group for group in GROUPS if not options.only or group.name in options.only]
    if options.verb == "record":
        record(chosen)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.contract", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("compare", "record"), default="compare")
    parser.add_argument("--live", action="store_true", help="ask TorchServe now, in place of its recorded answers")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="only these groups")
    return parser.parse_args()


def record(chosen: list[Group]) -> None:
    """Write what TorchServe answers to the cases of each group."""
    install("torchserve")
    server = next(pin for pin in pins()["torchserve"] if pin.startswith("torchserve=="))
    for group in chosen:
        path = golden.write(group, asked(targets.torchserve(), group), server)
        print(f"Wrote {path}: {len(group.cases)} cases.", flush=True)


def asked(target: Target, group: Group) -> dict[str, list[Answer]]:
    """Start `target`, send it the cases of `group` in turn, and return its answers, normalised."""
    with targets.running(target, group) as server:
        return {case.name: _answers(server, case) for case in group.cases}


def _answers(server: Running, case: Case) -> list[Answer]:
    keys = server.keys()
    answers = exchange(case, server.ports, keys)
    return [normalise(answer, server.ports, keys | server.keys(), str(server.folder)) for answer in answers]


if __name__ == "__main__":
    main()
