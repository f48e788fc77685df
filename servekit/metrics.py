"""Every metric, and the `/metrics` page that shows those of all workers together.

The only module that imports the Prometheus packages. Under Gunicorn, `PROMETHEUS_MULTIPROC_DIR` is set before it is
first imported, because the Prometheus client chooses how it stores values at its import. Labels come from the route
table and the repository, never from the wire: a client that invents paths, methods or models makes no new series.
A contract that promises a metrics page of its own keeps it in a `Page`; neither page shows what is on the other.
"""

import os
import time
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from glob import glob
from hashlib import sha256
from http import HTTPMethod
from mmap import mmap
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from servekit.config import MULTIPROCESS_DIR

if TYPE_CHECKING:
    from flask import Flask

if MULTIPROCESS_DIR in os.environ:
    # The client asks the system for the process at every count; here a process that was forked notes it once.
    _process = [os.getpid()]
    os.register_at_fork(after_in_child=lambda: _process.__setitem__(0, os.getpid()))
    values.ValueClass = values.MultiProcessValue(lambda: _process[0])  # type: ignore[no-untyped-call]

UNMATCHED = "unmatched"  # the route label of a request that no route takes
OTHER = "other"  # the method label of a method that HTTP does not define

_BUCKETS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_METHODS = frozenset(HTTPMethod)

_APART = "apart:"  # how the names of what stands on a page of its own begin, in the files that all pages share
PAGE_LIMIT = 1000  # families on such a page, and series of a family, that one worker may make
# Of the histograms there: the bounds that Prometheus's clients share, in any unit.
_PAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, float("inf"))

Update = Callable[[float], None]

