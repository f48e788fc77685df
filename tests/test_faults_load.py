"""Twins of bench/faults/{overload,health,soak}.py that need no load: clocks and passes are made up here."""

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bench.faults import costly
from bench.faults.overload import judge, was_normal_after
from bench.faults.soak import growth, slope
from servekit.app import create_app
from servekit.batcher import MAX_REQUESTS, Backlog
from servekit.board import Board
from servekit.config import CROWDED, Settings
from servekit.errors import Overloaded
from servekit.ext import repository_of
from servekit.intake import FEW, Intake
from servekit.line import CALM_SECONDS, SHORT_SECONDS, Line, crowded
from servekit.shedding import MAX_DOORS, Shedding
from tests import networks
from tests.versions import write_regressor


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def line_of(clock: Clock, fits: int = 1, told: list[str] | None = None, max_rows: int = 4000) -> Line:
    return Line(Backlog(max_rows), fits, (lambda reason: None) if told is None else told.append, clock)


def fill(line: Line, clock: Clock, rows: int, patience: float = 1e9) -> int:
    """Send requests of one row; return how many were taken."""
    taken = 0
    for _ in range(rows):
        try:
            line.enter(1, clock.now + patience)
            taken += 1
        except Overloaded:
            pass
    return taken


def run(line: Line, clock: Clock, passes: int, seconds: float, rows: int = 1) -> None:
    for _ in range(passes):
        clock.now += seconds
        line.note_pass(rows)
        for _ in range(rows):
            line.leave(1)


def test_a_request_that_would_wait_for_half_of_its_time_is_refused_at_once() -> None:
    clock, told = Clock(), []
    line = line_of(clock, told=told)
    assert fill(line, clock, 200) == 200
    run(line, clock, passes=10, seconds=0.005)
    assert line.seconds == pytest.approx(190 * 0.005)
    with pytest.raises(Overloaded) as refused:
        line.enter(1, clock.now + 1.8)
    assert (refused.value.retry_after, told) == (1, ["deadline"])
    run(line, clock, passes=100, seconds=0.005)
    clock.now += 2 * CALM_SECONDS
    line.enter(1, clock.now + 1.8)


def test_where_one_worker_had_to_refuse_the_lines_of_the_model_are_short_in_all() -> None:
    clock, cell = Clock(), [-1e9]
    lines = [line_of(clock, max_rows=100), line_of(clock)]
    for line in lines:
        line.refused_at = cell
        assert fill(line, clock, 90) == 90
        run(line, clock, passes=10, seconds=0.01)
    assert fill(lines[1], clock, 1) == 1  # 0.8 s are not much of the time there is
    assert fill(lines[0], clock, 30) == 20
    assert fill(lines[1], clock, 1) == 0
    clock.now += 2 * CALM_SECONDS
    assert fill(lines[1], clock, 1) == 1


def test_a_client_that_is_refused_is_told_when_the_line_will_have_gone() -> None:
    clock = Clock()
    line = line_of(clock)
    fill(line, clock, 100)
    run(line, clock, passes=10, seconds=0.1)
    with pytest.raises(Overloaded) as refused:
        line.enter(1, clock.now + 5)
    assert refused.value.retry_after == 9  # 90 rows at a tenth of a second


def test_a_lone_request_always_enters_and_two_passes_always_fill() -> None:
    clock = Clock()
    line = line_of(clock, fits=8)
    fill(line, clock, 80)
    run(line, clock, passes=8, seconds=0.4, rows=8)
    assert line.seconds == pytest.approx(16 * 0.05)
    run(line, clock, passes=2, seconds=0.4, rows=8)
    assert fill(line, clock, 40, patience=1.0) == 16
    run(line, clock, passes=2, seconds=100.0, rows=8)
    assert fill(line, clock, 1, patience=1e-9) == 1


def test_a_line_that_refuses_is_kept_short_until_a_second_has_passed() -> None:
    clock = Clock()
    line = line_of(clock)
    assert fill(line, clock, 50) == 50
    run(line, clock, passes=5, seconds=0.01)
    assert fill(line, clock, 1000, patience=2.0) in (55, 56)  # 100 rows take the second that is half of two
    run(line, clock, passes=60, seconds=0.01)
    fill(line, clock, 1, patience=2.0)
    assert line.seconds > SHORT_SECONDS  # it was refused, though 41 would not take a second
    run(line, clock, passes=30, seconds=0.01)
    clock.now += CALM_SECONDS
    assert fill(line, clock, 60, patience=2.0) == 60


