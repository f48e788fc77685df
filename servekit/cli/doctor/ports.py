"""Where the server would listen: whether it could, who would reach it, and whether they would need a key."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from servekit.cli.doctor.report import Section
from servekit.config import PREFIX, Settings
from servekit.entrance import is_loopback, name_of, require_closed
from servekit.errors import SettingError, StartupError
from servekit.keys import Keyring
from servekit.platforms import require_safe_ports
from servekit.ports import holder_of, require_free, require_path


def ports(
    addresses: Sequence[Any],
    reuse_port: bool,
    settings: Settings,
    environ: Mapping[str, str],
    is_served: bool,
    free: Callable[[tuple[str, int]], None] = require_free,
    holder: Callable[[int], str] = holder_of,
) -> Section:
    """Return what is to be said of `addresses`: (host, port), the path of a socket, or the number of one that is given.

    `is_served` says that a server runs over the same model store: then it may be what holds them.
    """
    section = Section("Ports")
    known = [(address[0], address[1]) for address in addresses if isinstance(address, list | tuple)]
    given = _sockets(section, [address for address in addresses if not isinstance(address, list | tuple)])
    for host, port in known:
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
    _keys(section, [*known, *given], settings)
    try:
        require_safe_ports(environ, [port for _, port in known])
    except SettingError as error:
        section.stops(str(error))
    return section


def _sockets(section: Section, addresses: Sequence[str | int]) -> list[tuple[str, int]]:
    """Add paths of sockets and numbers of those that are given; return where the latter listen, (host, port)."""
    names = []
    for address in addresses:
        try:
            if isinstance(address, int):
                name = name_of(address)
                names += [name] if isinstance(name, tuple) else []
                section.add(f"fd://{address}", "socket", "a socket that is given")
            else:
                require_path(address)
                section.add(address, "socket", "a socket in the file system")
        except StartupError as error:
            section.stops(str(error))
    return names


def _keys(section: Section, known: Sequence[tuple[str, int]], settings: Settings) -> None:
    """Add whether keys are asked for, and what the start would say to that."""
    try:
        count = len(Keyring(settings).keys) if settings.has_keys else 0
        section.add("keys", count, f"asked for; {count} known" if settings.has_keys else "not asked for")
        require_closed(settings, known)
    except SettingError as error:
        section.stops(str(error))
    strangers = [f"{host}:{port}" for host, port in known if not is_loopback(host)]
    if strangers and settings.allow_anonymous and not settings.has_keys:
        section.consider(
            f"Whoever reaches {', '.join(strangers)} is let in ({PREFIX}ALLOW_ANONYMOUS=true); set keys unless something in "
            "front of it asks for them."
        )
