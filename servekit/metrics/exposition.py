"""The `/metrics` page, which shows the metrics of all workers together."""

import os
import platform
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from servekit.config import MULTIPROCESS_DIR
from servekit.metrics import families
from servekit.metrics.meters import KEY_REASONS, SHED_REASONS, add_in_flight, add_rows_waiting
from servekit.metrics.page import APART

if TYPE_CHECKING:
    from flask import Flask


class _OwnFamilies(MultiProcessCollector):
    """What all workers have counted, without what stands on pages of its own."""

    def collect(self) -> Any:
        """Return the families of servekit's own page."""
        families = super().collect()  # type: ignore[no-untyped-call]
        return [_without_zeros(family) for family in families if not family.name.startswith(APART)]


def _without_zeros(family: Any) -> Any:
    """Return `family`, of information only what is true: a series that a worker has made cannot be taken back."""
    if family.name.endswith("_info"):
        family.samples = [sample for sample in family.samples if sample.value]
    return family


def init_app(app: "Flask") -> None:
    """Add `GET /metrics` to `app`: the text format of Prometheus, or OpenMetrics if asked for; `?name[]=` selects."""
    # Imported here because it imports Flask, which the master process, where a worker's death is marked, can do without.
    from prometheus_flask_exporter import PrometheusMetrics

    from servekit import __version__

    class Exporter(PrometheusMetrics):
        """The exporter, with `?name[]=` mended for several processes, where 0.23 answers it with an error."""

        def generate_metrics(self, accept_header: str | None = None, names: list[str] | None = None) -> tuple[str, str]:
            return render(accept_header, names, self.registry)

    Exporter(app, path="/metrics", export_defaults=False)
    families.build_info.labels(__version__, platform.python_version()).set(1)
    # There from the start: a rate cannot see the first count of a series that comes with it.
    add_in_flight(0)
    add_rows_waiting(0)
    for reason in SHED_REASONS:
        families.shed.labels(reason)
    for reason in KEY_REASONS:
        families.refused_keys.labels(reason)


def render(accept: str | None, names: list[str] | None, registry: CollectorRegistry) -> tuple[str, str]:
    """Return the page and its content type: of all workers if they share a folder, else of `registry`."""
    if MULTIPROCESS_DIR in os.environ:
        registry = CollectorRegistry(auto_describe=bool(names))  # names can only be selected once they are described
        _OwnFamilies(registry)  # type: ignore[no-untyped-call]
    try:
        encode, content_type = choose_encoder(accept or "")
    except (TypeError, ValueError):  # a version in the header that is no version
        encode, content_type = choose_encoder("")
    selected = registry.restricted_registry(names) if names else registry
    return encode(selected).decode(), content_type
