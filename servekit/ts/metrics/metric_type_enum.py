"""The kinds of metrics."""

import enum


class MetricTypes(enum.Enum):
    """What becomes of the values of a metric: they are added up, the last one counts, or they are sorted into buckets."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
