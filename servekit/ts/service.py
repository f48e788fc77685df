"""What handlers import from `ts.service`."""

import logging
from collections.abc import Iterable

from servekit.ts.metrics.metric import Metric
from servekit.ts.metrics.sinks import current

log = logging.getLogger(__name__)


def emit_metrics(metrics: Iterable[Metric] | None) -> None:
    """Report `metrics`, each with the value that it has now."""
    for metric in metrics or ():
        log.info("[METRICS]%s", metric)
        if isinstance(metric, Metric):
            dimensions = {dimension.name: str(dimension.value) for dimension in metric.dimensions}
            current()(metric.name, metric.metric_type.value, metric.value, metric.unit, dimensions)
