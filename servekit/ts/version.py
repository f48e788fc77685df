"""The version of TorchServe whose handlers run here."""

from servekit.ts import __version__

__all__ = ["__version__"]
