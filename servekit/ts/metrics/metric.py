"""A value with its name, unit and dimensions: the metrics of old handlers."""

import socket
import time
from collections.abc import Sequence

from servekit.ts.metrics.caching_metric import CachingMetric
from servekit.ts.metrics.dimension import Dimension
from servekit.ts.metrics.metric_type_enum import MetricTypes


class Metric:
    """One value; `update` reports another."""

    def __init__(
        self,
        name: str,
        value: float,
        unit: str,
        dimensions: Sequence[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        """Take the value; nothing is reported yet."""
        self.metric_type = MetricTypes.COUNTER
        self.dimensions = dimensions
        self.dimension_names = [dimension.name for dimension in dimensions]
        self.dimension_values = [dimension.value for dimension in dimensions]
        self._metric = CachingMetric(name, unit, self.dimension_names, self.metric_type)
        self.name = name
        self.unit = self._metric.unit
        self.value = value
        self.request_id = request_id
        self.metric_method = metric_method

    def update(self, value: float) -> None:
        """Report `value`."""
        self.value = value
        self._metric.add_or_update(value, self.dimension_values, self.request_id or "")

    def reset(self) -> None:
        """Report zero."""
        self.update(0)

    def __str__(self) -> str:
        dimensions = ",".join(map(str, self.dimensions))
        line = f"{self.name}.{self.unit}:{self.value}|#{dimensions}|#hostname:{socket.gethostname()},{int(time.time())}"
        return f"{line},{self.request_id}" if self.request_id else line

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON has it."""
        return {
            "MetricName": self.name,
            "Value": self.value,
            "Unit": self.unit,
            "Dimensions": self.dimensions,
            "Timestamp": int(time.time()),
            "HostName": socket.gethostname(),
            "RequestId": self.request_id,
        }
