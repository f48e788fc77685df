"""Keeps a server busy: `python -m bench.faults.busy --port 5001 --path /predict --body value=5 --kind TYPE`."""

import argparse
import json
import os

from bench import machine
from bench.cases import Request
from bench.load import Generator


def body_of(text: str) -> bytes:
    """Return what `text` stands for: itself, or the content of the file whose name follows an @."""
    if not text.startswith("@"):
        return text.encode()
    return (machine.ROOT / text[1:]).read_bytes()


def main() -> None:
    """Read the command line, send, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m bench.faults.busy", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--kind", default="application/json")
    parser.add_argument("--body", required=True, help="or @ and the name of a file")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    os.sched_setaffinity(0, {machine.split_cores().load})
    request = Request(options.path, options.kind, body_of(options.body)).encode()
    generator = Generator(options.port, request, options.connections, 30.0)
    try:
        print(json.dumps(generator.closed(0.0, options.seconds)))
    finally:
        generator.close()


if __name__ == "__main__":
    main()
