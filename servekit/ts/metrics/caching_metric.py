"""A metric that reports each value as it comes."""

import logging
from collections.abc import Sequence

from servekit.ts.metrics.dimension import Dimension
from servekit.ts.metrics.metric_abstract import MetricAbstract
from servekit.ts.metrics.metric_type_enum import MetricTypes
from servekit.ts.metrics.sinks import Sink, current

log = logging.getLogger(__name__)


class CachingMetric(MetricAbstract):
    """A metric of a handler; made by the handler itself, it reports to the model whose code runs."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
        sink: Sink | None = None,
    ) -> None:
        """Describe the metric; `sink` takes its values."""
        super().__init__(metric_name, unit, dimension_names, metric_type)
        self._sink = sink

    def add_or_update(self, value: float, dimension_values: Sequence[object] = (), request_id: str = "") -> None:
        """Report `value` for these values of the dimensions; one that cannot be is logged and left out."""
        names, values = self.dimension_names, list(dimension_values)
        if len(names) != len(values):
            log.error("The metric %s has the dimensions %s, not %d of them.", self.metric_name, names, len(values))
        elif self.metric_type is MetricTypes.COUNTER and value < 0:
            log.error("The metric %s is a counter, which %s would make smaller.", self.metric_name, value)
        else:
            dimensions = {name: str(each) for name, each in zip(names, values, strict=True)}
            sink = current() if self._sink is None else self._sink
            sink(self.metric_name, self.metric_type.value, value, self.unit, dimensions)

    def update(self, value: float, request_id: str = "", dimensions: Sequence[Dimension] = ()) -> None:
        """Report `value` for `dimensions`, which take the place of those that the metric had."""
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.add_or_update(value, [dimension.value for dimension in dimensions], request_id)
