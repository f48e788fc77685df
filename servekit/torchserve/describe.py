"""How TorchServe describes models: their settings, the workers that hold them, the requests that wait."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from servekit.desired import Entry
from servekit.engines.torchserve import HandlerRequest, Parameter
from servekit.errors import ModelNotFound, NotReady
from servekit.logs import request_id
from servekit.state import Report
from servekit.torchserve.registration import parse_integer
from servekit.torchserve.registry import Registry, is_archive

MOST_LISTED = 100
ALL = "all"  # in the place of a version
_FOLDERS = re.compile(r"(?<![\w.:/-])/(?:[^/\s\"':,;()<>]+/)+")  # of a path from the root on, all but its last part
_DEFAULTS = {"batch_size": 1, "max_batch_delay": 100, "response_timeout": 120, "startup_timeout": 120}
# Sequences and several devices for one model are not served; dashboards expect the fields.
_CONSTANT = {
    "continuousBatching": False,
    "useJobTicket": False,
    "useVenv": False,
    "stateful": False,
    "sequenceMaxIdleMSec": 0,
    "sequenceTimeoutMSec": 0,
    "maxNumSequence": 0,
    "maxSequenceJobQueueSize": 0,
}


def list_models(registry: Registry, limit: str | None, token: str | None) -> dict[str, Any]:
    """Return a page of the default versions, by name; there is a token for the next page unless this is the last."""
    count, first = parse_integer(limit), parse_integer(token)
    if count is None or not 0 <= count <= MOST_LISTED:
        count = MOST_LISTED
    first = max(0, first or 0)
    desired = registry.repository.desired()
    names = sorted(desired.models)
    page = [desired.models[name][desired.defaults[name]] for name in names[first : first + count]]
    models = [{"modelName": entry.name, "modelUrl": entry.source} for entry in page]
    # A page that ends where the list ends has a token, too, as TorchServe's has.
    return {"nextPageToken": str(first + count) if first + count <= len(names) else None, "models": models}


def describe(
    registry: Registry, name: str, version: str | None, headers: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the description of a version, of the default one, or of all; raise Refusal.

    With `headers`, those of the request, the model is asked to describe itself.
    """
    if version == ALL:
        entries = list(registry.repository.desired().models.get(registry.find(name).name, {}).values())
        return [_describe(registry, entry) for entry in entries]
    entry = registry.find(name, version)
    if headers is None or not is_archive(entry):
        return [_describe(registry, entry)]
    own = _ask(registry, entry, headers)
    return [{**_describe(registry, entry), "customizedMetadata": own}]


def _describe(registry: Registry, entry: Entry) -> dict[str, Any]:
    options = {**_DEFAULTS, **entry.options}
    waiting, device = _state_of(registry, entry)
    config = options.get("model_config", {})
    workers = sorted(registry.repository.workers(), key=lambda worker: worker.pid)
    return {
        "modelName": entry.name,
        "modelVersion": entry.version,
        "modelUrl": entry.source,
        "runtime": options.get("runtime", "python"),
        "minWorkers": entry.workers,
        "maxWorkers": entry.max_workers,
        "batchSize": options["batch_size"],
        "maxBatchDelay": options["max_batch_delay"],
        "responseTimeout": options["response_timeout"],
        "startupTimeout": options["startup_timeout"],
        "maxRetryTimeoutInSec": _number(config, "maxRetryTimeoutInSec", 300),
        "clientTimeoutInMills": _number(config, "clientTimeoutInMills", 0),
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": device,
        **_CONSTANT,
        "loadedAtStartup": bool(options.get("loaded_at_startup", False)),
        "workers": _workers(workers, entry, registry.properties.initial_worker_port, device == "gpu"),
        "jobQueueStatus": {
            "remainingCapacity": max(0, options.get("job_queue_size", registry.properties.job_queue_size) - waiting),
            "pendingRequests": waiting,
        },
        "lastError": _last_error(workers, entry),
    }


def _workers(workers: Sequence[Report], entry: Entry, first_id: int, on_gpu: bool) -> list[dict[str, Any]]:
    """Describe the server's workers, all of which hold, or are about to hold, a model that has any."""
    if not entry.workers:
        return []
    return [
        {
            "id": str(first_id + number),
            "startTime": _time(worker.started),
            "status": "READY" if entry.key in worker.loaded else "UNLOADING",
            "memoryUsage": worker.memory,
            "pid": worker.pid,
            "gpu": on_gpu,
            "gpuUsage": "N/A",
        }
        for number, worker in enumerate(workers)
    ]


def _state_of(registry: Registry, entry: Entry) -> tuple[int, str]:
    """Return how many requests wait for a version in this worker, and on what kind of device it runs."""
    try:
        model = registry.repository.get(*entry.key)
    except (NotReady, ModelNotFound):
        return 0, "cpu"
    return model.waiting, "gpu" if model.device.startswith("cuda") else "cpu"


def _last_error(workers: Sequence[Report], entry: Entry) -> str | None:
    """Return the last traceback of the handler, or why a worker could not load it; None if all is well.

    Files go by their names: where they lie is the operator's to know, and stands in the log.
    """
    found = [worker.errors.get(f"{entry.name}/{entry.version}") for worker in workers]
    last = next(filter(None, found), None)
    return None if last is None else _FOLDERS.sub("", last)


def _ask(registry: Registry, entry: Entry, headers: Mapping[str, str]) -> dict[str, Any]:
    model = registry.model(*entry.key, job="describe")
    rows = np.empty(1, object)
    rows[0] = HandlerRequest(request_id(), {**headers, "describe": "True"}, [Parameter("body", None, b"")])
    deadline = time.monotonic() + entry.options.get("response_timeout", _DEFAULTS["response_timeout"])
    answer = model.predict({"request": rows}, deadline)["response"][0]
    try:
        own = json.loads(answer.body)
    except ValueError:
        own = None
    return own if isinstance(own, dict) else {}  # as TorchServe, which shows objects only


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    number = parse_integer(config.get(name))
    return default if number is None else number


def _time(moment: float) -> str:
    """Return a time of the epoch as TorchServe writes it: local time, with the letter of another zone."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(moment))
    return f"{seconds}.{int(moment % 1 * 1000):03d}Z"
