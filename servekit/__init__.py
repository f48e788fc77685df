"""servekit serves PyTorch models over HTTP: the front door for those who write a model's handler.

The names below are looked up on first use, because `gunicorn.conf.py` imports `servekit.config` in the master process
and numpy, which handlers need, starts threads when it is imported: the master must fork before any thread exists.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from servekit.errors import InvalidInput as InvalidInput
    from servekit.handlers.base import Handler as Handler
    from servekit.tensors import Tensors as Tensors

__version__ = "0.1.0"

_HOMES = {
    "Handler": "servekit.handlers.base",
    "InvalidInput": "servekit.errors",
    "Tensors": "servekit.tensors",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in, when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
