"""A chain of models that answers as one: Triton's `ensemble_scheduling`.

Between the steps tensors have the shapes that clients of the models see: with rows first where a model is batched,
without an axis for them where it is not. Members are looked up when a request comes, so each may be replaced.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servekit.errors import InvalidInput, ModelLoadError, ModelNotFound, NotReady
from servekit.handlers.tensors import require_fit
from servekit.line import Cell
from servekit.metrics import ModelMeter
from servekit.model import Model
from servekit.record import record
from servekit.signature import Signature
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import Tensors, concatenate, row_count, slice_rows

_MOST_PASSES = 1000  # of one request
_MOST_LEVELS = 20  # of ensembles in ensembles

Find = Callable[[str, str | None], Model]  # name and version (None: the default one); raises ModelNotFound or NotReady


@dataclasses.dataclass(frozen=True)
class Step:
    """One member, and which tensors of the ensemble its inputs and outputs, the keys, are."""

    model: str
    version: str | None
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    @property
    def label(self) -> str:
        """What people call it."""
        return self.model if self.version is None else f"{self.model}, version {self.version}"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a tensor between two steps is: its dtype, and its whole shape, -1 where it is free."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: TensorSpec, is_batched: bool) -> "Kind":
        """Return that of a tensor of a model, which is batched or not."""
        return cls(tensor.dtype, tensor.shape if is_batched else tensor.shape[1:])

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    def fits(self, wanted: "Kind", is_encoded: bool) -> bool:
        """Return True if a tensor of this kind can be given where `wanted` is; axes of size 1 may be more or fewer."""
        if is_encoded and self.dtype == "bytes":
            return _same(_without_ones(self.shape), (-1,)) or not _without_ones(self.shape)
        if self.dtype != wanted.dtype:
            return False
        return _same(self.shape, wanted.shape) or _same(_without_ones(self.shape), _without_ones(wanted.shape))


class Ensemble(Model):
    """A model made of others; it holds no network, and its members batch and count by themselves."""

    def __init__(
        self,
        name: str,
        version: str,
        spec: ModelSpec,
        signature: Signature,
        steps: Sequence[Step],
        find: Find,
        source: str,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`find` looks members up; `source` is the file that describes the ensemble, for people.

        Raises ModelLoadError if tensors come from nowhere, or go nowhere.
        """
        self.name, self.version = name, version
        self.spec, self.config = spec, config
        self.signature: Signature = signature
        self._find, self._source = find, source
        self._known: list[Model] = []  # the members that have been checked
        self._passes = len(steps)  # of one request, through all that the members are made of
        try:
            self._steps = in_order(steps, signature)
            if any(step.model == name for step in steps):
                raise ValueError("it names itself as a step")
        except ValueError as error:
            raise ModelLoadError(f"{source}: {error}; correct ensemble_scheduling.") from error

    @property
    def device(self) -> str:  # type: ignore[override]
        """Where its members compute: "cuda" if one of them does."""
        return "cuda" if any(member.device == "cuda" for member in self._known) else "cpu"

    def share_refusals(self, at: Cell) -> None:
        """Do nothing: its members refuse."""

    @property
    def waiting(self) -> int:
        """No rows: they wait in the members."""
        return 0

    def use_threads(self, threads: int) -> None:
        """Do nothing: the members have been told."""

    @property
    def steps(self) -> Sequence[Step]:
        """The members, in the order in which they are called."""
        return self._steps

    @property
    def known(self) -> Sequence[Model]:
        """The members that the ensemble has been checked against."""
        return self._known

    def connect(self) -> None:
        """Check the ensemble against the members that are there; raise ModelLoadError if it does not fit them."""
        try:
            self._members()
        except NotReady:  # they may come later, and are checked then
            pass
        except ValueError as error:
            raise ModelLoadError(f"{self._source}: {error}; correct ensemble_scheduling, or that model.") from error

    def require_ready(self) -> None:
        """Raise NotReady, with a sentence that names it, for a member that is not loaded or does not fit."""
        for member in self._ready_members():
            member.require_ready()

    def predict(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the answer for every row of `tensors`; raises as its members do, and NotReady for one that is missing."""
        started = time.monotonic()
        try:
            answer = self._chain(tensors, deadline)
        except Exception as error:  # its member has counted what its own code raised
            self.meter.observe_failure(error, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        self.meter.observe(row_count(tensors), seconds, [0.0])
        self.meter.observe_prediction(seconds)
        if (current := record.get()) is not None:  # its members have named themselves
            current.model, current.version = self.name, self.version
        return answer

    @cached_property
    def meter(self) -> ModelMeter:
        """The metrics of this version, as of any other."""
        return ModelMeter(self.name, self.version, "ensemble", self.device)

    def _chain(self, tensors: Tensors, deadline: float) -> Tensors:
        members = self._ready_members()
        tensors = self._as_described(tensors)
        between = {name: _leave(self.signature, array) for name, array in tensors.items()}
        for step, member in zip(self._steps, members, strict=True):
            assert member.signature is not None  # it has been checked
            given = {tensor.name: _enter(member.signature, tensor, between[step.inputs[tensor.name]])
                     for tensor in member.signature.inputs}
            answer = member.predict(given, deadline)
            between |= {name: _leave(member.signature, answer[output]) for output, name in step.outputs.items()}
        return {tensor.name: _enter(self.signature, tensor, between[tensor.name]) for tensor in self.signature.outputs}

    def predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        """Return an answer, or what is wrong with it, for each of `requests`: a bad one fails alone."""
        try:
            together = concatenate(requests)
        except (KeyError, ValueError):  # their names or shapes differ
            return [self._attempt(request, deadline) for request in requests]
        outputs = self._attempt(together, deadline)
        if isinstance(outputs, InvalidInput):
            return [outputs] if len(requests) == 1 else [self._attempt(request, deadline) for request in requests]
        ends = np.cumsum([row_count(request) for request in requests]).tolist()
        return [slice_rows(outputs, slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]

    def _attempt(self, tensors: Tensors, deadline: float) -> Tensors | InvalidInput:
        try:
            return self.predict(tensors, deadline)
        except InvalidInput as error:
            return error

    def _as_described(self, tensors: Tensors) -> Tensors:
        """Return what came in, checked, with the axes of size 1 that the description has."""
        kinds = {tensor.name: tensor for tensor in self.signature.inputs}
        shaped = {name: _shaped(array, kinds[name].shape) if name in kinds else array for name, array in tensors.items()}
        require_fit(shaped, self.signature.inputs)
        return shaped

    def _ready_members(self) -> list[Model]:
        try:
            return self._members()
        except ValueError as error:
            raise NotReady(f"This ensemble cannot answer: {error}.") from None

    def _members(self, above: tuple["Ensemble", ...] = ()) -> list[Model]:
        """Return the members by step; raise NotReady for one that is missing, ValueError if the ensemble does not fit them.

        `above` are the ensembles that this one is looked at for.
        """
        if self in above:
            raise ValueError("it is a part of itself")
        if len(above) == _MOST_LEVELS:
            raise ValueError(f"ensembles are nested more than {_MOST_LEVELS} deep")
        members = []
        for step in self._steps:
            try:
                members.append(self._find(step.model, step.version))
            except (ModelNotFound, NotReady):
                raise NotReady(f"This ensemble needs the model {step.label}, which is not loaded.") from None
        if any(mine is not its for mine, its in zip_longest(members, self._known)):
            self._check(members, (*above, self))
            self._known = members
        return members

    def _check(self, members: Sequence[Model], above: tuple["Ensemble", ...]) -> None:
        """Raise ValueError, with what is wrong, unless every tensor fits where it is used."""
        if self.name in _names_in(members):
            raise ValueError("it is a part of itself")
        self._passes = 0
        for member in members:  # an ensemble's own members first
            if isinstance(member, Ensemble):
                member._members(above)
            self._passes += member._passes if isinstance(member, Ensemble) else 1
        if self._passes > _MOST_PASSES:  # ensembles of ensembles may double them at each level
            raise ValueError(f"a request would take {self._passes} passes; at most {_MOST_PASSES} are served")
        kinds = {tensor.name: Kind.of(tensor, self.signature.is_batched) for tensor in self.signature.inputs}
        for step, member in zip(self._steps, members, strict=True):
            if member.signature is None:
                raise ValueError(f"the model {step.label} reads requests by itself and cannot be a step")
            if self.signature.is_batched and not member.signature.is_batched:
                raise ValueError(f"it has a max_batch_size, but its step {step.label} takes one request at a time")
            _check_step(step, member.signature, kinds)
            outputs = {tensor.name: tensor for tensor in member.signature.outputs}
            for output, name in step.outputs.items():
                kinds[name] = Kind.of(outputs[output], member.signature.is_batched)
        for tensor in self.signature.outputs:
            wanted = Kind.of(tensor, self.signature.is_batched)
            if not kinds[tensor.name].fits(wanted, is_encoded=False):
                raise ValueError(f"its output {tensor.name} is {wanted}, but its step gives {kinds[tensor.name]}")


def in_order(steps: Sequence[Step], signature: Signature) -> list[Step]:
    """Return `steps` so that each comes after those that give it tensors.

    Raises ValueError for a tensor that nothing gives, that two give, or for an input of the ensemble that none takes.
    """
    if not steps:
        raise ValueError("it has no step")
    if len(steps) > _MOST_PASSES:
        raise ValueError(f"it has {len(steps)} steps; at most {_MOST_PASSES} are served")
    inputs = {tensor.name for tensor in signature.inputs}
    given = [*inputs, *(name for step in steps for name in step.outputs.values())]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise ValueError(f"the tensor {twice[0]} is given twice")
    wanted = {name for step in steps for name in step.inputs.values()}
    if missing := sorted((wanted | {tensor.name for tensor in signature.outputs}) - set(given)):
        raise ValueError(f"no step and no input gives the tensor {missing[0]}")
    if unused := sorted(inputs - wanted):
        raise ValueError(f"no step takes the input {unused[0]}")
    known, waiting, ordered = inputs, list(steps), []
    while waiting:
        ready = [step for step in waiting if known.issuperset(step.inputs.values())]
        if not ready:
            raise ValueError(f"the step {waiting[0].label} waits for its own outputs")
        waiting = [step for step in waiting if step not in ready]
        ordered += ready
        known = known.union(*(step.outputs.values() for step in ready))
    return ordered


def _check_step(step: Step, signature: Signature, kinds: Mapping[str, Kind]) -> None:
    """Raise ValueError unless the names of a step are its model's, and tensors of these `kinds` are what it takes."""
    for field, names, tensors in (
        ("input", step.inputs, signature.inputs),
        ("output", step.outputs, signature.outputs),
    ):
        if unknown := sorted(set(names) - {tensor.name for tensor in tensors}):
            has = ", ".join(tensor.name for tensor in tensors)
            raise ValueError(f"the model {step.label} has no {field} called {unknown[0]}; it has {has}")
    for tensor in signature.inputs:
        if tensor.name not in step.inputs:
            raise ValueError(f"the step {step.label} gives its model no input {tensor.name}")
        kind, wanted = kinds[step.inputs[tensor.name]], Kind.of(tensor, signature.is_batched)
        if not kind.fits(wanted, tensor.name in signature.encoded):
            raise ValueError(
                f"the tensor {step.inputs[tensor.name]} is {kind}, but the input {tensor.name} of the model {step.label} "
                f"is {wanted}"
            )


def _names_in(members: Sequence[Model]) -> set[str]:
    """Return the names of `members` and of all that they are known to be made of."""
    names: set[str] = set()
    waiting, seen = list(members), set()
    while waiting:
        member = waiting.pop()
        names.add(member.name)
        if isinstance(member, Ensemble) and member not in seen:
            seen.add(member)
            names |= {step.model for step in member.steps}
            waiting += member.known
    return names


def _leave(signature: Signature, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array of a model as its clients see it."""
    return array if signature.is_batched else array[0]


def _enter(signature: Signature, tensor: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Return what clients of a model send as the array that it takes, or what it gives as they see it, rows first."""
    if tensor.name in signature.encoded and array.dtype == object:
        return array.reshape(-1)
    return _shaped(array if signature.is_batched else np.asarray(array)[np.newaxis], tensor.shape)


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return `array` with the axes of size 1 that `shape` has, if they are all that it differs in."""
    if _same(array.shape, shape):
        return array
    sizes = iter(_without_ones(array.shape[1:]))
    wanted = [size if size == 1 else next(sizes, 1) for size in shape[1:]]
    fits = next(sizes, None) is None and int(np.prod(array.shape)) == int(np.prod([len(array), *wanted]))
    return array.reshape(len(array), *wanted) if fits else array


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _same(shape: Sequence[int], other: Sequence[int]) -> bool:
    return len(shape) == len(other) and all(-1 in (mine, its) or mine == its for mine, its in zip(shape, other, strict=True))
