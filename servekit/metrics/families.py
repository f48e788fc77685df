"""Every metric of servekit's own page, by its name; docs/metrics.md says what each means.

Base units, and labels from the route table, the repository and lists in this folder only.
"""

from prometheus_client import Counter, Gauge, Histogram

from servekit.metrics.values import all_values  # first: it says where the values of all metrics are

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LOAD_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_VERSION = ("model", "version")

# Requests.

requests = Counter(
    "servekit_requests", "Requests answered, by method, route pattern and status", ["method", "route", "status"]
)
request_seconds = Histogram(
    "servekit_request_duration_seconds",
    "Time from the application's first sight of a request to its answer",
    ["method", "route"],
    buckets=SECONDS,
)
in_flight = Gauge(
    "servekit_requests_in_flight", "How many requests wait for the beginning of their answer", multiprocess_mode="livesum"
)
connections = Gauge("servekit_connections", "Open connections of clients", multiprocess_mode="livesum")
shed = Counter("servekit_shed", "Requests refused because the server has enough to do, by what there is too much of", ["reason"])
refused_keys = Counter("servekit_refused_keys", "Requests refused for their key, by what was wrong with it", ["reason"])

# Predictions.

rows = Counter("servekit_rows", "Rows predicted, by model and version", _VERSION)
rows_waiting = Gauge("servekit_rows_waiting", "Rows that are taken in and not answered", multiprocess_mode="livesum")
predictions = Counter("servekit_predictions", "Predictions asked for, by what became of them", [*_VERSION, "outcome"])
prediction_seconds = Histogram(
    "servekit_prediction_duration_seconds",
    "Time from tensors to their prediction, waiting included, of those that were answered",
    _VERSION,
    buckets=SECONDS,
)
preprocess_seconds = Histogram(
    "servekit_preprocess_duration_seconds", "Time in which a handler makes a network's inputs", _VERSION, buckets=SECONDS
)
postprocess_seconds = Histogram(
    "servekit_postprocess_duration_seconds", "Time in which a handler makes answers of outputs", _VERSION, buckets=SECONDS
)
deadline_misses = Counter("servekit_deadline_misses", "Predictions that were not made before their deadline", _VERSION)
handler_errors = Counter("servekit_handler_errors", "Exceptions of a model's or handler's own code", _VERSION)

# Forward passes.

inference_seconds = Histogram(
    "servekit_inference_duration_seconds",
    "Time of a forward pass, which may serve several requests, by model and version",
    _VERSION,
    buckets=SECONDS,
)
queue_seconds = Histogram(
    "servekit_queue_duration_seconds",
    "Time that a forward pass's first rows waited for it, by model and version",
    _VERSION,
    buckets=SECONDS,
)
batch_rows = Histogram("servekit_batch_rows", "Rows of a forward pass, by model and version", _VERSION, buckets=ROWS)

# Models and workers.

models_loaded = Gauge(
    "servekit_models_loaded", "Workers that hold this version of the model", _VERSION, multiprocess_mode="livesum"
)
model_loads = Counter("servekit_model_loads", "Versions that workers have loaded, or tried to", [*_VERSION, "result"])
model_load_seconds = Histogram(
    "servekit_model_load_duration_seconds", "Time to load and warm up a version", _VERSION, buckets=_LOAD_SECONDS
)
model_info = Gauge(
    "servekit_model_info",
    "1 for each version that is held: by which engine, on which device, and the hash of its file",
    [*_VERSION, "engine", "device", "sha256"],
    multiprocess_mode="livemax",
)
build_info = Gauge("servekit_build_info", "1: the versions of servekit and Python", ["version", "python"],
                   multiprocess_mode="livemax")
workers = Gauge("servekit_workers", "Workers that serve", multiprocess_mode="livesum")
worker_restarts = Counter("servekit_worker_restarts", "Workers that ended and were replaced, by why they ended", ["reason"])

all_values.finds_places = True
