"""From disk to memory: which versions a model store holds, and the models loaded from it."""

from collections.abc import Iterable

from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.errors import ModelLoadError, ModelNotFound, NotReady
from servekit.model import Model, load_model
from servekit.spec import scan


class Repository:
    """The loaded models of one worker, by name; looking one up never touches the disk."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def load(cls, settings: Settings) -> "Repository":
        """Load the newest version of every model in the model store; raise ModelLoadError if one, or all, cannot be."""
        store = settings.model_store
        versions = scan(store)
        if not versions:
            raise ModelLoadError(f"There is no model in {store}; run `make train`, or set SERVEKIT_MODEL_STORE.")
        newest = {name: str(found[-1]) for name, found in versions.items()}
        backlog = Backlog(settings.max_waiting)
        repository = cls(
            load_model(name, version, store / name / version, settings, backlog) for name, version in newest.items()
        )
        for model in repository.models:  # not before all are loaded: a worker that ends here serves none of them
            model.meter.set_loaded()
        return repository

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
