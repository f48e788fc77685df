"""`servekit grpc`, and `servekit-grpc`: gRPC V2 in front of a running server."""

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from urllib.parse import urlsplit

from servekit.config import Settings
from servekit.entrance import is_loopback
from servekit.errors import StartupError
from servekit.grpc.group import command_of, pipe, reserve, run_group
from servekit.keys import Keyring
from servekit.ports import require_free

BIND, SERVER = "127.0.0.1:8001", "http://127.0.0.1:5001"
NEEDED = {"grpc": "grpcio", "google.protobuf": "protobuf", "httptools": "httptools"}
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def main(arguments: Sequence[str] | None = None, name: str = "servekit-grpc") -> int:
    """Run the command `name`; return the exit status. What fails is one sentence."""
    parser = argparse.ArgumentParser(prog=name, description="Serves gRPC V2 in front of a running server.")
    parser.add_argument("--bind", default=BIND, metavar="ADDRESS", help=f"where to listen, as host:port ({BIND})")
    parser.add_argument("--server", default=SERVER, metavar="URL", help=f"the running server that is asked ({SERVER})")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="processes that share the address (1)")
    try:
        return _run(parser.parse_args(arguments))
    except StartupError as error:
        print(f"{name} cannot start: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    """Serve gRPC until SIGTERM or SIGINT; return the exit status. Raises StartupError."""
    if missing := missing_packages(NEEDED):
        raise StartupError(f"gRPC needs what is not installed here ({', '.join(missing)}): pip install 'servekit[grpc]'")
    host, port = _address(options.bind)
    server = _server(options.server)
    if options.processes < 1:
        raise StartupError("--processes must be a number above 0.")
    settings = Settings.from_environ(os.environ)
    _require_closed(settings, host.strip("[]"), options.bind)
    limit, keyring = settings.max_body_bytes, Keyring(settings) if settings.has_keys else None
    if port:
        require_free((host.strip("[]"), port))
    logging.basicConfig(format="%(asctime)s %(levelname)s [%(process)d] %(message)s")
    if options.processes > 1:
        return _run_group(host, port, server, limit, options.processes)
    from servekit.grpc.server import serve

    def say(port: int) -> None:
        _say(f"{host}:{port}", options.server)

    asyncio.run(serve(f"{host}:{port}", server, limit, started=say, keyring=keyring))
    return 0


def _run_group(host: str, port: int, server: tuple[str, int], limit: int, count: int) -> int:
    with reserve(host.strip("[]"), port) as holder:
        bind = f"{host}:{holder.getsockname()[1]}"
        lifeline, _ = pipe()
        _say(bind, f"http://{server[0]}:{server[1]}", count)
        command = command_of(bind, server[0], str(server[1]), str(limit), str(lifeline))
        return 0 if asyncio.run(run_group(command, count, lifeline)) else 1


def _require_closed(settings: Settings, host: str, bind: str) -> None:
    """Raise StartupError for an address that opens to strangers what asks for no key, as far as can be seen from here."""
    if not (settings.has_keys or settings.allow_anonymous or is_loopback(host)):
        raise StartupError(
            f"{bind} can be reached from other machines; start it with the keys of the server (SERVEKIT_KEYS or "
            "SERVEKIT_INFERENCE_KEY: docs/keys.md), or let everyone in with SERVEKIT_ALLOW_ANONYMOUS=true."
        )


def _say(bind: str, server: str, count: int = 1) -> None:
    processes = "1 process" if count == 1 else f"{count} processes"
    print(f"gRPC  {bind}  for {server}  ({processes})", flush=True)


def missing_packages(needed: Mapping[str, str]) -> list[str]:
    """Return those packages of `needed`, module -> package, whose module is not installed; none is imported for it."""
    return [package for module, package in needed.items() if not _is_there(module)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is not there
        return False


def _address(text: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[2]) > 65535:
        raise StartupError("--bind must be an address like 127.0.0.1:8001.")
    return found[1], int(found[2])


def _server(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.username:
        raise StartupError("--server must be the address of a server, like http://127.0.0.1:5001.")
    return host, port
