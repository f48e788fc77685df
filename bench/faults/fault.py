"""One row of the table: a fault, what is to be reached under it, and what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a fault did to the server and its clients."""

    measured: str  # one phrase with the figures, for the table
    is_reached: bool
    figures: Mapping[str, Any] = field(default_factory=dict)  # the raw numbers, for the JSON


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, done to a server of its own by `run`."""

    name: str  # short; also what `python -m bench.faults NAME` takes
    title: str  # the first cell of its row
    to_reach: str  # the bar, one phrase
    run: Callable[[], Outcome]
    limit_seconds: float = 120.0  # after which it is ended, and its row says so


class NotMeasured(Exception):
    """A fault could not be done to the server: the bench, not the server, has failed."""
