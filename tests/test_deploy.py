"""What lies in deploy/ fits to servekit: its metrics exist, its alerts are explained. `make test-deploy` asks Prometheus."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from servekit import metrics
from tests.server import ROOT

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "servekit.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def expressions(panel: dict[str, Any]) -> Iterator[str]:
    for target in panel.get("targets", []):
        yield target["expr"]


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression asks for, without those that rules record (level:metric:operations)."""
    return set(re.findall(r"(?<![:\w])servekit_\w+(?!:)\b", re.sub(r'"[^"]*"', '""', expression)))


@pytest.fixture(scope="module")
def registered() -> set[str]:
    """The names of every series that servekit's registry may give."""
    assert metrics.UNMATCHED  # its import registers them
    names = set()
    for family in REGISTRY.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + ending for ending in endings}
    return names


def test_every_metric_of_the_dashboard_and_the_rules_exists(registered: set[str]) -> None:
    asked = [*(rule["expr"] for rule in RULES), *(text for panel in PANELS for text in expressions(panel))]
    asked += [variable["definition"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    for expression in asked:
        assert names_in(expression) <= registered, expression
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        assert set(re.findall(r"\w+:\w+:\w+", rule["expr"])) <= recorded


def test_every_metric_is_shown_on_the_dashboard(registered: set[str]) -> None:
    shown = set().union(*(names_in(text) for panel in PANELS for text in expressions(panel)))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in registered if name.startswith("servekit_")}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} | {"servekit_batch_rows"}


def test_panels_have_ids_of_their_own_units_and_descriptions() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        assert panel["title"] and panel["description"].endswith("."), panel["id"]
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert list(expressions(panel)), panel["title"]
            letters = [target["refId"] for target in panel["targets"]]
            assert len(letters) == len(set(letters)), panel["title"]


def test_panels_do_not_lie_on_one_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_dashboard_asks_for_its_prometheus_and_lets_servers_and_models_be_chosen() -> None:
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"DS_PROMETHEUS": "datasource", "instance": "query", "model": "query"}
    for panel in PANELS:
        for part in (panel, *panel.get("targets", [])):
            assert part is panel and panel["type"] == "row" or part["datasource"]["uid"] == "${DS_PROMETHEUS}"
        for expression in expressions(panel):
            selectors = re.findall(r"servekit_\w+\{([^}]*)\}", expression)
            assert selectors and all('instance=~"$instance"' in each for each in selectors), expression
            assert ("model" in re.sub(r"servekit_\w+|by \([^)]*\)", "", expression)) is ('model=~"$model"' in expression)


def anchors(text: str) -> set[str]:
    """Return what links into a page of Markdown may name, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("alert", ALERTS, ids=[alert["alert"] for alert in ALERTS])
def test_an_alert_says_how_grave_it_is_what_is_wrong_and_where_it_is_explained(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"} and all(notes.values())
    page, _, anchor = notes["runbook_url"].partition("#")
    assert page == "docs/operations.md" and anchor == alert["alert"].lower()
    explained = re.search(rf"^### {alert['alert']}\n\n\*(\w+)\.\*", OPERATIONS, re.MULTILINE)
    assert explained and explained[1] == alert["labels"]["severity"]


def test_the_page_explains_no_alert_that_does_not_exist() -> None:
    assert re.findall(r"^### (Servekit\w+)", OPERATIONS, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_links_within_the_page_lead_somewhere() -> None:
    assert set(re.findall(r"\]\(#([^)]+)\)", OPERATIONS)) <= anchors(OPERATIONS)


def test_every_alert_is_made_to_fire_by_the_tests_of_the_rules() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expected = json.dumps([[case.get("promql_expr_test"), case.get("alert_rule_test")] for case in cases])
    for alert in ALERTS:
        assert f'alertname=\\"{alert["alert"]}\\"' in expected or f'"alertname": "{alert["alert"]}"' in expected


def test_the_configuration_scrapes_the_page_that_the_server_has_at_the_address_of_its_default() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"] == [{"targets": ["127.0.0.1:5001"]}]
    assert f'up{{job="{job["job_name"]}"}}' in ALERTS[0]["expr"]
    assert [(PROMETHEUS / name).is_file() for name in config["rule_files"]] == [True]


def test_the_snippets_for_orchestrators_are_yaml_that_names_our_routes() -> None:
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", OPERATIONS, re.DOTALL)]
    (pod,) = [block["spec"] for block in blocks if "spec" in block]
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == container["startupProbe"]["httpGet"]["path"] == "/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    from servekit import server

    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > wait + server.graceful_timeout
    assert container["livenessProbe"]["failureThreshold"] * container["livenessProbe"]["periodSeconds"] > server.timeout
    (service,) = [block["services"]["servekit"] for block in blocks if "services" in block]
    assert int(service["stop_grace_period"].rstrip("s")) > server.graceful_timeout


def test_the_file_of_rules_is_the_one_that_its_tests_read() -> None:
    assert yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["rule_files"] == [Path("alerts.yml").name]
