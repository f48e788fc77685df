"""The statistics extension of the Open Inference Protocol: what all workers counted, in its form."""

from collections.abc import Iterable
from typing import Any

from servekit.metrics import Statistics, statistics
from servekit.model import Model


def describe_statistics(models: Iterable[Model]) -> dict[str, Any]:
    """Return the statistics of each of `models`; times are nanoseconds, `last_inference` milliseconds since 1970."""
    return {"model_stats": [_of(model.name, model.version, statistics(model.name, model.version)) for model in models]}


def _of(name: str, version: str, sums: Statistics) -> dict[str, Any]:
    parts = {
        "queue": sums.waits,
        "compute_input": sums.input,
        "compute_infer": sum(seconds for _, seconds in sums.passes.values()) + sums.joined,
        "compute_output": sums.output,
    }
    return {
        "name": name,
        "version": version,
        "last_inference": round(sums.last * 1000),
        "inference_count": round(sum(rows * passes for rows, (passes, _) in sums.passes.items())),
        "execution_count": round(sum(passes for passes, _ in sums.passes.values())),
        "inference_stats": {
            "success": _duration(sums.requests, sum(parts.values())),
            "fail": _duration(sums.failures, sums.failed),
            **{part: _duration(sums.requests, total) for part, total in parts.items()},
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "response_stats": {},
        "batch_stats": [_batch(rows, *sums.passes[rows]) for rows in sorted(sums.passes)],
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
