"""The statistics extension of the Open Inference Protocol: what all workers counted, in its form."""

from collections.abc import Iterable, Mapping
from typing import Any

from servekit.metrics import statistics
from servekit.model import Model


def describe_statistics(models: Iterable[Model]) -> dict[str, Any]:
    """Return the statistics of each of `models`; times are nanoseconds, `last_inference` milliseconds since 1970."""
    return {"model_stats": [_of(model.name, model.version, statistics(model.name, model.version)) for model in models]}


def _of(name: str, version: str, sums: Mapping[str, float]) -> dict[str, Any]:
    passes = {int(key.split()[1]): count for key, count in sums.items() if key.startswith("passes ")}
    seconds = {rows: sums.get(f"seconds {rows}", 0.0) for rows in passes}
    requests = sums.get("requests", 0.0)
    parts = {
        "queue": sums.get("waits", 0.0),
        "compute_input": sums.get("input", 0.0),
        "compute_infer": sum(seconds.values()) + sums.get("joined", 0.0),
        "compute_output": sums.get("output", 0.0),
    }
    return {
        "name": name,
        "version": version,
        "last_inference": round(sums.get("last", 0.0) * 1000),
        "inference_count": round(sum(rows * count for rows, count in passes.items())),
        "execution_count": round(sum(passes.values())),
        "inference_stats": {
            "success": _duration(requests, sum(parts.values())),
            "fail": _duration(sums.get("failures", 0.0), sums.get("failed", 0.0)),
            **{part: _duration(requests, total) for part, total in parts.items()},
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [_batch(rows, passes[rows], seconds[rows]) for rows in sorted(passes)],
        "memory_usage": [],
    }


def _batch(rows: int, count: float, seconds: float) -> dict[str, Any]:
    """Describe the passes of so many rows; reading and writing is done by request, not by pass."""
    return {
        "batch_size": rows,
        "compute_input": _duration(count, 0),
        "compute_infer": _duration(count, seconds),
        "compute_output": _duration(count, 0),
    }


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": round(count), "ns": round(seconds * 1e9)}
