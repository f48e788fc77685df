"""From single runs to medians with their spread, and from those to ratios."""

import statistics
from collections.abc import Iterable
from typing import Any

MEASURES = (
    "requests_per_second", "p50_ms", "p90_ms", "p99_ms", "max_ms", "rate", "p99_over_p50",
    "start_seconds", "pss_mb", "idle_cpu", "generator_cpu",
)  # fmt: skip
OWN = ("servekit", "trivial")  # and what is named "engine ..." and "... alone": no peers
Summary = dict[str, Any]


def summarise(runs: Iterable[dict[str, Any]], rounds: int) -> list[Summary]:
    """Return one summary for each server, case and number of connections, in the order in which they were first run.

    Each measure is `{"median", "min", "max"}`. A case in which one run had errors or failed, or that was not run in
    all `rounds`, has `"bad"`, the reason, and no measures: it is no result.
    """
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["server"], run["case"], run["connections"]), []).append(run)
    return [_summary(group, rounds) for group in groups.values()]


def _summary(group: list[dict[str, Any]], rounds: int) -> Summary:
    first = group[0]
    summary = {name: first[name] for name in ("server", "settings", "case", "connections")} | {"runs": len(group)}
    if failed := [run["failed"] for run in group if "failed" in run]:
        return summary | {"bad": failed[0]}
    if len(group) != rounds:
        return summary | {"bad": f"it ran in {len(group)} of {rounds} rounds"}
    if wrong := [run for run in group if run["errors"]]:
        return summary | {"bad": f"errors in {len(wrong)} of {len(group)} runs: {wrong[0].get('faults') or 'no rate passed'}"}
    for run in group:
        if run.get("p50_ms"):
            run["p99_over_p50"] = round(run["p99_ms"] / run["p50_ms"], 2)
    for measure in MEASURES:
        if values := [run[measure] for run in group if measure in run]:
            summary[measure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return summary


def find(summaries: Iterable[Summary], server: str, case: str, connections: int) -> Summary:
    """Return the summary of a case, or an empty one."""
    wanted = (server, case, connections)
    return next((each for each in summaries if (each["server"], each["case"], each["connections"]) == wanted), {})


def median(summary: Summary, measure: str = "requests_per_second") -> float | None:
    """Return the median of a measure, None where there is no result."""
    return summary[measure]["median"] if measure in summary else None


def is_peer(server: str) -> bool:
    """Return whether a server is one that servekit is compared with."""
    return server not in OWN and not server.startswith("engine ") and not server.endswith(" alone")


def best(summaries: list[Summary], connections: int, name: str = "") -> tuple[str, float] | None:
    """Return the peer whose name begins with `name` that answered most at `connections`, and its requests a second."""
    found = [
        (each["server"], each["requests_per_second"]["median"])
        for each in summaries
        if is_peer(each["server"]) and each["server"].startswith(name) and each["connections"] == connections
        and "requests_per_second" in each
    ]  # fmt: skip
    return max(found, key=lambda pair: pair[1], default=None)


def engine_limit(summaries: list[Summary]) -> tuple[str, float] | None:
    """Return the engine and batch that compute most rows a second without HTTP, and how many."""
    found = [
        (f"{each['server']}, batch {each['connections']}", each["requests_per_second"]["median"])
        for each in summaries
        if each["server"].startswith("engine ") and "requests_per_second" in each
    ]
    return max(found, key=lambda pair: pair[1], default=None)


def ratios(summaries: list[Summary]) -> list[dict[str, Any]]:
    """Return what servekit reaches beside each yardstick: `name`, `value`, `beside` and their `ratio`, None if unknown."""
    raw = {count: median(find(summaries, "servekit", "raw", count)) for count in (1, 16, 64)}
    listed = []
    for name, title, counts in (("", "best peer, ", (1, 16, 64)), ("TorchServe", "", (1, 16, 64)), ("plain Flask", "", (16,))):
        for count in counts:
            if found := best(summaries, count, name):
                listed.append(_ratio(f"requests/s beside {title}{found[0]}, {count} connections", raw[count], found[1]))
    if limit := engine_limit(summaries):
        listed.append(_ratio(f"requests/s at 64 beside the rows/s of {limit[0]}", raw[64], limit[1]))
    for count in (16, 64):
        multipart = median(find(summaries, "servekit", "multipart", count))
        listed.append(_ratio(f"multipart requests/s beside raw, {count} connections", multipart, raw[count]))
    for case in ("binary tensor", "tensor"):
        for count in (1, 64):
            if (value := median(find(summaries, "servekit", case, count))) is not None:
                listed.append(_ratio(f"{case} (V2) requests/s beside raw PNG, {count} connections", value, raw[count]))
    at_16 = find(summaries, "servekit", "raw", 16)
    listed.append(_ratio("p99 beside p50 in ms, 16 connections", median(at_16, "p99_ms"), median(at_16, "p50_ms")))
    return listed + _costs(summaries, at_16)


def _costs(summaries: list[Summary], own: Summary) -> list[dict[str, Any]]:
    """Return memory, start and idle processor time beside the peer that needs least."""
    listed = []
    for measure, title in (("pss_mb", "memory in MB (PSS)"), ("start_seconds", "start in s"), ("idle_cpu", "idle cores")):
        others = [
            (each["server"], each[measure]["median"])
            for each in summaries
            if is_peer(each["server"]) and each["connections"] == 16 and measure in each
        ]
        least = min(others, key=lambda pair: pair[1], default=("no peer", None))
        listed.append(_ratio(f"{title} beside {least[0]}", median(own, measure), least[1]))
    return listed


def _ratio(name: str, value: float | None, beside: float | None) -> dict[str, Any]:
    ratio = round(value / beside, 2) if value is not None and beside else None
    return {"name": name, "value": value, "beside": beside, "ratio": ratio}
