"""The metrics of one model: `context.metrics`."""

from collections.abc import Sequence
from typing import Any

from servekit.ts.metrics.caching_metric import CachingMetric
from servekit.ts.metrics.dimension import Dimension
from servekit.ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheTypeError, MetricsCacheValueError
from servekit.ts.metrics.metric_type_enum import MetricTypes
from servekit.ts.metrics.sinks import Sink

_TIMES = ("ms", "s")
_SIZES = ("B", "kB", "MB", "GB")


class MetricCacheAbstract:
    """Metrics by kind and name; each value goes to the sink with the dimensions of the model.

    `idx` is the number of the request in its batch, None for the batch as a whole.
    """

    def __init__(self, config_file_path: str | None = None, model_name: str = "", sink: Sink | None = None) -> None:
        """Begin without metrics; `sink` takes their values, by default that of the model whose handler runs."""
        self.config_file_path = config_file_path
        self.model_name = model_name
        self.request_ids: Any = None
        self.store: list[Any] = []
        self.cache: dict[MetricTypes, dict[str, CachingMetric]] = {}
        self._sink = sink

    def set_request_ids(self, request_ids: Any) -> None:
        """Say which requests the values that follow belong to: index -> id."""
        self.request_ids = request_ids

    def add_metric(
        self,
        name: str,
        value: float,
        unit: str,
        idx: int | None = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Report a value of any unit."""
        self._report(name, value, unit, idx, self._with_model(dimensions), metric_type)

    def add_counter(
        self, name: str, value: float, idx: int | None = None, dimensions: Sequence[Dimension] | None = None
    ) -> None:
        """Add `value` to a counter."""
        self.add_metric(name, value, "count", idx, dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a time in "ms" or "s"."""
        self.add_metric(name, value, _one_of(unit, _TIMES, "time"), idx, dimensions, metric_type)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a size in "B", "kB", "MB" or "GB"."""
        self.add_metric(name, value, _one_of(unit, _SIZES, "size"), idx, dimensions, metric_type)

    def add_percent(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        dimensions: Sequence[Dimension] | None = None,
        metric_type: MetricTypes = MetricTypes.GAUGE,
    ) -> None:
        """Report a percentage."""
        self.add_metric(name, value, "percent", idx, dimensions, metric_type)

    def add_error(self, name: str, value: float, dimensions: Sequence[Dimension] | None = None) -> None:
        """Count errors."""
        given = list(dimensions or ())
        if all(dimension.name != "Level" for dimension in given):
            given.append(Dimension("Level", "Error"))
        self._report(name, value, "", None, given, MetricTypes.COUNTER)

    def add_metric_to_cache(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] = (),
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> CachingMetric:
        """Make a metric with dimensions of its own, in place of one of the same kind and name, and return it."""
        _check(metric_name, str, "metric_name must be a str")
        _check(unit, str, "unit must be a str")
        _check(metric_type, MetricTypes, "metric_type must be one of MetricTypes")
        if dimension_names:
            _check(dimension_names, list, "dimension_names must be a list of str")
        metric = CachingMetric(metric_name, unit, dimension_names, metric_type, self._sink)
        self.cache.setdefault(metric_type, {})[metric_name] = metric
        return metric

    def get_metric(self, metric_name: str, metric_type: MetricTypes = MetricTypes.COUNTER) -> CachingMetric:
        """Return a metric that was made before; raise MetricsCacheKeyError if there is none of this kind and name."""
        _check(metric_name, str, "metric_name must be a str")
        _check(metric_type, MetricTypes, "metric_type must be one of MetricTypes")
        try:
            return self.cache[metric_type][metric_name]
        except KeyError:
            raise MetricsCacheKeyError(f"There is no {metric_type.value} called {metric_name!r}.") from None

    def _with_model(self, dimensions: Sequence[Dimension] | None) -> list[Dimension]:
        given = list(dimensions or ())
        names = {dimension.name for dimension in given}
        ours = Dimension("ModelName", self.model_name), Dimension("Level", "Model")
        return given + [dimension for dimension in ours if dimension.name not in names]

    def _report(
        self, name: str, value: float, unit: str, idx: int | None, dimensions: list[Dimension], kind: MetricTypes
    ) -> None:
        metric = self.cache.get(kind, {}).get(name)
        if metric is None:
            metric = self.add_metric_to_cache(name, unit, [dimension.name for dimension in dimensions], kind)
        metric.add_or_update(value, [dimension.value for dimension in dimensions], self._request_id(idx))

    def _request_id(self, idx: int | None) -> str:
        ids = self.request_ids
        if isinstance(ids, dict):
            return str(ids[idx]) if idx in ids else ",".join(map(str, ids.values()))
        return str(ids or "")


def _one_of(unit: str, units: Sequence[str], what: str) -> str:
    if unit not in units:
        raise MetricsCacheValueError(f"The unit of a {what} is one of {', '.join(units)}.")
    return unit


def _check(value: object, expected: type, sentence: str) -> None:
    if not isinstance(value, expected):
        raise MetricsCacheTypeError(sentence)
