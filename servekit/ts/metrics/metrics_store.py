"""The metrics of one model under the name that old handlers know."""

from typing import Any

from servekit.ts.metrics.metric_cache_abstract import MetricCacheAbstract


class MetricsStore(MetricCacheAbstract):
    """Made with the ids of the requests and the name of the model."""

    def __init__(self, request_ids: Any, model_name: str) -> None:
        """Begin without metrics."""
        super().__init__(model_name=model_name)
        self.request_ids = request_ids
