import threading
import time

import numpy as np
import pytest

from servekit.batcher import Batcher
from servekit.engines.echo import EchoEngine
from servekit.errors import DeadlineExceeded
from servekit.tensors import Tensors, row_count

SOON = 10.0


class CountingEngine(EchoEngine):
    """Echoes, and remembers how many rows each pass had and how many passes ran at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.passes: list[int] = []
        self.running = self.most = 0
        self._seconds = seconds

    def __call__(self, tensors: Tensors) -> Tensors:
        self.running += 1
        self.most = max(self.most, self.running)
        self.passes.append(row_count(tensors))
        time.sleep(self._seconds)
        self.running -= 1
        return tensors


def rows(count: int) -> Tensors:
    return {"x": np.arange(count)}


def test_no_pass_is_larger_than_allowed_and_no_row_is_lost() -> None:
    engine = CountingEngine()
    answer = Batcher(engine, 32)(rows(70), time.monotonic() + SOON)
    assert engine.passes == [32, 32, 6]
    assert answer["x"].tolist() == list(range(70))


def test_threads_take_turns() -> None:
    engine = CountingEngine(seconds=0.01)
    batcher = Batcher(engine, 32)
    threads = [threading.Thread(target=batcher, args=(rows(1), time.monotonic() + SOON)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(engine.passes), engine.most) == (8, 1)


def test_models_share_the_one_core_of_a_worker() -> None:
    engine = CountingEngine(seconds=0.01)
    batchers = [Batcher(engine, 32) for _ in range(4)]
    threads = [threading.Thread(target=batcher, args=(rows(1), time.monotonic() + SOON)) for batcher in batchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(engine.passes), engine.most) == (4, 1)


def test_a_request_that_waits_past_its_deadline_is_never_run() -> None:
    engine = CountingEngine(seconds=2.0)
    batcher = Batcher(engine, 32)
    holder = threading.Thread(target=batcher, args=(rows(5), time.monotonic() + SOON))
    holder.start()
    while not engine.passes:
        time.sleep(0.001)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        batcher(rows(1), started + 0.05)
    assert time.monotonic() - started < 1.5
    holder.join()
    assert engine.passes == [5]


def test_a_deadline_in_the_past_runs_nothing() -> None:
    engine = CountingEngine()
    with pytest.raises(DeadlineExceeded):
        Batcher(engine, 32)(rows(1), time.monotonic() - 1)
    assert engine.passes == []


def test_a_pass_that_fails_gives_its_turn_back() -> None:
    class Failing(EchoEngine):
        def __call__(self, tensors: Tensors) -> Tensors:
            raise RuntimeError("no")

    batcher = Batcher(Failing(), 32)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            batcher(rows(1), time.monotonic() + SOON)
