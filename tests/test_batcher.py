import threading
import time

import numpy as np
import pytest

from servekit.batcher import MAX_JOBS, MAX_PARTS_BYTES, Backlog, Batcher, Job, Parts, run_pass, take_batch
from servekit.engines.echo import EchoEngine
from servekit.errors import DeadlineExceeded, Overloaded
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


def test_more_rows_than_may_wait_at_once_come_back_in_order() -> None:
    engine = CountingEngine()
    answer = Batcher(engine, 2)(rows(5 * MAX_JOBS + 1), time.monotonic() + SOON)
    assert len(engine.passes) == 2.5 * MAX_JOBS + 1
    assert answer["x"].tolist() == list(range(5 * MAX_JOBS + 1))


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
    with pytest.raises(DeadlineExceeded):
        batcher(rows(1), time.monotonic() + 0.05)
    assert engine.running  # the pass before it
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


def jobs_of(batcher: Batcher, *arrays: np.ndarray) -> list[Job]:
    return [Job(batcher, {"x": array}, len(array), time.monotonic() + SOON) for array in arrays]


def test_only_what_fits_together_goes_into_one_batch_and_the_order_stays() -> None:
    batcher, other = Batcher(EchoEngine(), 4), Batcher(EchoEngine(), 4)
    flat, square = np.zeros(2), np.zeros((1, 3))
    waiting = jobs_of(batcher, flat, square, flat, np.zeros(1), flat.astype(int))
    waiting[1:1] = jobs_of(other, flat)
    sizes = []
    while waiting:
        batch = take_batch(waiting)
        assert len({job.key for job in batch}) == 1
        sizes.append([job.rows for job in batch])
    assert sizes == [[2, 2], [2], [1], [1], [2]]


def test_a_batch_gives_each_request_its_own_rows() -> None:
    engine = CountingEngine()
    jobs = jobs_of(Batcher(engine, 32), np.arange(3), np.arange(10, 12), np.arange(20, 21))
    run_pass(jobs)
    assert [job.outputs["x"].tolist() for job in jobs] == [[0, 1, 2], [10, 11], [20]]
    assert engine.passes == [6]


def test_only_the_culprit_of_a_batch_that_fails_fails() -> None:
    class Fragile(CountingEngine):
        def __call__(self, tensors: Tensors) -> Tensors:
            super().__call__(tensors)
            if (tensors["x"] == 13).any():
                raise ValueError("thirteen")
            return tensors

    engine = Fragile()
    jobs = jobs_of(Batcher(engine, 32), np.arange(3), np.array([13]), np.arange(20, 21))
    run_pass(jobs)
    assert [job.done for job in jobs] == [True] * 3
    assert [str(job.error) if job.error else job.outputs["x"].tolist() for job in jobs] == [[0, 1, 2], "thirteen", [20]]
    assert engine.passes == [5, 3, 1, 1]


def test_a_pass_is_observed_with_its_rows_and_waits() -> None:
    seen: list[tuple[int, float, list[float]]] = []
    batcher = Batcher(CountingEngine(seconds=0.01), 32, observe=lambda *values: seen.append(values))
    jobs = jobs_of(batcher, np.arange(3), np.arange(2))
    time.sleep(0.02)
    run_pass(jobs)
    [(count, seconds, waits)] = seen
    assert count == 5 and 0.01 <= seconds < 1 and len(waits) == 2 and all(0.02 <= wait < 1 for wait in waits)


def test_a_request_that_is_larger_than_the_limit_leaves_room_for_others() -> None:
    backlog = Backlog(100)
    backlog.enter(1_000_000)
    backlog.enter(50)
    with pytest.raises(Overloaded):
        backlog.enter(1)
    backlog.leave(50)
    with pytest.raises(Overloaded):
        backlog.enter(101)  # two of them would take twice the memory
    backlog.leave(1_000_000)
    assert backlog.rows == 0


def test_an_answer_that_its_client_does_not_take_is_bounded() -> None:
    parts = Parts()
    part = b"x" * (MAX_PARTS_BYTES // 4)
    for _ in range(5):
        parts.put(part)
    with pytest.raises(BufferError, match="too slowly"):
        parts.put(part)
    assert len(list(parts.take())) == 5
    parts.put(part)
