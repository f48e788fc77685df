"""`python -m bench.contract` shows how servekit's answers differ from TorchServe's; `record` takes TorchServe's down anew."""

import argparse
import signal
import sys

from bench.contract import golden, targets
from bench.contract.accepted import ACCEPTED
from bench.contract.cases import Case, Group
from bench.contract.compare import Difference, differences, sort_out
from bench.contract.exchange import Answer, exchange
from bench.contract.groups import GROUPS
from bench.contract.normal import normalise
from bench.contract.targets import Running, Target
from bench.peers.install import install, pins
from bench.servers import ServerFailed


def main() -> None:
    """Record, or compare and end with 1 if there is a difference that is not accepted."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that the server is stopped too
    chosen = [group for group in GROUPS if not options.only or group.name in options.only]
    if options.verb == "record":
        record(chosen)
    elif not compare(chosen, options.live):
        sys.exit(1)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.contract", description=__doc__)
    parser.add_argument("verb", nargs="?", choices=("compare", "record"), default="compare")
    parser.add_argument("--live", action="store_true", help="ask TorchServe now, in place of its recorded answers")
    names = [group.name for group in GROUPS]
    parser.add_argument("--only", nargs="+", metavar="GROUP", choices=names, help=f"only these of {', '.join(names)}")
    return parser.parse_args()


def record(chosen: list[Group]) -> None:
    """Write what TorchServe answers to the cases of each group."""
    install("torchserve")
    server = next(pin for pin in pins()["torchserve"] if pin.startswith("torchserve=="))
    for group in chosen:
        path = golden.write(group, asked(targets.torchserve(), group), server)
        print(f"Wrote {path}: {len(group.cases)} cases.", flush=True)


def compare(chosen: list[Group], live: bool) -> bool:
    """Print every difference between both servers; return whether all of them are accepted."""
    if live:
        install("torchserve")
    found: list[Difference] = []
    failed = []
    for group in chosen:
        try:
            theirs = asked(targets.torchserve(), group) if live else golden.read(group)
            found += differences(group.name, theirs, asked(targets.servekit(), group))
        except ServerFailed as error:
            failed.append(f"{group.name}: {error}")
    left = report(found, is_whole=len(chosen) == len(GROUPS))
    for line in failed:
        print(f"Not compared: {line}")
    print(f"{sum(len(group.cases) for group in chosen)} cases: {left} differences are not accepted.")
    return not left and not failed


def report(found: list[Difference], is_whole: bool) -> int:
    """Print the accepted differences by their reasons, then every other one; return how many those are.

    Of a run that `is_whole`, what is accepted and was not seen is named too: its row can go.
    """
    left, covered = sort_out(found, ACCEPTED)
    for each, them in covered.items():
        if them:
            print(f"{len(them)} accepted: {each.what} ({each.reason})")
            for part, theirs, ours in sorted({(it.part, it.theirs, it.ours) for it in them}):
                print(f"    {part}: TorchServe {theirs[:100]!r}, servekit {ours[:100]!r}")
        elif is_whole:
            print(f"None seen: {each.what}")
    for difference in left:
        print(difference)
    return len(left)


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
