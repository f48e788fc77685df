"""Batching by turn, without a server: requests are functions, a turn is a call."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from servekit import batcher as room
from servekit.batcher import Batcher, ThreadRunner, use_runner
from servekit.engines.echo import EchoEngine
from servekit.errors import DeadlineExceeded
from servekit.tensors import Tensors, row_count
from servekit.turns import HOLD_SECONDS, Turns

SOON = 10.0


class CountingEngine(EchoEngine):
    """Echoes and remembers the rows of each pass; a pass waits for `gate`."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, tensors: Tensors) -> Tensors:
        self.passes.append(row_count(tensors))
        assert self.gate.wait(SOON)
        return tensors


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def turns(woken: threading.Event) -> Iterator[Turns]:
    turns = Turns(woken.set)
    use_runner(turns)
    yield turns
    use_runner(ThreadRunner())


class Client:
    """A request that asks for the rows `values`, and what it got."""

    def __init__(self, batcher: Batcher, *values: int, seconds: float = SOON) -> None:
        self.batcher, self.values, self.deadline = batcher, values, time.monotonic() + seconds
        self.answer: list[int] | BaseException | None = None

    def __call__(self) -> None:
        try:
            self.answer = self.batcher({"x": np.array(self.values)}, self.deadline)["x"].tolist()
        except DeadlineExceeded as error:
            self.answer = error


def test_the_requests_of_a_turn_share_one_pass(turns: Turns) -> None:
    engine = CountingEngine()
    batcher = Batcher(engine, 32)
    clients = [Client(batcher, 1), Client(batcher, 2, 3), Client(batcher, 4)]
    for client in clients:
        turns.start(client)
    assert turns.has_work and engine.passes == []
    turns.turn()
    assert engine.passes == [4]
    assert [client.answer for client in clients] == [[1], [2, 3], [4]]
    assert not turns.has_work


def test_a_request_with_many_rows_counts_by_its_rows(turns: Turns) -> None:
    engine = CountingEngine()
    batcher = Batcher(engine, 4)
    clients = [Client(batcher, *range(10)), Client(batcher, 10), Client(batcher, 11)]
    for client in clients:
        turns.start(client)
    while turns.has_work:
        turns.turn()
    assert engine.passes == [4, 4, 4]
    assert [client.answer for client in clients] == [list(range(10)), [10], [11]]


def test_a_request_that_is_late_never_runs(turns: Turns) -> None:
    engine = CountingEngine()
    batcher = Batcher(engine, 4)
    late, early = Client(batcher, 1, seconds=-1), Client(batcher, 2)
    for client in (late, early):
        turns.start(client)
    turns.turn()
    assert isinstance(late.answer, DeadlineExceeded) and early.answer == [2]
    assert engine.passes == [1]


def test_a_long_pass_runs_beside_the_loop_and_the_next_batch_gathers_meanwhile(
    turns: Turns, woken: threading.Event
) -> None:
    engine = CountingEngine()
    engine.gate.clear()
    batcher = Batcher(engine, 32, is_long=True)
    first, second, third = Client(batcher, 1), Client(batcher, 2), Client(batcher, 3)
    late = Client(batcher, 4, seconds=0.05)
    turns.start(first)
    while not engine.passes:
        time.sleep(0.001)
    assert turns.long_pass[0] < time.monotonic()
    for client in (second, third, late):
        turns.start(client)
    assert turns.next_deadline == late.deadline
    time.sleep(0.06)
    turns.turn()  # not held up by the pass
    assert isinstance(late.answer, DeadlineExceeded)
    assert first.answer is None
    engine.gate.set()
    for _ in range(2):
        assert woken.wait(SOON)
        woken.clear()
        turns.turn()
        if third.answer is not None:
            break
    assert [client.answer for client in (first, second, third)] == [[1], [2], [3]]
    assert engine.passes == [1, 2]
    assert turns.long_pass[0] > time.monotonic()


def test_what_the_thread_raises_reaches_the_request(turns: Turns, woken: threading.Event) -> None:
    class Ending(EchoEngine):
        def __call__(self, tensors: Tensors) -> Tensors:
            raise SystemExit(7)

    def request() -> None:
        with pytest.raises(SystemExit):
            Batcher(Ending(), 4, is_long=True)({"x": np.zeros(1)}, time.monotonic() + SOON)
        ended.append(True)

    ended: list[bool] = []
    turns.start(request)
    assert woken.wait(SOON)
    turns.turn()
    assert ended


def test_long_work_gives_way_to_others_and_short_work_does_not(turns: Turns) -> None:
    order = []

    def long() -> None:
        for step in range(2):
            time.sleep(2 * HOLD_SECONDS)
            room.give_way()
            order.append(f"long {step}")

    def short() -> None:
        room.give_way()
        order.append("short")

    turns.start(long)
    turns.start(short)
    while turns.has_work:
        turns.turn()
    assert order == ["short", "long 0", "long 1"]


def test_a_request_that_fails_ends_nothing_and_its_greenlet_is_used_again(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise LookupError("of a request")

    turns.start(fail)
    assert "of a request" in caplog.text
    engine = CountingEngine()
    client = Client(Batcher(engine, 4), 5)
    turns.start(client)
    turns.turn()
    assert client.answer == [5]


def test_outside_of_requests_a_pass_runs_at_once(turns: Turns) -> None:
    client = Client(Batcher(CountingEngine(), 4), *range(6))
    client()
    assert client.answer == list(range(6))
    room.give_way()
