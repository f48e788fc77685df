"""Every metric, and the `/metrics` page that shows those of all workers together.

The only package that imports the Prometheus packages. Labels come from the route table and the repository, never from
the wire: a client that invents paths, methods or models makes no new series. A contract that promises a metrics page of
its own keeps it in a `Page`; neither page shows what is on the other.
"""

from servekit.metrics.exposition import init_app, render
from servekit.metrics.folder import prepare_folder
from servekit.metrics.meters import (
    OTHER,
    RESTART_REASONS,
    UNMATCHED,
    ModelMeter,
    add_in_flight,
    add_rows_waiting,
    is_of_models_code,
    observe_connections,
    observe_load,
    observe_refusal,
    observe_refused_key,
    observe_request,
    observe_restart,
    observe_shed,
    set_serving,
)
from servekit.metrics.page import PAGE_LIMIT, Family, Page, page
from servekit.metrics.statistics import Statistics, statistics
from servekit.metrics.values import Update, mark_worker_dead, slot_name, use_slot

__all__ = [
    "OTHER",
    "PAGE_LIMIT",
    "RESTART_REASONS",
    "UNMATCHED",
    "Family",
    "ModelMeter",
    "Page",
    "Statistics",
    "Update",
    "add_in_flight",
    "add_rows_waiting",
    "init_app",
    "is_of_models_code",
    "mark_worker_dead",
    "observe_connections",
    "observe_load",
    "observe_refusal",
    "observe_refused_key",
    "observe_request",
    "observe_restart",
    "observe_shed",
    "page",
    "prepare_folder",
    "render",
    "set_serving",
    "slot_name",
    "statistics",
    "use_slot",
]
