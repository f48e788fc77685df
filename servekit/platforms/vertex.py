"""Vertex AI: its custom container requirements."""

from collections.abc import Mapping
from pathlib import Path

from servekit.errors import SettingError
from servekit.platforms.base import BEHIND_FRONT, VERTEX, Platform, any_address


def vertex(environ: Mapping[str, str]) -> Platform:
    """Return what Vertex AI asks for."""
    return Platform(VERTEX, any_address(environ, "AIP_HTTP_PORT", "8080"), _models(environ), settings=BEHIND_FRONT)


def _models(environ: Mapping[str, str]) -> Path | None:
    """Return the folder that AIP_STORAGE_URI names; raise SettingError for one in Google's storage and for none.

    It says nothing where servekit's own setting names the store.
    """
    uri = environ.get("AIP_STORAGE_URI", "")
    if not uri or "SERVEKIT_MODEL_STORE" in environ:
        return None
    if "://" in uri:
        raise SettingError(
            "AIP_STORAGE_URI names a bucket, and nothing is fetched from there: let the image hold the model store, or "
            "copy it in before the start, and name its folder in SERVEKIT_MODEL_STORE."
        )
    if not Path(uri).is_dir():
        raise SettingError("AIP_STORAGE_URI must name a folder.")
    return Path(uri)
