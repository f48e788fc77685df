"""Where the server would listen: whether it could, who would reach it, and whether they would need a key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servekit.cli.doctor.report import Section
from servekit.cli.ports import holder_of, require_free
from servekit.errors import SettingError, StartupError
from servekit.platforms import require_safe_ports

_LOOPBACK = ("localhost", "::1")


def ports(
    addresses: Sequence[Any],
    reuse_port: bool,
    environ: Mapping[str, str],
    is_served: bool,
    free: Callable[[tuple[str, int]], None] = require_free,
    holder: Callable[[int], str] = holder_of,
) -> Section:
    """Return what is to be said of `addresses`, (host, port) or the path of a socket each.

    `is_served` says that a server runs over the same model store: then it may be what holds them.
    """
    section = Section("Ports")
    for address in addresses:
        if isinstance(address, str):
            section.add(address, "socket", "a socket in the file system")
            continue
        host, port = address[:2]
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reach = "loopback" if is_loopback(host) else "every network that reaches this machine"
        try:
            if not reuse_port:
                free((host, port))
            section.add(name, "free", f"free, for {reach}")
        except StartupError as error:
            held = holder(port)
            if is_served and "gunicorn" in held:
                section.add(name, "served", f"held by the server that runs, {held}; for {reach}")
            else:
                section.add(name, "taken", f"cannot be listened on, for {reach}")
                section.stops(str(error))
    try:
        require_safe_ports(environ, [address[1] for address in addresses if not isinstance(address, str)])
    except SettingError as error:
        section.stops(str(error))
    return section


def is_loopback(host: str) -> bool:
    """Return True if only this machine reaches `host`."""
    return host in _LOOPBACK or host.startswith("127.")
