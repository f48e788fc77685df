"""From disk to memory: which versions a model store holds, and the models loaded from it."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from servekit.errors import ModelLoadError, ModelNotFound, NotReady
from servekit.model import Model, load_model

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]*")


class Repository:
    """The loaded models of one worker, by name; looking one up never touches the disk."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def load(cls, store: Path) -> "Repository":
        """Load the newest version of every model in `store`; raise ModelLoadError if one, or all, cannot be."""
        versions = scan(store)
        if not versions:
            raise ModelLoadError(f"There is no model in {store}; run `make train`, or set SERVEKIT_MODEL_STORE.")
        return cls(load_model(name, str(max(found)), store / name / str(max(found))) for name, found in versions.items())

    @property
    def models(self) -> list[Model]:
        """The loaded models, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def get(self, name: str) -> Model:
        """Return the model called `name`; raise ModelNotFound."""
        try:
            return self._models[name]
        except KeyError:
            loaded = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"That model is not loaded; the loaded ones: {loaded}.") from None

    def require_ready(self) -> None:
        """Raise NotReady, with the reason, if no prediction can be made."""
        if not self._models:
            raise NotReady("No model is loaded.")


def scan(store: Path) -> dict[str, list[int]]:
    """Return the versions that `store` holds, by model name, in order; what is no model is passed over.

    A folder whose name begins with a dot is a version that is still being written.
    """
    versions: dict[str, list[int]] = {}
    for folder in sorted(store.glob("*/*")):
        name, version = folder.parent.name, folder.name
        if version.startswith(".") or not folder.is_dir():
            continue
        if _NAME.fullmatch(name) and _VERSION.fullmatch(version):
            versions.setdefault(name, []).append(int(version))
        else:
            log.warning("Passed over %s: a version folder is <name>/<number>, such as mnist/1.", folder)
    return {name: sorted(found) for name, found in versions.items()}
