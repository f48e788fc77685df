"""The metrics of one model, some of them listed beforehand in a YAML file."""

from pathlib import Path

from servekit.ts.metrics.metric_cache_abstract import MetricCacheAbstract
from servekit.ts.metrics.metric_cache_errors import MetricsCacheIOError, MetricsCacheKeyError, MetricsCachePyYamlError
from servekit.ts.metrics.metric_type_enum import MetricTypes


class MetricsCacheYamlImpl(MetricCacheAbstract):
    """What handlers find as `context.metrics`."""

    def initialize_cache(self) -> None:
        """Make the metrics that the file lists below `model_metrics`; raise an error that says what is wrong with it."""
        import yaml

        try:
            content = yaml.safe_load(Path(self.config_file_path or "").read_text(encoding="utf-8"))
            for kind, metrics in content["model_metrics"].items():
                for each in metrics:
                    self.add_metric_to_cache(each["name"], each["unit"], each["dimensions"], MetricTypes(kind))
        except OSError as error:
            raise MetricsCacheIOError(f"The list of metrics cannot be read: {error}") from error
        except yaml.YAMLError as error:
            raise MetricsCachePyYamlError(f"The list of metrics is not YAML: {error}") from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise MetricsCacheKeyError(f"The list of metrics lacks something: {error}") from error
