"""What should be served: the registered versions of models, as one value that is changed by making another.

Standard library only: the master imports this.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """One version that is registered.

    `workers` 0 means that it is not loaded; any other number that every worker holds it, and that there should be so
    many. `options` belong to the contract that registered it; the core hands them to the engine.
    """

    name: str
    version: str
    format: str  # "servekit": a folder with model.json; "torchserve": an unpacked archive; see servekit/loading
    source: str  # as the operator named it
    folder: str  # where it lies, absolute
    workers: int = 1
    max_workers: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_required: bool = True  # a worker does not start without it

    @property
    def key(self) -> tuple[str, str]:
        """Name and version."""
        return self.name, self.version

    def limited(self, most: int) -> "Entry":
        """Return this version with at most so many workers."""
        return dataclasses.replace(self, workers=min(self.workers, most), max_workers=min(self.max_workers, most))

    def is_same_model(self, other: "Entry") -> bool:
        """Return True if `other` would load the same thing: it may differ in how many workers it should have."""
        mine, its = self, other
        return (mine.key, mine.format, mine.folder, mine.options) == (its.key, its.format, its.folder, its.options)


@dataclasses.dataclass(frozen=True)
class Desired:
    """What should be served: the registered versions by name, and which version of each is the default."""

    generation: int = 0
    models: Mapping[str, Mapping[str, Entry]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fewest_workers: int = 1  # whatever the versions ask for

    @classmethod
    def of(cls, entries: list[Entry], generation: int = 0) -> "Desired":
        """Return the state of `entries`; the first version of each name is its default."""
        desired = cls(generation)
        for entry in entries:
            desired = desired.with_entry(entry)
        return desired

    def entries(self) -> list[Entry]:
        """Return all versions, by name and then in the order of their registration."""
        return [entry for name in sorted(self.models) for entry in self.models[name].values()]

    def find(self, name: str, version: str | None = None) -> Entry | None:
        """Return that version, or the default one, or None."""
        return self.models.get(name, {}).get(self.defaults.get(name, "") if version is None else version)

    def with_entry(self, entry: Entry) -> "Desired":
        """Return this state with `entry` in it; the first version of a name becomes its default."""
        models = {**self.models, entry.name: {**self.models.get(entry.name, {}), entry.version: entry}}
        return dataclasses.replace(self, models=models, defaults={entry.name: entry.version, **self.defaults})

    def with_only(self, entries: Sequence[Entry]) -> "Desired":
        """Return this state with `entries` as all versions of their one name, the first of them its default."""
        desired = self
        for old in self.models.get(entries[0].name, {}):
            desired = desired.without(entries[0].name, old)
        for entry in entries:
            desired = desired.with_entry(entry)
        return desired

    def with_default(self, name: str, version: str) -> "Desired":
        """Return this state with another default version of `name`."""
        return dataclasses.replace(self, defaults={**self.defaults, name: version})

    def without(self, name: str, version: str) -> "Desired":
        """Return this state without that version, if it is in it."""
        if self.find(name, version) is None:
            return self
        versions = {each: entry for each, entry in self.models[name].items() if each != version}
        models = {each: found for each, found in self.models.items() if each != name}
        if versions:
            return dataclasses.replace(self, models={**models, name: versions})
        defaults = {each: default for each, default in self.defaults.items() if each != name}
        return dataclasses.replace(self, models=models, defaults=defaults)

    def restricted(self, names: Collection[str]) -> "Desired":
        """Return this state with the models called `names` only, which is how some clients are to see it."""
        models = {name: versions for name, versions in self.models.items() if name in names}
        defaults = {name: version for name, version in self.defaults.items() if name in names}
        return dataclasses.replace(self, models=models, defaults=defaults, fewest_workers=self.workers)

    @property
    def workers(self) -> int:
        """How many workers there should be: the most that a version asks for, and at least `fewest_workers`."""
        return max([self.fewest_workers, *(entry.workers for entry in self.entries())])

    def to_json(self) -> str:
        """Return the text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Desired":
        """Read what `to_json` wrote."""
        value = json.loads(text)
        models = {
            name: {version: Entry(**entry) for version, entry in versions.items()}
            for name, versions in value["models"].items()
        }
        return cls(value["generation"], models, value["defaults"], value["fewest_workers"])
