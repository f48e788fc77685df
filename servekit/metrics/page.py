"""Metrics pages of contracts that promise one of their own; neither shows what is on the other."""

import os
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import escape, glob
from threading import Lock
from typing import Any

from prometheus_client import values
from prometheus_client.multiprocess import MultiProcessCollector

from servekit.config import MULTIPROCESS_DIR
from servekit.metrics.values import Update

APART = "apart:"  # how the names of what stands on a page of its own begin, in the files that all pages share
PAGE_LIMIT = 1000  # families on such a page, and series of a family, that one worker may make
# Of the histograms there: the bounds that Prometheus's clients share, in any unit.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, float("inf"))


@dataclass
class Family:
    """One metric of a `Page`, of all workers: `series` is labels, as text, -> bound of a bucket or None -> value.

    Only a histogram has bounds; its buckets are not summed up, and its None is the sum of what was observed.
    """

    kind: str  # "counter", "gauge" or "histogram"
    text: str
    series: dict[str, dict[float | None, float]] = field(default_factory=dict)


class Page:
    """The metrics of a page of its own; `page` gives the one of a name.

    A series is made when it is first asked for, and its name and labels are those that are given: labels are text that
    only the page's renderer understands. Counters outlive their workers, gauges do not.
    """

    def __init__(self, name: str) -> None:
        self._prefix = f"{APART}{name}:"
        self._lock = Lock()  # two values for one series in one process would each forget what the other counts
        self._updates: dict[tuple[str, str, str], Update] = {}
        self._made: Tally[str] = Tally()
        self._values: list[tuple[str, str, str, str, float | None, Any]] = []

    def series(self, kind: str, family: str, labels: str, text: str) -> Update | None:
        """Return what adds to a counter, sets a gauge or observes a histogram; None if there are too many already.

        `text` says what the family is.
        """
        key = (kind, family, labels)
        found = self._updates.get(key)
        if found is None:
            with self._lock:
                found = self._updates.get(key) or self._make(key, text)
        return found

    def families(self) -> dict[str, Family]:
        """Return the families of all workers by name. Of one that workers disagree about, the first kind counts."""
        found: dict[str, Family] = {}
        for kind, name, text, labels, bound, value in self._samples():
            family = found.setdefault(name, Family(kind, text))
            if family.kind == kind:
                family.series.setdefault(labels, {})[bound] = value
        return found

    def _make(self, key: tuple[str, str, str], text: str) -> Update | None:
        kind, family, labels = key
        if self._made[family] >= PAGE_LIMIT or (family not in self._made and len(self._made) >= PAGE_LIMIT):
            return None
        self._made[family] += 1
        update: Update = self._histogram(family, labels, text) if kind == "histogram" else self._single(*key, text)
        self._updates[key] = update
        return update

    def _single(self, kind: str, family: str, labels: str, text: str) -> Update:
        value = self._value(kind, family, labels, text)
        return value.inc if kind == "counter" else lambda amount: value.set(amount, time.time())

    def _histogram(self, family: str, labels: str, text: str) -> Update:
        total = self._value("histogram", family, labels, text)
        buckets = [self._value("histogram", family, labels, text, bound) for bound in _BUCKETS]

        def observe(amount: float) -> None:
            buckets[bisect_left(_BUCKETS, amount)].inc(1)
            total.inc(amount)

        return observe

    def _value(self, kind: str, family: str, labels: str, text: str, bound: float | None = None) -> Any:
        pairs = {"labels": labels} | ({} if bound is None else {"le": str(bound)})
        name = f"{self._prefix}{kind}:{family}"
        named = (name, list(pairs), list(pairs.values()), text)
        value = values.ValueClass(kind, name, *named, multiprocess_mode="livemostrecent")
        self._values.append((kind, family, text, labels, bound, value))
        return value

    def _samples(self) -> Iterator[tuple[str, str, str, str, float | None, float]]:
        """Give kind, family, text, labels, bound and value of every sample, of all workers if they share a folder."""
        if MULTIPROCESS_DIR not in os.environ:
            for *what, value in list(self._values):
                yield (*what, value.get())
            return
        files = sorted(glob(os.path.join(escape(os.environ[MULTIPROCESS_DIR]), "*.db")))
        for metric in MultiProcessCollector.merge(files, accumulate=False):  # type: ignore[no-untyped-call]
            if metric.name.startswith(self._prefix):
                kind, family = metric.name.removeprefix(self._prefix).split(":", 1)
                for sample in metric.samples:
                    bound = float(sample.labels["le"]) if "le" in sample.labels else None
                    yield kind, family, metric.documentation, sample.labels["labels"], bound, sample.value


@cache
def page(name: str) -> Page:
    """Return the page of this name, the same one each time."""
    return Page(name)