requests = Counter(
    "servekit_requests", "Requests answered, by method, route pattern and status", ["method", "route", "status"]
)
request_seconds = Histogram(
    "servekit_request_duration_seconds",
    "Time from the application's first sight of a request to its answer",
    ["method", "route"],
    buckets=_BUCKETS,
)
rows = Counter("servekit_rows", "Rows predicted, by model and version", ["model", "version"])
inference_seconds = Histogram(
    "servekit_inference_duration_seconds",
    "Time of a forward pass, which may serve several requests, by model and version",
    ["model", "version"],
    buckets=_BUCKETS,
)
queue_seconds = Histogram(
    "servekit_queue_duration_seconds",
    "Time that a forward pass's first rows waited for it, by model and version",
    ["model", "version"],
    buckets=_BUCKETS,
)
batch_rows = Histogram(
    "servekit_batch_rows",
    "Rows of a forward pass, by model and version",
    ["model", "version"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
models_loaded = Gauge(
    "servekit_models_loaded",
    "Workers that hold this version of the model",
    ["model", "version"],
    multiprocess_mode="livesum",
)

load_failures = Counter(
    "servekit_model_load_failures", "Versions that could not be loaded, by model and version", ["model", "version"]
)


@lru_cache(maxsize=1000)  # methods, routes and statuses are few; finding a series takes longer than counting
def _request_series(method: str, route: str, status: int) -> tuple[Callable[[], None], Callable[[float], None]]:
    return requests.labels(method, route, status).inc, request_seconds.labels(method, route).observe


def observe_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request; `route` is a pattern of the route table or UNMATCHED."""
    method = method if method in _METHODS else OTHER
    count, observe = _request_series(method, route, status)
    count()
    observe(seconds)


def observe_refusal(status: int) -> None:
    """Count a request that the application never saw, because it was no HTTP, too large, or too slow to arrive."""
    requests.labels(OTHER, UNMATCHED, status).inc()


def observe_load_failure(model: str, version: str) -> None:
    """Count a version that this worker could not load."""
    load_failures.labels(model, version).inc()


class ModelMeter:
    """The metrics and statistics of one loaded version, looked up once."""

    def __init__(self, model: str, version: str) -> None:
        self._rows = rows.labels(model, version)
        self._seconds = inference_seconds.labels(model, version)
        self._waits = queue_seconds.labels(model, version)
        self._batch_rows = batch_rows.labels(model, version)
        self._loaded = models_loaded.labels(model, version)
        self._statistics = statistics_meter(model, version)
        self.observe_request = self._statistics.observe_request
        self.observe_failure = self._statistics.observe_failure

    def set_loaded(self, is_loaded: bool = True) -> None:
        """Count this worker among those that hold the version, or no more."""
        self._loaded.set(int(is_loaded))

    def observe(self, row_count: int, seconds: float, waits: Sequence[float]) -> None:
        """Count one pass of `row_count` rows that took `seconds`, and whose requests had waited for `waits` seconds."""
        self._rows.inc(row_count)
        self._batch_rows.observe(row_count)
        self._seconds.observe(seconds)
        self._waits.observe(waits[0])
        self._statistics.observe_pass(row_count, seconds, waits)


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
        self._prefix = f"{_APART}{name}:"
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
        buckets = [self._value("histogram", family, labels, text, bound) for bound in _PAGE_BUCKETS]

        def observe(amount: float) -> None:
            buckets[bisect_left(_PAGE_BUCKETS, amount)].inc(1)
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
        files = sorted(glob(os.path.join(os.environ[MULTIPROCESS_DIR], "*.db")))
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


@dataclass
class Statistics:
    """What the statistics of protocols tell of one version: counts, and sums of seconds; `last` is a time of the clock."""

    requests: float = 0.0
    input: float = 0.0
    output: float = 0.0
    waits: float = 0.0
    joined: float = 0.0  # what passes took, for each of their requests but the first
    failures: float = 0.0
    failed: float = 0.0
    last: float = 0.0
    passes: dict[int, tuple[float, float]] = field(default_factory=dict)  # rows -> passes, and their seconds


class StatisticsMeter:
    """Counts what `Statistics` tells, in memory that all workers read; there is one a process and version.

    Many sums are written at once: a value of Prometheus for each would cost a request four times as much.
    """

    def __init__(self, model: str, version: str) -> None:
        self._lock = Lock()
        self._memory = _statistics_memory(model, version)
        self._sums = Statistics(*_SUMS.unpack_from(self._memory))

    def observe_request(self, input_seconds: float, output_seconds: float) -> None:
        """Count a request that was answered; reading it and writing its answer took so long."""
        with self._lock:
            self._sums.requests += 1
            self._sums.input += input_seconds
            self._sums.output += output_seconds
            self._write()

    def observe_failure(self, seconds: float) -> None:
        """Count a request that got no answer, after so many seconds."""
        with self._lock:
            self._sums.failures += 1
            self._sums.failed += seconds
            self._write()

    def observe_pass(self, row_count: int, seconds: float, waits: Sequence[float]) -> None:
        """Count a pass, whose requests had waited for `waits` seconds; the first of them to end writes it all down."""
        place = _SUMS.size + _PASSES.size * min(row_count, _MOST_ROWS)
        with self._lock:
            passes, total = _PASSES.unpack_from(self._memory, place)
            _PASSES.pack_into(self._memory, place, passes + 1, total + seconds)
            self._sums.waits += sum(waits)
            self._sums.joined += seconds * (len(waits) - 1)
            self._sums.last = time.time()

    def _write(self) -> None:
        sums = self._sums
        times = (sums.input, sums.output, sums.waits, sums.joined)
        _SUMS.pack_into(self._memory, 0, sums.requests, *times, sums.failures, sums.failed, sums.last)


_SUMS = Struct("<8d")  # the numbers of `Statistics`, in their order
_PASSES = Struct("<2d")  # passes of so many rows, and their seconds
_MOST_ROWS = 1024  # larger passes are counted as of so many
_STATISTICS_SIZE = _SUMS.size + _PASSES.size * (_MOST_ROWS + 1)

statistics_meter = cache(StatisticsMeter)


def statistics(model: str, version: str) -> Statistics:
    """Return the sums over all workers, also over those that have ended."""
    if MULTIPROCESS_DIR in os.environ:
        contents = [Path(name).read_bytes() for name in glob(_statistics_file(model, version, "*"))]
    else:
        contents = [bytes(statistics_meter(model, version)._memory)]
    total = Statistics()
    for content in contents:
        if len(content) == _STATISTICS_SIZE:  # else it is just being made
            _add(total, content)
    return total


def _add(total: Statistics, content: bytes) -> None:
    one = Statistics(*_SUMS.unpack_from(content))
    for name in ("requests", "input", "output", "waits", "joined", "failures", "failed"):
        setattr(total, name, getattr(total, name) + getattr(one, name))
    total.last = max(total.last, one.last)
    for row_count, (passes, seconds) in enumerate(_PASSES.iter_unpack(content[_SUMS.size :])):
        if passes:
            before = total.passes.get(row_count, (0.0, 0.0))
            total.passes[row_count] = before[0] + passes, before[1] + seconds


def _statistics_file(model: str, version: str, process: int | str) -> str:
    name = sha256(f"{model}/{version}".encode()).hexdigest()[:32]  # names of models may be longer than those of files
    return os.path.join(os.environ[MULTIPROCESS_DIR], f"statistics_{name}_{process}.bin")


def _statistics_memory(model: str, version: str) -> mmap | bytearray:
    """Return where this process counts: in a file if workers share a folder. A process that had its number goes on in it."""
    if MULTIPROCESS_DIR not in os.environ:
        return bytearray(_STATISTICS_SIZE)
    with open(_statistics_file(model, version, os.getpid()), "a+b") as file:
        file.truncate(_STATISTICS_SIZE)
        return mmap(file.fileno(), _STATISTICS_SIZE)


class _OwnFamilies(MultiProcessCollector):
    """What all workers have counted, without what stands on pages of its own."""

    def collect(self) -> Any:
        """Return the families of servekit's own page."""
        families = super().collect()  # type: ignore[no-untyped-call]
        return [family for family in families if not family.name.startswith(_APART)]


def init_app(app: "Flask") -> None:
    """Add `GET /metrics` to `app`: the text format of Prometheus, or OpenMetrics if asked for; `?name[]=` selects."""
    # Imported here because it imports Flask, which the master process, where a worker's death is marked, can do without.
    from prometheus_flask_exporter import PrometheusMetrics

    class Exporter(PrometheusMetrics):
        """The exporter, with `?name[]=` mended for several processes, where 0.23 answers it with an error."""

        def generate_metrics(self, accept_header: str | None = None, names: list[str] | None = None) -> tuple[str, str]:
            return render(accept_header, names, self.registry)

    Exporter(app, path="/metrics", export_defaults=False)


def render(accept: str | None, names: list[str] | None, registry: CollectorRegistry) -> tuple[str, str]:
    """Return the page and its content type: of all workers if they share a folder, else of `registry`."""
    if MULTIPROCESS_DIR in os.environ:
        registry = CollectorRegistry(auto_describe=bool(names))  # names can only be selected once they are described
        _OwnFamilies(registry)  # type: ignore[no-untyped-call]
    try:
        encode, content_type = choose_encoder(accept or "")
    except (TypeError, ValueError):  # a version in the header that is no version
        encode, content_type = choose_encoder("")
    selected = registry.restricted_registry(names) if names else registry
    return encode(selected).decode(), content_type


def mark_worker_dead(pid: int) -> None:
    """Forget the gauges of a worker that has ended; what it counted stays counted."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
