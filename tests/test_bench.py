"""The benchmark's own arithmetic: what the load generator counts, and what becomes of it. No speed is tested."""

import argparse
import contextlib
import itertools
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import cases, machine, report, results, servers
from bench.load import Generator, percentile, search
from bench.plan import Job, rounds
from bench.wire import Malformed, parse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = cases.form().encode()


@contextlib.contextmanager
def answering(answer: Callable[[int], bytes]) -> Iterator[int]:
    """Serve on the port that is given: request number i, counted over all connections, is answered `answer(i)`.

    An empty answer, or one that says so, closes the connection.
    """
    numbers = itertools.count()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while self.request.recv(65536):
                content = answer(next(numbers))
                self.request.sendall(content)
                if not content or b"Connection: close" in content:
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def generator(port: int, connections: int = 2, timeout: float = 5.0) -> Iterator[Generator]:
    """Give a load generator that closes its connections."""
    made = Generator(port, REQUEST, connections, timeout)
    try:
        yield made
    finally:
        made.close()


def test_a_closed_loop_counts_every_answer() -> None:
    answered = []

    def answer(number: int) -> bytes:
        answered.append(number)
        time.sleep(0.01)
        return OK

    with answering(answer) as port, generator(port) as load:
        seen = load.closed(0.0, 0.5)
    assert seen["errors"] == 0 and seen["latencies"] == len(answered) > 20
    assert seen["requests_per_second"] == pytest.approx(len(answered) / 0.5, abs=2 / 0.5)  # two were under way at the end
    assert 10 <= seen["p50_ms"] <= seen["p90_ms"] <= seen["p99_ms"] <= seen["max_ms"]


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "500"),
        (b"", "closed"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "malformed"),
        (b"SSH-2.0\r\n\r\n", "malformed"),
    ],
)
def test_what_is_no_good_answer_is_an_error(bad: bytes, fault: str) -> None:
    def answer(number: int) -> bytes:
        time.sleep(0.005)
        return bad if number % 3 == 2 else OK

    with answering(answer) as port, generator(port) as load:
        seen = load.closed(0.0, 0.4)
    assert seen["faults"] == {fault: seen["errors"]}
    assert seen["errors"] > 2 and seen["latencies"] > seen["errors"]


def test_an_answer_that_never_comes_is_an_error() -> None:
    with answering(lambda number: OK if number else time.sleep(2) or OK) as port, generator(port, 1, 0.4) as load:
        seen = load.closed(0.0, 0.7)
    assert seen["faults"] == {"timeout": 1}
    assert seen["latencies"] > 0  # on a new connection


def test_a_server_that_is_not_there_is_no_busy_loop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with generator(port) as load:
        seen = load.closed(0.0, 0.3)
    assert seen["latencies"] == 0 and 2 <= seen["errors"] < 30


def test_a_connection_that_is_announced_to_end_is_no_error() -> None:
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with answering(lambda number: closing) as port, generator(port) as load:
        seen = load.closed(0.0, 0.3)
    assert seen["errors"] == 0 and seen["latencies"] > 2


def test_an_open_loop_measures_from_the_time_that_was_due() -> None:
    def answer(number: int) -> bytes:
        time.sleep(0.3 if number == 0 else 0)
        return OK

    # One connection: all that is due in the first 0.3 s waits, and a clock started at sending would not see it.
    with answering(answer) as port, generator(port, 1) as load:
        seen = load.open(rate=200, warmup=0.0, seconds=0.6, seed=1)
    assert seen["errors"] == 0 and seen["latencies"] == pytest.approx(120, abs=50)
    assert seen["p50_ms"] > 5 and seen["p90_ms"] > 150


def test_an_open_loop_keeps_its_rate_and_its_arrivals() -> None:
    with answering(lambda number: OK) as port, generator(port, 16) as load:
        first, second = (load.open(rate=300, warmup=0.1, seconds=0.5, seed=7) for _ in range(2))
    assert first["errors"] == second["errors"] == 0
    assert first["latencies"] == second["latencies"] == pytest.approx(150, abs=50)


def test_the_search_finds_the_highest_rate_within_the_limit() -> None:
    def measure(rate: float) -> dict[str, Any]:
        return {"rate": rate, "p99_ms": rate / 100, "errors": 0, "latencies": 9}

    found = search(measure, 4000, 10.0, 8)
    assert found["rate"] == pytest.approx(1000, abs=4000 / 2**8) and found["errors"] == 0
    assert search(lambda rate: measure(rate) | {"p99_ms": 99.0}, 4000, 10.0, 3)["errors"] == 1


def test_percentiles() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [percentile(ordered, share) for share in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]
    assert percentile([1.0, 2.0, 3.0], 50) == 2
    assert percentile([], 99) == 0


