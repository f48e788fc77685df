"""What lies in deploy/, checked by promtool and asked of a real Prometheus that scrapes a real server.

The server is made to refuse, to be late, to fail, to lose workers and to meet a version that cannot be loaded, so that
every series exists that an expression may ask for.
"""

import concurrent.futures
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import networks
from tests.server import ROOT, Server, running, wait_for
from tests.versions import edit, write_regressor

DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana" / "servekit.json").read_text())
ASKED = [
    (f"{panel['title']} {target['refId']}", target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]
ASKED += [
    # With `bool` a comparison tells of each series whether it holds, in place of leaving out those for which it does not.
    (rule.get("alert") or rule["record"], re.sub(r" (==|!=|[<>]=?) ", r" \1 bool ", rule["expr"]))
    for group in RULES["groups"]
    for rule in group["rules"]
]
KEYS = {"clients": "the-key-of-those-who-ask", "prometheus": "the-key-of-the-one-who-looks"}
WAYS = {"instance": ".*", "model": ".*", "__rate_interval": "1m"}
ASKING_SECONDS = 12.0  # several scrapes, since a rate needs two
KILLS = 5
SCRAPE_SECONDS = 2.5  # for a scrape, which comes every second, to be seen


def tool(name: str) -> str:
    """Return the path of Debian's `name`; what is not there fails, and is not passed over."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; run: apt-get install prometheus")
    return path


@pytest.mark.parametrize(
    "command",
    [["check", "config", "prometheus.yml"], ["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(command: list[str]) -> None:
    ended = subprocess.run(
        [tool("promtool"), *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "FAIL" not in ended.stdout


class Prometheus:
    """A Prometheus that runs, asked by its HTTP interface."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, **query: str) -> Any:
        """Return the `data` of an answer, or None while it does not answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except OSError:
            return None

    def values(self, expression: str) -> list[float]:
        """Return the values of all series that `expression` has now."""
        data = self.get("query", query=expression)
        return [] if data is None else [float(each["value"][1]) for each in data["result"]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def configuration(folder: Path, port: int) -> Path:
    """Write the configuration of deploy/ for a server on `port`: the same, in a hurry, and with the key that it leaves out."""
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    left_out = "    # authorization:\n    #   credentials_file: /etc/prometheus/servekit.key\n"
    assert left_out in text
    (folder / "key").write_text(KEYS["prometheus"])
    config = yaml.safe_load(text.replace(left_out, f"    authorization:\n      credentials_file: {folder / 'key'}\n"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def ask(server: Server, model: str, value: Any = 1.0, key: str = KEYS["clients"]) -> int:
    """Ask for a prediction over a connection of its own; return the status, 0 if the connection broke."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        return server.request("POST", f"/v1/models/{model}:predict", json.dumps({"instances": [[value]]}), headers)[0]
    except OSError:
        return 0


def provoke(server: Server, store: Path) -> set[int]:
    """Let everything happen that is counted; return the statuses that clients have seen."""
    broken = write_regressor(store, networks.Infinite())
    edit(broken, network="tests.networks:NoSuchNetwork")
    statuses: set[int] = set()
    kills, until = KILLS, time.monotonic() + ASKING_SECONDS
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        while time.monotonic() < until:
            quick = [pool.submit(ask, server, name) for name in ("linear", "faulty") for _ in range(4)]
            quick += [pool.submit(ask, server, "linear", key=key) for key in ("", "an-invented-key", KEYS["prometheus"])]
            quick += [pool.submit(ask, server, "linear", "a word")]
            statuses |= {each.result() for each in quick}
            slow = [pool.submit(ask, server, "slow") for _ in range(4)]
            time.sleep(0.1)  # the passes of those have begun, and take longer than anybody may wait
            slow += [pool.submit(ask, server, "slow") for _ in range(26)]  # some wait for too long, for others is no room
            statuses |= {each.result() for each in slow}
            if kills and len(pids := server.workers()) == 2:
                os.kill(pids[0], signal.SIGKILL)
                kills -= 1
    return statuses


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, set[int]]]:
    """A Prometheus that has watched a server to which everything has happened, and the statuses that clients saw."""
    folder = tmp_path_factory.mktemp("prometheus")
    store = folder / "store"
    for name, network in (("linear", networks.Double()), ("slow", networks.Slow()), ("faulty", networks.Faulty())):
        write_regressor(store, network, name)
    scopes = {"clients": "inference", "prometheus": "metrics"}
    keys = [{"name": name, "key": KEYS[name], "scope": scope} for name, scope in scopes.items()]
    (folder / "keys.json").write_text(json.dumps({"keys": keys}))
    (folder / "keys.json").chmod(0o600)
    settings = {"DEADLINE_SECONDS": "1.2", "MAX_WAITING": "6", "POLL_SECONDS": "0.5", "MODEL_STORE": str(store)}
    settings["KEYS"] = str(folder / "keys.json")
    variables = {f"SERVEKIT_{name}": value for name, value in settings.items()} | {"WEB_CONCURRENCY": "2"}
    with running(folder / "log", **variables) as server:
        prometheus = Prometheus(free_port())
        command = [tool("prometheus"), f"--config.file={configuration(folder, server.port)}", "--log.level=warn"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{prometheus.port}"]
        with (folder / "prometheus.log").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            is_scraped = wait_for(lambda: prometheus.values('up{job="servekit"}') == [1.0], process)
            assert is_scraped, (folder / "prometheus.log").read_text()
            statuses = provoke(server, store)
            time.sleep(SCRAPE_SECONDS)  # that a worker is gone is known then
            assert wait_for(lambda: prometheus.values("servekit_workers") == [2.0]), server.text()
            time.sleep(SCRAPE_SECONDS)  # for the rules
            yield prometheus, statuses
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_clients_have_met_what_is_counted(asked: tuple[Prometheus, set[int]]) -> None:
    assert {200, 400, 401, 403, 500, 503, 504} <= asked[1]


@pytest.mark.parametrize(("name", "expression"), ASKED, ids=[name for name, _ in ASKED])
def test_an_expression_has_data(asked: tuple[Prometheus, set[int]], name: str, expression: str) -> None:
    for variable, value in WAYS.items():
        expression = expression.replace(f"${variable}", value)
    assert "$" not in expression
    values = asked[0].values(expression)
    assert [value for value in values if not math.isnan(value)], f"{expression}: {values}"


def test_what_has_happened_is_seen(asked: tuple[Prometheus, set[int]]) -> None:
    prometheus = asked[0]
    happened = [
        'sum(servekit_worker_restarts_total{reason="killed"})',
        'servekit_model_loads_total{result="failed", model="linear", version="2"}',
        'servekit_shed_total{reason="rows"}',
        'servekit_deadline_misses_total{model="slow"}',
        'servekit_handler_errors_total{model="faulty"}',
        *(f'servekit_refused_keys_total{{reason="{reason}"}}' for reason in ("missing", "unknown", "forbidden")),
        *(f'sum(servekit_predictions_total{{outcome="{outcome}"}})' for outcome in ("ok", "shed", "late", "failed")),
    ]
    for expression in happened:
        (value,) = prometheus.values(expression)
        assert value >= 1, expression
    assert prometheus.values("servekit_workers") == [2.0]


def test_the_choices_of_the_dashboard_have_something_to_choose(asked: tuple[Prometheus, set[int]]) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            found = asked[0].get(f"label/{label}/values", **{"match[]": selector.replace("$instance", ".*")})
            assert found == ["faulty", "linear", "slow"] if label == "model" else len(found) == 1


def test_every_rule_is_evaluated_and_alerts_fire(asked: tuple[Prometheus, set[int]]) -> None:
    groups = asked[0].get("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == sum(len(group["rules"]) for group in RULES["groups"])
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    raised = {alert["labels"]["alertname"] for alert in asked[0].get("alerts")["alerts"] if alert["state"] == "firing"}
    assert {"ServekitModelNotLoaded", "ServekitHandlerErrors", "ServekitWorkersRestarting"} <= raised
    assert "ServekitDown" not in raised
