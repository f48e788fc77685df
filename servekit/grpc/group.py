"""A group of gRPC processes on one address, between which the kernel shares out the connections (SO_REUSEPORT)."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence

from servekit.errors import StartupError

RESTART_SECONDS = 1.0  # between two starts of a process that does not live
GAVE_UP = 3  # the exit status of a process that cannot start, so that another try is no use


async def run_group(command: Sequence[str], count: int, lifeline: int) -> bool:
    """Run `command` `count` times until SIGTERM or SIGINT, starting a process that dies again; return True.

    Each inherits `lifeline`. Returns False, with all of them ended, if one cannot start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    slots = [asyncio.ensure_future(_keep_running(command, lifeline, stop)) for _ in range(count)]
    return all(await asyncio.gather(*slots))


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket that holds an address for a group without listening; `port` may be 0 for any.

    Raises StartupError if it cannot be had.
    """
    holder = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        holder = socket.socket(family, socket.SOCK_STREAM)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError as error:
        if holder is not None:
            holder.close()
        raise StartupError(f"{host}:{port} cannot be listened on: {error.strerror}; choose another address.") from None
    return holder


async def _keep_running(command: Sequence[str], lifeline: int, stop: asyncio.Event) -> bool:
    stopping = asyncio.ensure_future(stop.wait())
    while not stop.is_set():
        process = await asyncio.create_subprocess_exec(*command, pass_fds=[lifeline])
        ending = asyncio.ensure_future(process.wait())
        await asyncio.wait([ending, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await ending
        elif process.returncode == GAVE_UP:
            stop.set()
            return False
        else:
            print(f"The gRPC process {process.pid} ended with status {process.returncode}; another one starts.", file=sys.stderr)
            await asyncio.wait([stopping], timeout=RESTART_SECONDS)
    return True


def command_of(*arguments: str) -> list[str]:
    """Return the command of one process of a group."""
    return [sys.executable, "-m", "servekit.grpc", *arguments]


def pipe() -> tuple[int, int]:
    """Return the ends of a pipe, the reading one being for processes of a group: it ends when this process does."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    return reading, writing