@pytest.mark.parametrize("end", range(1, len(OK)))
def test_a_response_that_is_not_complete_is_waited_for(end: int) -> None:
    assert parse(OK[:end]) is None


def test_responses_are_read() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    assert parse(OK) == parse(chunked) == (200, True)
    assert parse(chunked[:-3]) is None
    assert parse(OK.replace(b"1.1", b"1.0")) == (200, False)
    with pytest.raises(Malformed):
        parse(OK + b"more")


def test_requests_say_how_long_they_are() -> None:
    for build in cases.CASES.values():
        head, _, body = build().encode().partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")


def test_cores_are_split() -> None:
    four, two, one = (machine.split_cores(set(range(count))) for count in (4, 2, 1))
    assert (four.servers, four.load) == ((0, 1, 2), 3)
    assert (two.servers, two.load) == ((0,), 1)
    assert (one.servers, one.load) == ((0,), 0) and "disturb" in one.note


def test_a_server_is_started_weighed_and_stopped() -> None:
    with servers.running(servers.trivial(2), machine.split_cores().servers) as server:
        server.settle()
        assert len(server.members()) == 2
        assert 0 < server.start_seconds < 30 and server.pss_mb() > 1
    assert server.members() == [] and server.process.returncode is not None


def test_a_server_that_cannot_start_is_reported_once_and_the_round_goes_on() -> None:
    broken = servers.Launch("broken", "never", lambda port, folder: ["sh", "-c", "echo no weights; exit 3"])
    options = argparse.Namespace(rounds=2, seconds=0.1, warmup=0.1, only="ro")
    runs = list(rounds([Job(broken, "raw", 1), Job(broken, "raw", 16)], machine.split_cores(), options))
    assert [(each["round"], each["failed"]) for each in runs] == [(1, "it ended with 3: no weights")]


def run(server: str, connections: int, rate: float, **more: Any) -> dict[str, Any]:
    """Return a run as the plan gives it."""
    latencies = {"p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 8.0, "max_ms": 9.0, "errors": 0}
    named = {"server": server, "settings": "as it is", "case": "raw", "connections": connections}
    return named | latencies | {"requests_per_second": rate} | more


def test_results_are_medians_with_their_spread_and_runs_with_errors_are_none() -> None:
    runs = [run("servekit", 16, rate) for rate in (300.0, 100.0, 200.0)]
    runs += [run("Other", 16, 50.0, errors=errors, faults={"500": errors}) for errors in (0, 1, 0)]
    runs += [run("Third", 16, 80.0), run("Third", 16, 80.0)]
    ours, other, third = results.summarise(runs, 3)
    assert ours["requests_per_second"] == {"median": 200.0, "min": 100.0, "max": 300.0}
    assert ours["p99_over_p50"]["median"] == 4
    assert other["bad"] == "errors in 1 of 3 runs: {'500': 1}" and "requests_per_second" not in other
    assert third["bad"] == "it ran in 2 of 3 rounds"


def test_ratios_are_to_the_best_peer_and_to_the_engine() -> None:
    runs = [run("servekit", 64, 900.0), run("Triton", 64, 600.0), run("TorchServe, batch 8", 64, 300.0)]
    runs += [run("engine onnx", 8, 1000.0, case="rows"), run("x.Worker alone", 64, 5000.0), run("trivial", 64, 9000.0)]
    found = {each["name"]: each["ratio"] for each in results.ratios(results.summarise(runs, 1))}
    assert found["requests/s beside best peer, Triton, 64 connections"] == 1.5
    assert found["requests/s beside TorchServe, batch 8, 64 connections"] == 3
    assert found["requests/s at 64 beside the rows/s of engine onnx, batch 8"] == 0.9


def test_tables_and_chart_show_what_has_a_result_and_what_has_none(tmp_path: Path) -> None:
    summaries = results.summarise([run("servekit", 16, 200.0), run("Other", 16, 1.0, failed="it ended")], 1)
    text = report.servers_table(summaries, {"torchserve": "there is no java"})
    assert "| servekit | as it is |  | 200 (200–200) |" in text
    assert "| Other | as it is |  | no result |" in text
    assert "| torchserve | there is no java | no result |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    report.draw(summaries, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_a_section_is_written_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("Before\n<!-- begin peers -->\nold\n<!-- end peers -->\nAfter\n")
    for _ in range(2):
        report.write_section(readme, "peers", "new\n")
    assert readme.read_text() == "Before\n<!-- begin peers -->\n\nnew\n\n<!-- end peers -->\nAfter\n"
    with pytest.raises(ValueError, match="no markers"):
        report.write_section(readme, "others", "new")
