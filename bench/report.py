"""Results for people: tables and a chart, written between the markers of `bench/README.md`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.plan import CONNECTIONS, COSTS_AT
from bench.results import Summary, find

NO_RESULT = "no result"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def cell(summary: Summary, measure: str, digits: int = 0) -> str:
    """Return a median with its spread, or that there is none."""
    if "bad" in summary:
        return NO_RESULT
    if measure not in summary:
        return ""
    value = summary[measure]
    median, least, most = (f"{value[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least}–{most})"


def servers_table(summaries: list[Summary], failed: dict[str, str]) -> str:
    """Return the table with a row a server: requests/s by connections, and at 16 the latencies and what it costs.

    A peer that could not be measured has the reason for its settings.
    """
    head = ["server", "settings", *(f"{count} conn." for count in CONNECTIONS), "p50 ms", "p99 ms", "p99/p50"]
    rows = []
    for server, settings, case in _servers(summaries):
        at = {count: find(summaries, server, case, count) for count in CONNECTIONS}
        middle = at[COSTS_AT]
        latencies = [cell(middle, "p50_ms", 2), cell(middle, "p99_ms", 2), cell(middle, "p99_over_p50", 1)]
        costs = [cell(middle, "pss_mb"), cell(middle, "start_seconds", 1), cell(middle, "idle_cpu", 3)]
        rates = [cell(at[count], "requests_per_second") for count in CONNECTIONS]
        rows.append([server, settings, *rates, *latencies, *costs])
    rows += [[peer, reason, *[NO_RESULT] * 9] for peer, reason in failed.items()]
    return table([*head, "PSS MB", "start s", "idle cores"], rows)


def cases_table(summaries: list[Summary]) -> str:
    """Return the table with a row for each case of servekit."""
    rows = []
    for each in summaries:
        if each["server"] == "servekit":
            latencies = [cell(each, f"{name}_ms", 2) for name in ("p50", "p90", "p99", "max")]
            rows.append([each["case"], str(each["connections"]), cell(each, "requests_per_second"), *latencies])
    return table(["case", "connections", "requests/s", "p50 ms", "p90 ms", "p99 ms", "max ms"], rows)


def limits_table(summaries: list[Summary]) -> str:
    """Return the table of the limits: engines without HTTP, HTTP without an engine, the load generator."""
    rows = []
    for each in summaries:
        if each["server"].startswith("engine "):
            rows.append([each["server"], f"batch {each['connections']}", cell(each, "requests_per_second")])
        elif each["server"] == "trivial" or each["server"].endswith(" alone"):
            what = f"{each['settings']}, {each['connections']} connections"
            rows.append([each["server"], what, cell(each, "requests_per_second")])
    return table(["limit", "measured with", "a second"], rows)


def ratios_table(ratios: Iterable[dict[str, Any]]) -> str:
    """Return the table of ratios."""
    rows = [[each["name"], *(_number(each[name]) for name in ("value", "beside", "ratio"))] for each in ratios]
    return table(["servekit's", "value", "beside", "ratio"], rows)


def section(result: dict[str, Any], chart: str) -> str:
    """Return all that stands between two markers."""
    machine, summaries = result["machine"], result["cases"]
    changed = " with changes" if result["commit"]["is_changed"] else ""
    text = (
        f"Measured on {result['date']} at commit {result['commit']['id']}{changed}. {machine['cpu']}, "
        f"{machine['memory_gib']} GiB. {machine['note']}\nMedians of {result['settings']['rounds']} rounds, "
        f"and in brackets the least and the most.\n\n![Requests a second]({chart})\n\n"
    )
    text += servers_table(summaries, result["failed"]) + "\n" + ratios_table(result["ratios"]) + "\n"
    text += cases_table(summaries) + "\n" + limits_table(summaries)
    bad = [f"- {each['server']}, {each['case']}, {each['connections']}: {each['bad']}\n" for each in summaries if "bad" in each]
    return text + ("\nWithout a result:\n\n" + "".join(bad) if bad else "")


def write_section(readme: Path, name: str, text: str) -> None:
    """Put `text` between the markers called `name` of the file `readme`; both stay."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    content = readme.read_text()
    if begin not in content or end not in content:
        raise ValueError(f"{readme} has no markers {begin} and {end}")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    readme.write_text(pattern.sub(lambda match: f"{begin}\n\n{text}\n{end}", content))


def draw(summaries: list[Summary], path: Path) -> None:
    """Draw requests/s of every server at every number of connections, with the spread, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    servers = list(reversed(list(_servers(summaries))))
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.6 * len(servers)), layout="constrained")
    height = 0.8 / len(CONNECTIONS)
    for place, count in enumerate(CONNECTIONS):
        found = [find(summaries, server, case, count).get("requests_per_second") for server, _, case in servers]
        values = [each["median"] if each else 0 for each in found]
        spread = [[e["median"] - e["min"] if e else 0 for e in found], [e["max"] - e["median"] if e else 0 for e in found]]
        where = [row + height * (1 - place) for row in range(len(servers))]
        label = "1 connection" if count == 1 else f"{count} connections"
        axes.barh(where, values, height * 0.92, xerr=spread, label=label, error_kw={"linewidth": 0.8})
    axes.set_yticks(range(len(servers)), [server for server, _, _ in servers])
    axes.set_xlabel("requests a second: median of the rounds, lines from the least to the most")
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(CONNECTIONS), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _servers(summaries: Iterable[Summary]) -> list[tuple[str, str, str]]:
    """Return name, settings and case of the servers that were measured with one image a request, in order."""
    found: dict[tuple[str, str, str], None] = {}
    for each in summaries:
        is_limit = each["server"] == "trivial" or each["server"].endswith(" alone")
        is_own_tensor = each["server"] == "servekit" and each["case"] != "raw"
        if each["case"] in ("raw", "tensor") and not is_limit and not is_own_tensor:
            found[each["server"], each["settings"], each["case"]] = None
    return list(found)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
