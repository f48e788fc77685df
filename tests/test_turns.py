"""Batching by turn, without a server: requests are functions, a turn is a call."""

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from servekit import batcher as room
from servekit.batcher import Batcher, Job, Parts, ThreadRunner, due, take_batch, use_runner
from servekit.engines.echo import EchoEngine
from servekit.errors import DeadlineExceeded, Overloaded
from servekit.tensors import Tensors, row_count
from servekit.turns import HOLD_SECONDS, MAX_ERRANDS, Turns

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
    turns.start(first)
    while not engine.passes:
        time.sleep(0.001)
    assert turns.long_pass[0] < time.monotonic()
    late = Client(batcher, 4, seconds=0.2)
    for client in (second, third, late):
        turns.start(client)
    assert turns.next_deadline == late.deadline
    while time.monotonic() < late.deadline:
        time.sleep(0.01)
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


def turn_until(turns: Turns, woken: threading.Event, condition: Callable[[], Any]) -> None:
    """Turn as the loop does, when woken, until `condition()` is true."""
    while not condition():
        assert woken.wait(SOON)
        woken.clear()
        turns.turn()


def test_what_takes_long_runs_beside_the_loop_and_others_are_served_meanwhile(
    turns: Turns, woken: threading.Event
) -> None:
    gate = threading.Event()
    answers: list[Any] = []

    def change() -> None:
        answers.append(room.beside(lambda: gate.wait(SOON) and threading.current_thread().name))

    turns.start(change)
    client = Client(Batcher(CountingEngine(), 4), 1)
    turns.start(client)
    turns.turn()
    assert client.answer == [1] and answers == []
    gate.set()
    turn_until(turns, woken, lambda: answers)
    assert answers == ["servekit-errand"]
    assert room.beside(lambda: 7) == 7  # outside of requests


def test_what_fails_beside_the_loop_fails_in_the_request(turns: Turns, woken: threading.Event) -> None:
    errors: list[BaseException] = []

    def fail() -> None:
        raise LookupError("beside")

    def change() -> None:
        try:
            room.beside(fail)
        except LookupError as error:
            errors.append(error)

    for _ in range(MAX_ERRANDS + 1):  # each gives its place back
        count = len(errors)
        turns.start(change)
        turn_until(turns, woken, lambda count=count: len(errors) > count)


def test_what_fails_beside_the_loop_is_forgotten_with_its_answer(turns: Turns, woken: threading.Event) -> None:
    kept: list[weakref.ref[np.ndarray]] = []

    def fail() -> None:
        read = np.zeros(1)
        kept.append(weakref.ref(read))
        raise LookupError("beside")

    def change() -> None:
        try:
            room.beside(fail)
        except LookupError:
            done.append(True)

    done: list[bool] = []
    gc.disable()
    try:
        turns.start(change)
        turn_until(turns, woken, lambda: done)
        deadline = time.monotonic() + SOON
        while kept[0]() is not None and time.monotonic() < deadline:  # its thread ends
            time.sleep(0.001)
        assert kept[0]() is None
    finally:
        gc.enable()


def test_there_is_a_bound_on_what_runs_beside_the_loop(turns: Turns, woken: threading.Event) -> None:
    gate = threading.Event()
    done: list[Any] = []

    def change() -> None:
        try:
            done.append(room.beside(lambda: gate.wait(SOON)))
        except Overloaded as error:
            done.append(error)

    for _ in range(MAX_ERRANDS + 1):
        turns.start(change)
    assert [type(each) for each in done] == [Overloaded]
    gate.set()
    turn_until(turns, woken, lambda: len(done) == MAX_ERRANDS + 1)
    turns.start(change)
    turn_until(turns, woken, lambda: len(done) == MAX_ERRANDS + 2)
    assert done[1:] == [True] * (MAX_ERRANDS + 1)


class Speaking(EchoEngine):
    """Gives parts of its answer, the second one when `gate` opens."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.gate = threading.Event()

    def __call__(self, tensors: Tensors) -> Tensors:
        self.parts.put(b"first")
        assert self.gate.wait(SOON)
        self.parts.put(b"second")
        return tensors


def test_parts_of_an_answer_come_while_the_pass_runs(turns: Turns, woken: threading.Event) -> None:
    parts, got = Parts(), list[Any]()
    engine = Speaking(parts)

    def request() -> None:
        for part in room.stream(Batcher(engine, 4, is_long=True), {"x": np.zeros(1)}, time.monotonic() + SOON, parts):
            got.append(part if isinstance(part, bytes) else "end")

    turns.start(request)
    turn_until(turns, woken, lambda: got)
    assert got == [b"first"]
    engine.gate.set()
    turn_until(turns, woken, lambda: "end" in got)
    assert got == [b"first", b"second", "end"]


def test_a_client_that_leaves_a_stream_disturbs_nobody_who_comes_after_it(turns: Turns, woken: threading.Event) -> None:
    parts, got = Parts(), list[bytes]()
    engine = Speaking(parts)
    batcher = Batcher(engine, 4, is_long=True)

    def leave() -> None:
        answer = room.stream(batcher, {"x": np.zeros(1)}, time.monotonic() + SOON, parts)
        got.append(next(answer))
        answer.close()

    turns.start(leave)
    turn_until(turns, woken, lambda: got)
    client = Client(Batcher(CountingEngine(), 4, is_long=True), 3)
    turns.start(client)  # in the greenlet of who has left
    turns.turn()
    assert client.answer is None
    engine.gate.set()
    turn_until(turns, woken, lambda: client.answer is not None)
    assert client.answer == [3]


def job(batcher: Batcher, submitted: float, rows: int = 1) -> Job:
    made = Job(batcher, {"x": np.zeros(rows)}, rows, math.inf)
    made.submitted = submitted
    return made


def test_a_pass_waits_for_more_rows_as_long_as_its_model_allows() -> None:
    patient, quick = Batcher(EchoEngine(), 4, max_delay=10.0), Batcher(EchoEngine(), 4)
    assert due([], 100.0) == (None, math.inf)
    first, second = job(patient, 100.0), job(patient, 105.0)
    assert due([first, second], 106.0) == (None, 110.0)
    assert due([first, second], 110.0) == (first, 110.0)
    full = job(patient, 106.0, rows=2)
    assert due([first, second, full], 106.0)[0] is first
    other = job(quick, 106.0)
    assert due([first, other, second], 106.0)[0] is other  # it need not wait for another model's rows
    sooner = job(Batcher(EchoEngine(), 4, max_delay=1.0), 106.0)
    assert due([first, second, sooner], 106.5) == (None, 107.0)
    waiting = [first, other, second, full]
    assert take_batch(waiting, first) == [first, second, full] and waiting == [other]


def test_the_last_pass_holds_no_model(turns: Turns, woken: threading.Event) -> None:
    def predict() -> "weakref.ref[CountingEngine]":
        engine = CountingEngine()
        client = Client(Batcher(engine, 4, is_long=True), 1)
        turns.start(client)
        turn_until(turns, woken, lambda: client.answer)
        return weakref.ref(engine)

    gone = predict()
    until = time.monotonic() + SOON
    while gone() is not None and time.monotonic() < until:  # the thread may be on its way to wait
        time.sleep(0.01)
    assert gone() is None
