"""TorchServe's metrics: what is counted under its names, and the text of its metrics page.

The values are those of all workers together (see `servekit.metrics.Page`). Nothing is made before it is first counted,
so a server without TorchServe's addresses pays nothing. Metrics and dimensions are those of the catalogue; the values of
dimensions are bounded, and what is over the bound is dropped with one warning.
"""

import logging
import math
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import cache, lru_cache

from servekit import metrics
from servekit.engines.torchserve import LOAD_TIME
from servekit.metrics import PAGE_LIMIT, Family, Update
from servekit.torchserve.catalogue import (
    KINDS,
    LABEL_NAME,
    LEGACY,
    METRIC_NAME,
    NOTHING,
    STANDARD,
    Catalogue,
    Listed,
    read_catalogue,
)
from servekit.torchserve.host import Processors, readings
from servekit.torchserve.properties import Properties

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMES_SECONDS = 0.1  # the gauges of single requests are set no more often: a scrape sees one in thousands anyway
MAX_VALUE_LENGTH = 256  # of a dimension's value, characters; a handler may have it from a request

_LEVEL = "Host"
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})

Line = tuple[str, str, float]  # name of a sample, its labels as text, its value


class _State:
    """What `configure` has chosen, in this process."""

    catalogue: Catalogue = STANDARD
    detects = False
    detected: dict[str, Listed] = {}
    predicted: dict[str, float] = {}  # model -> milliseconds of its last prediction
    times_set = -math.inf  # when the gauges of single requests were set, of the monotonic clock
    warned: set[str] = set()


def configure(properties: Properties) -> None:
    """Choose what is counted in this process; until then it is TorchServe's own list, and nothing is detected.

    Raises SettingError for a `metrics_config` that cannot be used.
    """
    mode, given = properties.metrics_mode, properties.metrics_config
    _State.catalogue = read_catalogue(given) if given else STANDARD
    if mode != "prometheus":
        _State.catalogue = LEGACY if mode == "legacy" else NOTHING
    _State.detects = properties.model_metrics_auto_detect and mode == "prometheus"
    _State.detected, _State.predicted, _State.warned = {}, {}, set()
    _State.times_set = -math.inf
    for remembered in (_answers, _requests, _passes, _model_series):
        remembered.cache_clear()
    _processors()  # the use of the processors is measured from here