def test_a_jam_is_forgotten_when_nobody_waits() -> None:
    clock = Clock()
    line = line_of(clock)
    fill(line, clock, 4)
    run(line, clock, passes=4, seconds=5.0)  # the worker was stopped, say
    for _ in range(100):
        fill(line, clock, 1)
        run(line, clock, passes=1, seconds=0.001)
    assert fill(line, clock, 50, patience=1.0) == 50


def test_more_requests_than_half_of_the_connections_are_refused_whatever_their_time() -> None:
    clock, told = Clock(), []
    line = line_of(clock, told=told)
    assert fill(line, clock, MAX_REQUESTS + 1) == MAX_REQUESTS
    assert told == ["rows"]


def test_a_worker_that_is_crowded_refuses_for_each_of_its_models() -> None:
    clock, told = Clock(), []
    token = crowded.set(True)
    try:
        assert fill(line_of(clock, told=told), clock, 1) == 0
    finally:
        crowded.reset(token)
    assert told == ["deadline"]


@pytest.mark.parametrize("times", [1, 2, 5, 10])
@pytest.mark.parametrize("patience", [1.0, 30.0])
def test_a_line_goes_on_at_its_best_however_many_come(times: int, patience: float) -> None:
    """Arrivals of a Poisson process at `times` the 200 a second that passes of 5 ms can serve."""
    clock, chance = Clock(), random.Random(times)
    line = line_of(clock)
    waiting: list[float] = []
    waits: list[float] = []
    seconds, pass_ends = 20.0, 0.0
    end = clock.now + seconds
    arrival = clock.now
    while clock.now < end:
        clock.now = min(arrival, pass_ends) if waiting else arrival
        if waiting and clock.now >= pass_ends:
            line.note_pass(1)
            line.leave(1)
            waits.append(clock.now - waiting.pop(0))
            pass_ends = clock.now + 0.005
        else:
            if fill(line, clock, 1, patience):
                pass_ends = pass_ends if waiting else clock.now + 0.005
                waiting.append(clock.now)
            arrival += chance.expovariate(200.0 * times)
    assert len(waits) / seconds > 0.93 * 200
    assert max(waits) < min(patience, MAX_REQUESTS * 0.0051)
    assert sorted(waits[len(waits) // 2 :])[-20] < 0.3  # once it was known that there are too many
    assert len(waiting) * 0.005 < 0.3  # so all is as before within a second


# Refusing without the application.

KEY = "k" * 40


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    folder = tmp_path_factory.mktemp("store")
    write_regressor(folder, networks.Double())
    return create_app(Settings(model_store=folder, engine="torch", max_waiting=1))


@pytest.fixture
def client(app: Flask) -> Iterator[FlaskClient]:
    backlog = repository_of(app).get("linear")._backlog
    backlog.enter(1)
    yield app.test_client()
    backlog.leave(1)


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("/predict", {"data": {"value": "5"}}),
    ("/linear/predict", {"json": {"value": 5}}),
    ("/v2/models/linear/infer", {"json": {"inputs": [{"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}]}}),
    ("/v1/models/linear:predict", {"json": {"instances": [[5]]}}),
    ("/predictions/linear", {"json": {"value": [5]}}),
]


@pytest.mark.parametrize(("path", "sent"), ASKED, ids=[path for path, _ in ASKED])
def test_a_refusal_looks_the_same_whoever_gives_it(client: FlaskClient, path: str, sent: dict[str, Any]) -> None:
    def asked() -> TestResponse:
        return client.post(path, **sent)

    first, *others = [asked() for _ in range(6)]
    assert first.status_code == 503 and int(first.headers["Retry-After"]) >= 1 and b"too busy" in first.data
    for other in others:
        assert (other.status, other.data) == (first.status, first.data)
        assert sorted(other.headers.keys()) == sorted(first.headers.keys())
    ids = {answer.headers["X-Request-Id"] for answer in (first, *others)}
    assert len(ids) == 6


def test_a_model_that_is_busy_refuses_for_no_other_at_an_address_where_the_body_says_which(client: FlaskClient) -> None:
    for _ in range(4):
        assert client.post("/predict", json={"value": 5}).status_code == 503
    assert client.post("/predict", json={"image": "AAAA"}).status_code == 404  # there is no mnist in this store


def test_refusals_are_counted_by_route_and_end_with_the_jam(app: Flask, client: FlaskClient) -> None:
    def count(text: str) -> float:
        page = client.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(text))

    answered = 'servekit_requests_total{method="POST",route="/linear/predict",status="503"}'
    asked = 'servekit_predictions_total{model="linear",outcome="shed"'
    before = count(answered), count("servekit_shed_total{"), count(asked)
    for _ in range(5):
        assert client.post("/linear/predict", data={"value": "5"}).status_code == 503
    after = count(answered), count("servekit_shed_total{"), count(asked)
    assert [now - then for now, then in zip(after, before, strict=True)] == [5, 5, 5]
    backlog = repository_of(app).get("linear")._backlog
    backlog.leave(1)
    assert client.post("/linear/predict", data={"value": "5"}).status_code == 200
    backlog.enter(1)
    assert client.get("/health/ready").status_code == 200


def test_who_has_no_key_is_told_so_by_a_full_server_too(tmp_path: Path) -> None:
    write_regressor(tmp_path, networks.Double())
    app = create_app(Settings(model_store=tmp_path, engine="torch", max_waiting=1, inference_key=KEY))
    repository_of(app).get("linear")._backlog.enter(1)
    client = app.test_client()
    for _ in range(6):
        good = client.post("/linear/predict", data={"value": "5"}, headers={"Authorization": f"Bearer {KEY}"})
        bad = client.post("/linear/predict", data={"value": "5"}, headers={"Authorization": "Bearer other"})
        none = client.post("/linear/predict", data={"value": "5"})
        assert (good.status_code, bad.status_code, none.status_code) == (503, 401, 401)


def test_what_one_client_may_not_do_is_not_told_by_what_another_was(client: FlaskClient) -> None:
    for _ in range(4):
        assert client.post("/linear/predict", data={"value": "5"}).status_code == 503
    assert client.post("/linear/predict", data="value=5", content_type="text/plain").status_code in (400, 415)
    assert client.get("/linear/predict").status_code == 405
    assert client.post("/linear/nowhere", data={"value": "5"}).status_code == 404


class Refusing:
    """An application whose line is always full, and that says the header `echoes`, if it is given one."""

    def __init__(self, echoes: str = "") -> None:
        self.calls, self._echoes = 0, echoes
        self._line = line_of(Clock(), max_rows=1)
        self._line.enter(1, 1e9)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.calls += 1
        try:
            self._line.enter(1, 1e9)
        except Overloaded:
            start_response("503 Service Unavailable", [("Retry-After", "1")])
        return [environ.get(self._echoes, "").encode() if self._echoes else b"busy"]


def ask(app: Any, **environ: Any) -> tuple[str, list[bytes]]:
    said: list[str] = []
    path = {"PATH_INFO": "/", "servekit.deadline": 1e9}
    pieces = app({**path, **environ}, lambda status, headers, exc_info=None: said.append(status))
    return said[0], list(pieces)


def test_only_an_answer_that_says_nothing_of_its_request_is_repeated() -> None:
    for echoes, calls in (("", 3), ("HTTP_X_ID", 10)):
        inner = Refusing(echoes)
        app = Shedding(inner)
        answers = [ask(app, HTTP_X_ID=str(number))[1] for number in range(10)]
        assert inner.calls == calls
        assert answers == [[str(number).encode()] if echoes else [b"busy"] for number in range(10)]


@pytest.mark.parametrize(
    "name", ["X_AMZN_SAGEMAKER_CUSTOM_ATTRIBUTES", "X_MS_REQUEST_ID", "X_MS_CLIENT_REQUEST_ID", "TRACEID"]
)
def test_nobody_is_told_the_header_that_two_others_had_in_common(name: str) -> None:
    inner = Refusing(f"HTTP_{name}")
    app = Shedding(inner)
    said = [ask(app, **{f"HTTP_{name}": value})[1] for value in ("a", "a", "a", "a", "b")]
    assert said == [[b"a"]] * 4 + [[b"b"]]


def test_who_sends_requests_of_many_kinds_takes_no_memory() -> None:
    app = Shedding(Refusing())
    for number in range(3 * MAX_DOORS):
        assert ask(app, PATH_INFO=f"/{number}")[0].startswith("503")
    assert len(app._doors) <= MAX_DOORS


def test_a_request_too_many_is_refused_though_its_model_is_idle(app: Flask) -> None:
    client = app.test_client()
    answers = [client.post("/linear/predict", data={"value": "5"}, environ_overrides={CROWDED: True}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [503] * 5
    assert client.post("/linear/predict", data={"value": "5"}).status_code == 200
    assert client.get("/health/ready", environ_overrides={CROWDED: True}).status_code == 200


# What waits for the loop.


class Loop:
    """Runs requests that take `seconds` each, by a clock of its own."""

    def __init__(self, seconds: float, patience: float = 1.0) -> None:
        self.clock, self.seconds = Clock(), seconds
        self.run: list[Any] = []
        self.refused: list[Any] = []
        self.intake = Intake(patience, self.start, self.clock)

    def start(self, connection: Any, request: Any, arrived: float, is_crowded: bool) -> None:
        (self.refused if is_crowded else self.run).append(request.name)
        self.clock.now += 0.0 if is_crowded else self.seconds

    def come(self, name: Any, body: bytes = b"x", is_gone: bool = False) -> None:
        self.intake.add(SimpleNamespace(is_gone=is_gone), SimpleNamespace(name=name, body=body), self.clock.now)  # type: ignore[arg-type]


def test_requests_run_in_the_order_in_which_they_came_a_slice_at_a_time() -> None:
    loop = Loop(seconds=0.001)
    for name in range(20):
        loop.come(name)
    assert loop.run == []
    loop.intake.run()
    assert loop.run == list(range(len(loop.run))) and 5 <= len(loop.run) <= 7
    while loop.intake:
        loop.intake.run()
    assert loop.run == list(range(20))


def test_what_carries_no_body_waits_for_nobody_and_who_is_gone_is_not_served() -> None:
    loop = Loop(seconds=0.001)
    loop.come("prediction")
    loop.come("left", is_gone=True)
    loop.come("health", body=b"")
    assert loop.run == ["health"]
    loop.intake.run()
    assert loop.run == ["health", "prediction"]


def test_more_than_can_be_run_in_half_the_time_is_one_too_many() -> None:
    loop = Loop(seconds=0.01, patience=2.0)
    for name in range(200):
        loop.come(name)
    assert not loop.refused  # how fast they go is not known
    for _ in range(10):
        loop.intake.run()
    loop.come("late")
    assert loop.refused == ["late"]
    while len(loop.intake) > FEW:
        loop.intake.run()
    loop.come("in time")
    assert loop.refused == ["late"] and len(loop.intake) == FEW + 1


def test_workers_with_many_connections_need_not_hold_exactly_as_many() -> None:
    board = Board(2)
    board.join(0)
    for held, most in ((7, 7), (400, 450)):
        board.note(held, 100.0)
        assert board.is_least(most, 100.0) and not board.is_least(most + 1, 100.0)


# What the bench says of what it has measured.


def phase(goodput: float, p99: float = 20.0, refused: float = 2.0, **more: Any) -> dict[str, Any]:
    told = {"goodput": goodput, "good_p99_ms": p99, "refused_p99_ms": refused, "without_retry_after": 0, "others": {}, "due": 1}
    return {**told, "bins_p99_ms": [300.0] * 4 + [p99] * 8, **more}


def steps(goodput: float, **over: Any) -> list[dict[str, Any]]:
    rates = {1.0: 600.0, 2.0: 600.0, 5.0: goodput, 10.0: goodput}
    return [{"times": times, "phases": [phase(300), phase(rate, **over), phase(300)]} for times, rate in rates.items()]


def test_the_overload_bench_finds_a_server_that_breaks_down_or_says_no_too_late() -> None:
    assert judge(600, steps(560), 1.0).is_reached
    for bad in (steps(500), steps(600, p99=1500.0), steps(600, refused=11.0), steps(600, without_retry_after=1)):
        assert not judge(600, bad, 1.0).is_reached
    slow = steps(600)[0]
    slow["phases"][2]["bins_p99_ms"] = [300.0] * 12
    assert not was_normal_after(slow)


def test_the_soak_finds_a_leak_and_is_not_misled_by_the_start() -> None:
    chance = random.Random(1)

    def samples(leak: float) -> list[dict[str, Any]]:
        sizes = [300 + 80 * min(1.0, step / 20) + chance.uniform(-2, 2) + leak * step / 10 for step in range(60)]
        return [{"sent": 10_000 * step, "mib": size, "descriptors": 100 + step} for step, size in enumerate(sizes)]

    assert abs(slope(samples(0.0))) < 1.0 < slope(samples(3.0))
    assert growth(samples(0.0), "descriptors") == pytest.approx(24, abs=4)


def test_the_networks_of_the_bench_answer_as_linear_does_and_the_leak_leaks() -> None:
    value = torch.ones(3, 1)
    for network in (costly.Leak(), costly.Device(), costly.Pure()):
        assert network(value).shape == (3, 1)
    assert len(costly.Leak.kept) == 3
