"""One process of gRPC: its server, its address, and its end."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from servekit.errors import StartupError
from servekit.grpc.connections import Connections
from servekit.grpc.guard import Guard
from servekit.grpc.service import Service
from servekit.keys import Keyring

GRACE_SECONDS = 25.0  # below the 30 s after which orchestrators kill
HEADROOM_BYTES = 2**20  # above the largest HTTP body: names, shapes and what else a message has beside its tensors
MAX_CALLS = 1000  # under way at once in a process; more get RESOURCE_EXHAUSTED


async def serve(
    bind: str,
    server: tuple[str, int],
    max_body_bytes: int,
    is_shared: bool = False,
    lifeline: int | None = None,
    started: Callable[[int], None] = lambda port: None,
    keyring: Keyring | None = None,
) -> None:
    """Serve gRPC on `bind`, asking the HTTP server at `server`, until SIGTERM or SIGINT; `started` is told the port.

    `is_shared` lets other processes listen there, too. A `lifeline` is the reading end of a pipe: when no process holds
    its other end any more, this one ends. With a `keyring`, that of the server, strangers are turned away unread. Raises
    StartupError if the address cannot be listened on.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if lifeline is not None:
        loop.add_reader(lifeline, stop.set)
    connections = Connections(*server)
    service = Service(connections, max_body_bytes)
    guards = [Guard(keyring.knows, connections)] if keyring else []
    listener = _listen(service, guards, bind, max_body_bytes + HEADROOM_BYTES, is_shared)
    await listener[0].start()
    started(listener[1])
    await stop.wait()
    if lifeline is not None:
        loop.remove_reader(lifeline)  # at its end it can be read for ever
    service.drain()
    await listener[0].stop(GRACE_SECONDS)
    connections.close()


def _listen(
    service: Service, guards: Sequence[Guard], bind: str, max_message_bytes: int, is_shared: bool
) -> tuple[Any, int]:
    options = [
        ("grpc.so_reuseport", int(is_shared)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    server = grpc.aio.server(interceptors=guards, options=options, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers(service.handlers())
    port = 0
    with contextlib.suppress(RuntimeError):
        port = server.add_insecure_port(bind)
    if not port:
        raise StartupError(f"{bind} cannot be listened on; choose another address.")
    return server, port