def observe_answer(status: int) -> None:
    """Count an answer that was sent, on any of the three addresses; TorchServe counts it after it has been made."""
    _answers(status // 100)(1)


def observe_inference(
    model_name: str, version_label: str, latency_us: float | None = None, queue_us: float | None = None
) -> None:
    """Count a request for a registered model, whether or not it was answered.

    `version_label` is the version in the address, or "default". `latency_us` is the time from its arrival to its answer,
    in microseconds, the `queue_us` that it waited for its batch included; both None for a request that failed, which
    TorchServe counts but does not time.
    """
    _requests(model_name, version_label)(1)
    if latency_us is None:
        return
    queue_us = queue_us or 0.0
    latency, queue, queue_time, thread_time = _passes(model_name, version_label)
    latency(latency_us)
    queue(queue_us)
    now = time.monotonic()
    if now - _State.times_set < TIMES_SECONDS:
        return
    _State.times_set = now
    queue_time(queue_us / 1000)
    predicted = _State.predicted.get(model_name)
    if predicted is not None:  # without it there is no telling the handler's time from ours
        thread_time(max(0.0, (latency_us - queue_us) / 1000 - predicted))


def observe_model_metric(name: str, kind: str, value: float | str, unit: str, dimensions: Mapping[str, str]) -> None:
    """Count what a handler reports by `context.metrics`; what cannot be counted is dropped with one warning.

    `kind` is counter, gauge or histogram; that of the list wins. `dimensions` are name -> value, ModelName and Level
    among them; Hostname is added here. A metric that no list names is dropped unless it may be detected.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return _warn(name, "its value is no number")
    if name == LOAD_TIME:
        return set_load_time(str(dimensions.get("WorkerName", ""))[:MAX_VALUE_LENGTH], number)
    if name == "PredictionTime":
        _note_prediction(dimensions.get("ModelName", ""), number)
    listed = _State.catalogue.model.get(name) or _State.detected.get(name) or _detect(name, kind, unit)
    if listed is None:
        return None
    if (listed.kind != "gauge" and not math.isfinite(number)) or (listed.kind == "counter" and number < 0):
        return _warn(name, "a counter only grows, and neither it nor a histogram takes infinities")
    pairs = tuple((str(each), str(content)[:MAX_VALUE_LENGTH]) for each, content in dimensions.items())
    return _model_series(listed, pairs)(number)


def set_load_time(worker: str, milliseconds: float) -> None:
    """Note how long a worker took to load its model; TorchServe calls workers W-9000-<model>_<version>."""
    _server(LOAD_TIME, worker, _LEVEL, _hostname())(milliseconds)


def render(names: Collection[str], properties: Properties) -> tuple[str, str]:
    """Return the page and its content type; `names`, if there are any, select samples by their full name."""
    mode = properties.metrics_mode
    if mode == "log":  # asked for by name, so the page is as empty as TorchServe's
        return "", CONTENT_TYPE
    page = metrics.page("torchserve").families()
    if not properties.disable_system_metrics:
        page |= _measured()
    listed = {**_State.catalogue.server, **_State.catalogue.model}
    described = [(name, Family(each.kind, _text(each))) for name, each in listed.items()]
    if mode == "prometheus":
        described += [(name, page[name]) for name in sorted(page.keys() - listed.keys())]  # what any worker has detected
    for name, family in described:
        found = page.get(name)
        family.series = found.series if found is not None and found.kind == family.kind else {}
    return "".join(line for name, family in described for line in _block(name, family, names)), CONTENT_TYPE


def number_text(value: float) -> str:
    """Return `value` as Java writes it: always with a point, and as 1.5E7 from ten million on and below a thousandth."""
    if math.isnan(value) or math.isinf(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    if value == 0 or 1e-3 <= abs(value) < 1e7:
        return repr(float(value))
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    first, *rest = map(str, digits)
    return f"{'-' * sign}{first}.{''.join(rest) or '0'}E{int(exponent) + len(rest)}"


def labels_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Return labels as the page writes them, without the braces: a comma after each, the last one too."""
    text = "".join(f'{name}="{value.translate(_ESCAPES)}",' for name, value in pairs)
    return _encodable(text)


def _block(metric: str, family: Family, names: Collection[str]) -> Iterator[str]:
    """Give the lines of one metric; none if `names` select none of its samples."""
    lines = [line for line in _lines(metric, family) if not names or line[0] in names]
    if names and not lines:
        return
    yield f"# HELP {metric} {family.text}\n"
    yield f"# TYPE {metric} {family.kind}\n"
    for name, labels, value in lines:
        yield f"{name}{{{labels}}} {number_text(value)}\n" if labels else f"{name} {number_text(value)}\n"


def _lines(name: str, family: Family) -> Iterator[Line]:
    for labels, values in sorted(family.series.items()):
        if family.kind != "histogram":
            yield name, labels, values[None]
            continue
        count = 0.0
        for bound in sorted(bound for bound in values if bound is not None):
            count += values[bound]
            yield f"{name}_bucket", f'{labels}le="{number_text(bound)}",', count
        yield f"{name}_count", labels, count
        yield f"{name}_sum", labels, values.get(None, 0.0)


def _measured() -> dict[str, Family]:
    """Return the families of what is measured when the page is asked for, as far as they are listed."""
    found: dict[str, Family] = {}
    for name, device, value in readings(_processors()):
        listed = _State.catalogue.server.get(name)
        if listed is not None:
            family = found.setdefault(name, Family(listed.kind, _text(listed)))
            levels = (_LEVEL, _hostname()) if device is None else (_LEVEL, device, _hostname())
            family.series[labels_text(zip(listed.dimensions, levels, strict=True))] = {None: value}
    return found


@cache
def _hostname() -> str:
    return socket.gethostname()


@cache
def _processors() -> Processors:
    return Processors()


@lru_cache(maxsize=100)
def _answers(hundreds: int) -> Update:
    """Return what counts answers of 200 to 299 (2), and so on; redirects and what is no answer yet are not counted."""
    if hundreds not in (2, 4) and hundreds < 5:
        return _drop
    return _server(f"Requests{min(hundreds, 5)}XX", _LEVEL, _hostname())


@lru_cache(maxsize=PAGE_LIMIT)
def _requests(model_name: str, version_label: str) -> Update:
    return _server("ts_inference_requests_total", model_name, version_label, _hostname())


@lru_cache(maxsize=PAGE_LIMIT)
def _passes(model_name: str, version_label: str) -> tuple[Update, Update, Update, Update]:
    """Return what counts latency and queue, then what sets the times of the last request."""
    inference = (model_name, version_label, _hostname())
    return (
        _server("ts_inference_latency_microseconds", *inference),
        _server("ts_queue_latency_microseconds", *inference),
        _server("QueueTime", _LEVEL, _hostname()),
        _server("WorkerThreadTime", _LEVEL, _hostname()),
    )


@lru_cache(maxsize=PAGE_LIMIT)
def _model_series(listed: Listed, dimensions: tuple[tuple[str, str], ...]) -> Update:
    """Return what counts a handler's metric: by the dimensions that are listed for it, else by those it came with."""
    given = {"Hostname": _hostname(), **dict(dimensions)}
    is_detected = listed.name in _State.detected
    wanted = tuple(name for name, _ in dimensions) if is_detected else listed.dimensions
    if missing := [name for name in wanted if name not in given]:
        _warn(listed.name, f"it came without the dimension {missing[0]}")
        return _drop
    if not all(LABEL_NAME.fullmatch(name) for name in wanted):
        _warn(listed.name, "a dimension's name is none that Prometheus takes")
        return _drop
    return _series(listed, labels_text((name, given[name]) for name in dict.fromkeys([*wanted, "Hostname"])))


def _detect(name: str, kind: str, unit: str) -> Listed | None:
    """Return how a metric that no list names is counted; None if it is not."""
    if not _State.detects:
        return None
    if METRIC_NAME.fullmatch(name) is None or kind not in KINDS or name in _State.catalogue.server:
        _warn("a handler's", "its name is one of the server's or none that Prometheus takes")
        return None
    if len(_State.detected) >= PAGE_LIMIT:
        _warn("a handler's new one", f"there are {PAGE_LIMIT} others already")
        return None
    return _State.detected.setdefault(name, Listed(name, kind, unit or "unit", ()))


def _server(name: str, *values: str) -> Update:
    listed = _State.catalogue.server.get(name)
    if listed is None:
        return _drop
    return _series(listed, labels_text(zip(listed.dimensions, values, strict=True)))


def _series(listed: Listed, labels: str) -> Update:
    found = metrics.page("torchserve").series(listed.kind, listed.name, labels, _text(listed))
    if found is None:
        _warn(listed.name, f"there are {PAGE_LIMIT} combinations of its dimensions already")
    return found or _drop


def _text(listed: Listed) -> str:
    unit = _encodable(" ".join(listed.unit.split())).replace("\\", "\\\\")
    return f"Torchserve prometheus {listed.kind} metric with unit: {unit}"


def _encodable(text: str) -> str:
    """Return `text` with a question mark for each half of a surrogate pair, which would make the page unsendable."""
    return text.encode("utf-8", "replace").decode()


def _note_prediction(model_name: str, milliseconds: float) -> None:
    if model_name in _State.predicted or len(_State.predicted) < PAGE_LIMIT:
        _State.predicted[model_name] = milliseconds


def _warn(name: str, reason: str) -> None:
    """Say once of a metric that it, or some of what it counts, is dropped."""
    if name not in _State.warned and len(_State.warned) < PAGE_LIMIT:
        _State.warned.add(name)
        log.warning("A metric is dropped (%s): %s.", name, reason)


def _drop(amount: float) -> None:
    """Count nothing."""
