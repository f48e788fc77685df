"""What goes wrong with handlers' metrics."""


class GeneralMetricsCacheError(Exception):
    """Anything else."""


class MetricsCacheIOError(OSError):
    """The file that lists the metrics cannot be read."""


class MetricsCachePyYamlError(Exception):
    """The file that lists the metrics is not YAML."""


class MetricsCacheTypeError(TypeError):
    """An argument of the wrong type."""


class MetricsCacheValueError(ValueError):
    """An argument that is none of those possible."""


class MetricsCacheKeyError(KeyError):
    """No such metric."""
