"""Which metrics TorchServe's page has: its own list, or that of a `metrics.yaml`."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from servekit.errors import SettingError

KINDS = ("counter", "gauge", "histogram")
METRIC_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
LABEL_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Listed:
    """A metric that the page has, with the names of its dimensions in their order."""

    name: str
    kind: str
    unit: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """The metrics by name: those of the server, and those that models may report."""

    server: Mapping[str, Listed]
    model: Mapping[str, Listed]


def _by_name(kind: str, unit: str, dimensions: tuple[str, ...], *names: str) -> dict[str, Listed]:
    return {name: Listed(name, kind, unit, dimensions) for name in names}


_HOST = ("Level", "Hostname")
_DEVICE = ("Level", "DeviceId", "Hostname")
_INFERENCE = ("model_name", "model_version", "hostname")
_INFERENCES = {
    **_by_name("counter", "Count", _INFERENCE, "ts_inference_requests_total"),
    **_by_name("counter", "Microseconds", _INFERENCE, "ts_inference_latency_microseconds"),
    **_by_name("counter", "Microseconds", _INFERENCE, "ts_queue_latency_microseconds"),
}
_SERVER = {
    **_by_name("counter", "Count", _HOST, "Requests2XX", "Requests4XX", "Requests5XX"),
    **_INFERENCES,
    **_by_name("gauge", "Milliseconds", _HOST, "QueueTime", "WorkerThreadTime"),
    **_by_name("gauge", "Milliseconds", ("WorkerName", *_HOST), "WorkerLoadTime"),
    **_by_name("gauge", "Percent", _HOST, "CPUUtilization"),
    **_by_name("gauge", "Megabytes", _HOST, "MemoryUsed", "MemoryAvailable"),
    **_by_name("gauge", "Percent", _HOST, "MemoryUtilization"),
    **_by_name("gauge", "Gigabytes", _HOST, "DiskUsage", "DiskAvailable"),
    **_by_name("gauge", "Percent", _HOST, "DiskUtilization"),
    **_by_name("gauge", "Percent", _DEVICE, "GPUMemoryUtilization"),
    **_by_name("gauge", "Megabytes", _DEVICE, "GPUMemoryUsed"),
    **_by_name("gauge", "Percent", _DEVICE, "GPUUtilization"),
}
_MODEL = _by_name("gauge", "ms", ("ModelName", "Level"), "HandlerTime", "PredictionTime")

NOTHING = Catalogue(MappingProxyType({}), MappingProxyType({}))
STANDARD = Catalogue(MappingProxyType(_SERVER), MappingProxyType(_MODEL))
LEGACY = Catalogue(MappingProxyType(_INFERENCES), MappingProxyType({}))


def read_catalogue(path: Path) -> Catalogue:
    """Read a `metrics.yaml`: `ts_metrics` and `model_metrics`, each kind -> list of name, unit and dimensions.

    What `ts_metrics` leaves out is not on the page; it may name the dimensions of the server's metrics otherwise.
    Raises SettingError, whose one sentence names the file and what is wrong with it.
    """
    import yaml  # only who names a file needs the package

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"metrics_config={path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingError(f"metrics_config={path} is not YAML.") from None
    try:
        server, model = (_section(content, key) for key in ("ts_metrics", "model_metrics"))
        _check_server(server)
        _require(not server.keys() & model.keys(), "a name stands in both ts_metrics and model_metrics")
    except ValueError as error:
        raise SettingError(f"metrics_config={path} cannot be used: {error}.") from None
    return Catalogue(MappingProxyType(server), MappingProxyType(model))


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ValueError(complaint)


def _section(content: Any, key: str) -> dict[str, Listed]:
    _require(isinstance(content, dict), "it is no mapping with ts_metrics and model_metrics")
    section = content.get(key) or {}
    _require(isinstance(section, dict), f"{key} is no mapping of counter, gauge and histogram")
    found: dict[str, Listed] = {}
    for kind, entries in section.items():
        _require(kind in KINDS, f"{key} has {kind!r}, which is none of counter, gauge and histogram")
        _require(isinstance(entries or [], list), f"{kind} in {key} is no list")
        for listed in _entries(kind, entries or []):
            _require(listed.name not in found, f"{listed.name} is there twice")
            found[listed.name] = listed
    return found


def _entries(kind: str, entries: list[Any]) -> Iterator[Listed]:
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        _require(isinstance(name, str) and METRIC_NAME.fullmatch(name) is not None, f"{name!r} is no name of a metric")
        dimensions = entry.get("dimensions") or []
        _require(
            isinstance(dimensions, list) and all(isinstance(each, str) and LABEL_NAME.fullmatch(each) for each in dimensions),
            f"the dimensions of {name} are no list of names",
        )
        _require(len(set(dimensions)) == len(dimensions), f"a dimension of {name} is there twice")
        yield Listed(str(name), kind, str(entry.get("unit") or "unit"), tuple(dimensions))


def _check_server(server: Mapping[str, Listed]) -> None:
    """Refuse a metric of the server's that is not of its kind, or has other dimensions than can be filled."""
    for name in server.keys() & _SERVER.keys():
        ours, theirs = _SERVER[name], server[name]
        _require(theirs.kind == ours.kind, f"{name} is a {ours.kind}")
        count = len(ours.dimensions)
        _require(len(theirs.dimensions) == count, f"{name} has {count} dimensions: {', '.join(ours.dimensions)}")
