"""From the desired state to memory: the models of one worker, and the few operations that change what all workers hold.

A change is tried in the worker that was asked for it: a model that cannot be loaded there changes nothing. Then the
desired state is written, and every worker loads what is new before it drops what is old.
"""

import copy
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from servekit.batcher import Backlog, beside
from servekit.config import Settings, usable_cores
from servekit.desired import Desired, Entry
from servekit.errors import (
    DefaultVersionInUse,
    ModelLoadError,
    ModelNotFound,
    ModelNotLoaded,
    NotReady,
    VersionExists,
    VersionNotFound,
    WorkersFailed,
)
from servekit.loading import load_entry
from servekit.memory import free_garbage
from servekit.metrics import observe_load
from servekit.model import Model, ReportMetric, ignore_metric
from servekit.state import Report, State
from servekit.stores import entries_of

log = logging.getLogger(__name__)

LOAD_SECONDS = 120.0  # for all workers to load what one has loaded
UNDO_SECONDS = 10.0  # for those that could load it to drop it again

Key = tuple[str, str]  # name and version
Step = Callable[[Desired], Desired]  # from what is desired to what is to be


class Repository:
    """The loaded models of one worker; looking one up never touches the disk."""

    def __init__(self, state: State, settings: Settings, report_metric: ReportMetric = ignore_metric) -> None:
        """Load what `state` says, in a worker that has joined it; raise ModelLoadError for what cannot be.

        `report_metric` is given what the code of archives measures.
        """
        self._state = state
        self._settings = settings
        self._report_metric = report_metric
        self._backlog = Backlog(settings.max_waiting)
        self._started = time.time()
        self._changing = threading.Lock()  # held while models come and go in this process
        self._reporting = threading.Lock()  # a report must not come after a newer one
        self._entries: dict[Key, Entry] = {}  # what is loaded
        self._models: Mapping[Key, Model] = {}
        self._defaults: Mapping[str, Model] = {}
        self._errors: dict[str, str] = {}
        self._refused: dict[Key, Entry] = {}  # what could not be loaded: it is tried again when it is asked for again
        desired = state.read()
        models = {}
        for entry in desired.entries():
            if entry.workers and (model := self._begin_with(entry)):
                models[entry.key], self._entries[entry.key] = model, entry
        keys = {"/".join(entry.key) for entry in desired.entries()}
        self._errors = {key: text for key, text in state.inherited.items() if key in keys} | self._errors
        self._show(models, desired)
        for model in self.models:
            model.connect()
        for model in self.models:  # not before all are loaded: a worker that ends here serves none of them
            model.meter.set_loaded()
        state.note(desired.generation, self._report())

    @classmethod
    def load(
        cls, settings: Settings, state: State | None = None, report_metric: ReportMetric = ignore_metric
    ) -> "Repository":
        """Return the models that `state` says; without one, the newest version of every model in the store.

        Raises ModelLoadError if one of them, or all, cannot be loaded.
        """
        if state is None:
            state = State.private(entries_of(settings))
        if not state.read().models and not settings.torchserve and not settings.multi_model:
            raise ModelLoadError(
                f"There is no model in {settings.model_store}; run `make train`, or set SERVEKIT_MODEL_STORE."
            )
        return cls(state, settings, report_metric)

    # Looking up.

    @property
    def models(self) -> list[Model]:
        """The loaded models, by name and version."""
        return [self._models[key] for key in sorted(self._models)]

    def get(self, name: str, version: str | None = None) -> Model:
        """Return that version of the model called `name`, or its default one.

        Raises ModelNotFound, VersionNotFound, or ModelNotLoaded for one that is registered without workers.
        """
        try:
            return self._defaults[name] if version is None else self._models[name, version]
        except KeyError:
            entry = self.find(name, version)
            raise ModelNotLoaded(f"Version {entry.version} of that model is loaded in no worker.") from None

    def find(self, name: str, version: str | None = None) -> Entry:
        """Return what is registered as that version, or as the default one; raise ModelNotFound or VersionNotFound."""
        desired = self.desired()
        entry = desired.find(name, version)
        if entry is not None:
            return entry
        if name in desired.models:
            raise VersionNotFound("That version of the model is not loaded.")
        loaded = ", ".join(sorted(desired.models)) or "none"
        raise ModelNotFound(f"That model is not loaded; the loaded ones: {loaded}.")

    def desired(self) -> Desired:
        """Return what should be served, as of now."""
        return self._state.read()

    def require_ready(self) -> None:
        """Raise NotReady, with the reason, if no prediction can be made, not yet every one that should be, or soon none."""
        if self._state.is_stopping():
            raise NotReady("The server is stopping.")
        # As far as it has followed: while new ones are loaded, the others are served.
        missing = [entry for entry in self._shown.entries() if entry.workers and entry.key not in self._models]
        if missing or not self._models:
            raise NotReady(f"{len(missing)} of the models are not loaded." if missing else "No model is loaded.")
        for model in self.models:
            model.require_ready()

    def workers(self) -> list[Report]:
        """Return what the workers that live say of themselves, in the order of their start."""
        return self._state.reports()

    # Changing, for all workers. Each returns when every worker that lives has followed.

    def register(self, entry: Entry) -> int:
        """Add a version, loaded if `entry.workers` is above 0; the first version of a name becomes its default.

        Returns how many workers are granted (`Settings.max_workers`).

        Raises VersionExists, ModelLoadError when it cannot be loaded here (nothing has changed then), or WorkersFailed
        when another worker could not (it is taken out again).
        """

        def add(desired: Desired) -> Desired:
            if entry.version in desired.models.get(entry.name, {}):
                raise VersionExists("That version of the model is registered already.")
            return desired.with_entry(granted)

        granted = entry.limited(self._settings.max_workers)
        self._change(add, [granted])
        return granted.workers

    def replace(self, entry: Entry) -> None:
        """Serve `entry` in the place of the default version of its name, which goes when all workers have followed.

        Raises as `register` does.
        """

        def swap(desired: Desired) -> Desired:
            with_new = desired.with_entry(entry).with_default(entry.name, entry.version)
            old = desired.find(entry.name)
            return with_new if old is None or old.key == entry.key else with_new.without(*old.key)

        self._change(swap, [entry])

    def serve(self, entries: Sequence[Entry]) -> None:
        """Serve `entries`, versions of one name of which the first is the default, in the place of all that it has.

        Raises as `register` does.
        """
        granted = [entry.limited(self._settings.max_workers) for entry in entries]
        self._change(lambda desired: desired.with_only(granted), granted)

    def unregister(self, name: str, version: str | None = None) -> Entry:
        """Take a version out, the default one if none is named, and return it; requests that run are answered.

        Raises ModelNotFound, VersionNotFound, or DefaultVersionInUse while the model has other versions.
        """
        removed: list[Entry] = []

        def remove(desired: Desired) -> Desired:
            entry = self._find_in(desired, name, version)
            if desired.defaults[name] == entry.version and len(desired.models[name]) > 1:
                raise DefaultVersionInUse("The default version cannot be removed while there are others.")
            removed.append(entry)
            return desired.without(*entry.key)

        try:
            self._change(remove)
        finally:  # also where a worker does not follow: it is out
            for entry in removed:
                if self.desired().find(*entry.key) != entry:
                    self._state.drop_archive(entry.folder)
        return removed[0]

    def set_default(self, name: str, version: str) -> None:
        """Answer requests that name no version by this one; raise ModelNotFound or VersionNotFound."""

        def point(desired: Desired) -> Desired:
            self._find_in(desired, name, version)
            return desired.with_default(name, version)

        self._change(point)

    def scale(self, name: str, version: str | None, workers: int, max_workers: int) -> int:
        """Ask for so many workers for a version, 0 to unload it; return how many are granted (`Settings.max_workers`).

        There are as many workers as the version that asks for the most. Raises as `register` and `find` do.
        """
        after: list[Entry] = []

        def ask(desired: Desired) -> Desired:
            entry = self._find_in(desired, name, version)
            asked = dataclasses.replace(entry, workers=workers, max_workers=max_workers)
            after.append(asked.limited(self._settings.max_workers))
            return desired.with_entry(after[0])

        self._change(ask, after)
        return after[0].workers

    def archive_folder(self) -> Path:
        """Return the name of a new folder for an archive to be unpacked into; it goes when its entry goes."""
        return self._state.archive_folder()

    def drop_archive(self, folder: Path) -> None:
        """Remove what was unpacked into a name of `archive_folder` and is not served."""
        self._state.drop_archive(str(folder))

    def note_failure(self, name: str, version: str, text: str) -> None:
        """Keep `text`, a sentence or a traceback, as what went wrong last with a version; all workers can read it."""
        key = f"{name}/{version}"
        if self._errors.get(key) == text:
            return
        self._errors[key] = text
        with self._reporting:
            self._state.report(self._report())

    # Following.

    def follow(self) -> None:
        """Apply every change of the desired state until this worker leaves; run in a thread of its own in each worker."""
        while self._state.sleep(None):
            try:
                self._apply()
            except Exception:  # it must go on following
                log.exception("The desired state could not be applied")

    def _change(self, step: Step, loads: Sequence[Entry] = ()) -> None:
        """Let `step` make the next state: try it here, write it, and wait for the others, who are named if they fail.

        `loads` are the entries to be loaded, known once `step` has been done; if they cannot be, nothing has changed.
        """
        beside(lambda: self._change_beside(step, loads))

    def _change_beside(self, step: Step, loads: Sequence[Entry]) -> None:
        try:
            with self._state.change() as desired:
                generation = self._publish(step(desired), loads)
                self._apply()
                failed = self._failures(generation, loads)
                if failed and loads:
                    undone = self._state.write(desired)
                    self._apply()
                    self._state.wait(undone, UNDO_SECONDS)
        except OSError as error:
            log.error("The desired state could not be written: %s", error.strerror)
            raise WorkersFailed("The change could not be written down.") from error
        if failed:
            raise WorkersFailed(failed)

    def _publish(self, desired: Desired, loads: Sequence[Entry]) -> int:
        """Load `loads` here, then write `desired`; raise ModelLoadError, and change nothing, if that fails."""
        with self._changing:
            before = self._entries, self._models
            try:
                for entry in loads:
                    if entry.workers and not self._holds(entry):
                        self._models = {**self._models, entry.key: self._load(entry)}
                        self._entries = {**self._entries, entry.key: entry}
                return self._state.write(desired)
            except BaseException:
                self._entries, self._models = before
                raise

    def _failures(self, generation: int, loads: Sequence[Entry]) -> str:
        """Wait for all workers; return a sentence about those that could not follow, or ""."""
        seconds = max([LOAD_SECONDS, *(2.0 * entry.options.get("startup_timeout", 0) for entry in loads)])
        behind = self._state.wait(generation, seconds)
        if behind:
            return f"{behind} of the workers did not follow within {seconds:.0f} seconds."
        keys = {entry.key for entry in loads if entry.workers}
        for worker in self._state.reports():
            for key in sorted(keys - set(worker.loaded)):
                return f"Worker {worker.pid} could not load it: {worker.errors.get('/'.join(key), 'it gave no reason')}"
        return ""

    def _apply(self) -> None:
        """Load what is new, then drop what is gone; what cannot be loaded is noted, and the old goes on."""
        with self._changing:
            is_less = self._follow_to(self._state.read())  # not read before: who waited here would go back to what was
        if is_less:
            free_garbage()

    def _follow_to(self, desired: Desired) -> bool:
        """Hold what `desired` says, as far as it can be loaded; return True if a model has been dropped."""
        wanted = {entry.key: entry for entry in desired.entries() if entry.workers}
        models = {key: model for key, entry in wanted.items() if (model := self._model_of(entry))}
        dropped = [model for key, model in self._models.items() if models.get(key) is not model]
        for key in {*self._entries, *self._refused} - set(wanted):
            self._entries.pop(key, None)
            self._refused.pop(key, None)
            self._errors.pop("/".join(key), None)
        self._show(models, desired)
        for model in dropped:
            model.meter.set_loaded(False)
        for model in models.values():
            model.meter.set_loaded()
        with self._reporting:
            self._state.note(desired.generation, self._report())
        return bool(dropped)

    def _model_of(self, entry: Entry) -> Model | None:
        """Return the model that is to serve `entry`, loaded now if need be; the one of before if it cannot be loaded."""
        held = self._models.get(entry.key)
        if not self._holds(entry):
            if self._refused.get(entry.key) == entry:
                return held
            try:
                held = self._load(entry)
            except ModelLoadError as error:
                self._note_refusal(entry, error)
                return held
        self._entries[entry.key] = entry
        return held

    def _holds(self, entry: Entry) -> bool:
        held = self._entries.get(entry.key)
        return held is not None and entry.key in self._models and held.is_same_model(entry)

    def _load(self, entry: Entry) -> Model:
        def note(text: str) -> None:
            self.note_failure(*entry.key, text)

        started = time.monotonic()
        try:
            model = load_entry(entry, self._settings, self._backlog, note, self._report_metric, self.get)
        except Exception as error:  # the disk and the code of a model may fail in any way
            observe_load(*entry.key, time.monotonic() - started, is_loaded=False)
            if isinstance(error, ModelLoadError):
                raise
            raise ModelLoadError(f"The model {entry.name} cannot be loaded: {type(error).__name__}: {error}.") from error
        observe_load(*entry.key, time.monotonic() - started, is_loaded=True)
        model.share_refusals(self._state.refusal_of(*entry.key))
        self._refused.pop(entry.key, None)
        self._errors.pop("/".join(entry.key), None)
        return model

    def _begin_with(self, entry: Entry) -> Model | None:
        """Load `entry` at the start of this worker; None if it cannot be and need not be."""
        try:
            return self._load(entry)
        except ModelLoadError as error:
            if entry.is_required:
                raise
            self._note_refusal(entry, error)
            return None

    def _note_refusal(self, entry: Entry, error: ModelLoadError) -> None:
        log.error("%s/%s cannot be served: %s", *entry.key, error)
        self._refused[entry.key], self._errors["/".join(entry.key)] = entry, str(error)

    def _show(self, models: Mapping[Key, Model], desired: Desired) -> None:
        """Let requests see `models`."""
        threads = max(1, usable_cores() // desired.workers)
        for model in models.values():
            model.use_threads(threads)
        self._models, self._shown = models, desired
        self._defaults = {
            name: models[name, version] for name, version in desired.defaults.items() if (name, version) in models
        }

    def _report(self) -> Report:
        return Report(os.getpid(), self._started, tuple(sorted(self._models)), copy.copy(self._errors))

    def _find_in(self, desired: Desired, name: str, version: str | None) -> Entry:
        return desired.find(name, version) or self.find(name, version)
