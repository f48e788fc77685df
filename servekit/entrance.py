"""What the master does about keys before it forks: it reads them, and starts no server that strangers reach without one.

It loads nothing that starts threads.
"""

import ipaddress
import os
import socket
from collections.abc import Iterable
from typing import Any

from gunicorn import systemd
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config

from servekit.config import Settings, seal_keys
from servekit.errors import SettingError
from servekit.keys import Keyring
from servekit.tally import Tally

_FDS = "GUNICORN_FD"  # Gunicorn's variable: the sockets that a new master takes over from an old one
_OPEN_TO_ALL = (
    "{address} can be reached from other machines, and no key is asked for: set SERVEKIT_INFERENCE_KEY and "
    "SERVEKIT_MANAGEMENT_KEY, or SERVEKIT_KEYS (docs/keys.md), or let everyone in with SERVEKIT_ALLOW_ANONYMOUS=true."
)

_tally: Tally | None = None  # made by the master before it forks; None outside Gunicorn


def prepare(server: Arbiter) -> None:
    """Read the keys, and make what the workers count requests in.

    Raises StartupError for keys that cannot be used, and for an address that is open to strangers.
    """
    global _tally
    seal_keys(os.environ)
    require_entrance(Settings.from_environ(os.environ), addresses_of(server.cfg))
    _tally = Tally()
    _seal_after_reloads(server)


def shared_tally() -> Tally | None:
    """Return what the workers of this server count requests in; None outside Gunicorn."""
    return _tally


def require_entrance(settings: Settings, addresses: Iterable[Any]) -> None:
    """Raise StartupError for keys that cannot be used, and for an address, as in `require_closed`, that is open to strangers."""
    if settings.has_keys:
        Keyring(settings)
    require_closed(settings, addresses)


def require_closed(settings: Settings, addresses: Iterable[Any]) -> None:
    """Raise SettingError if one of `addresses`, (host, port) or a path, is open to strangers, and nobody has said so."""
    if settings.has_keys or settings.allow_anonymous:
        return
    own = _torchserve_ports(settings)
    for address in addresses:
        if isinstance(address, tuple) and not is_loopback(address[0]) and address[1] not in own:
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            raise SettingError(_OPEN_TO_ALL.format(address=f"{host}:{address[1]}"))


def is_loopback(host: str) -> bool:
    """Return True if only this machine can connect to `host`, a name or an address."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError):
        return False
    return all(_is_loopback(ipaddress.ip_address(str(each).partition("%")[0])) for each in found)


def addresses_of(cfg: Config) -> list[Any]:
    """Return where a server with `cfg` listens, (host, port) or a path each, on sockets that it is given, too."""
    given = systemd.listen_fds(unset_environment=False)
    descriptors = [*range(systemd.SD_LISTEN_FDS_START, systemd.SD_LISTEN_FDS_START + given)]
    descriptors += [int(text) for text in os.environ.get(_FDS, "").split(",") if text]
    descriptors += [address for address in cfg.address if isinstance(address, int)]
    return [address for address in cfg.address if not isinstance(address, int)] + list(map(name_of, descriptors))


def name_of(descriptor: int) -> Any:
    """Return where a socket that the server is given listens, (host, port) or a path; raise SettingError if it is none."""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as listener:
            name = listener.getsockname()
    except OSError as error:
        raise SettingError(f"The socket fd://{descriptor} cannot be used: {error.strerror}.") from None
    return name[:2] if isinstance(name, tuple) else name


def _is_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _torchserve_ports(settings: Settings) -> set[int]:
    """Return the ports of TorchServe's APIs: they ask for keys of their own, unless they were told not to."""
    if not settings.torchserve:
        return set()
    from servekit.torchserve.properties import properties_of

    return {address.port for address in properties_of(settings).addresses}


def _seal_after_reloads(server: Arbiter) -> None:
    """Let a reload of `server` leave no key in the environment: Gunicorn's `raw_env` brings them back."""
    setup = server.setup

    def setup_sealed(app: Any) -> None:
        setup(app)
        seal_keys(os.environ)

    server.setup = setup_sealed
