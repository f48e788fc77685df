"""What all metrics have."""

import abc
from collections.abc import Sequence

from servekit.ts.metrics.metric_type_enum import MetricTypes
from servekit.ts.metrics.unit import UNITS


class MetricAbstract(abc.ABC):
    """A metric: name, unit in words, the names of its dimensions in their order, and its kind."""

    def __init__(
        self,
        metric_name: str,
        unit: str,
        dimension_names: Sequence[str] | None = None,
        metric_type: MetricTypes = MetricTypes.COUNTER,
    ) -> None:
        """Describe the metric; short units are written out."""
        self.metric_name = metric_name
        self.unit = UNITS.get(unit, unit)
        self.dimension_names = list(dimension_names or ())
        self.metric_type = metric_type

    @abc.abstractmethod
    def add_or_update(self, value: float, dimension_values: Sequence[object], request_id: str = "") -> None:
        """Report `value` for these values of the dimensions."""
