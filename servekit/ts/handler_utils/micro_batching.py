"""Batches cut into small ones, whose preprocessing, inference and postprocessing overlap."""

import contextvars
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

HANDLER_METHODS = ("preprocess", "inference", "postprocess")


class MicroBatching:
    """Takes the place of a handler's `handle`: `self.handle = MicroBatching(self, micro_batch_size=4)`."""

    def __init__(self, parent_handler: Any, micro_batch_size: int = 1, parallelism: dict[str, int] | None = None) -> None:
        """Run the steps of `parent_handler`; `parallelism` says by how many threads each, one by default."""
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self._parallelism = dict.fromkeys(HANDLER_METHODS, 1)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._local = threading.local()
        self.parallelism = parallelism or {}

    @property
    def parallelism(self) -> dict[str, int]:
        """How many threads run each step; what is assigned to it may name some of the steps."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: dict[str, int]) -> None:
        """Start as many threads a step."""
        if set(parallelism) - set(HANDLER_METHODS):
            raise ValueError(f"The steps whose threads can be set are {', '.join(HANDLER_METHODS)}.")
        self._parallelism.update(parallelism)
        self.shutdown()
        self._pools = {step: ThreadPoolExecutor(self._parallelism[step], f"micro-batch-{step}") for step in HANDLER_METHODS}

    def shutdown(self) -> None:
        """End the threads when they have done what they are at."""
        for pool in self._pools.values():
            pool.shutdown(wait=False)

    def __del__(self) -> None:
        self.shutdown()

    def get_micro_batch_idx(self) -> int | None:
        """Return the number of the small batch that the calling thread works on."""
        return getattr(self._local, "index", None)

    def handle(self, data: Sequence[Any]) -> list[Any]:
        """Return the rows of the answers to `data`, in order; raise what the first failing step raised."""
        size = self.micro_batch_size
        ends = []
        for index, start in enumerate(range(0, len(data), size)):
            last: Future[Any] = Future()
            last.set_result(data[start : start + size])
            for step in HANDLER_METHODS:
                # Each step has threads of its own and takes the small batches in order: the one it waits for is on its way.
                context = contextvars.copy_context()
                last = self._pools[step].submit(context.run, self._step, step, index, last)
            ends.append(last)
        return [row for end in ends for row in end.result()]

    def _step(self, step: str, index: int, before: "Future[Any]") -> Any:
        rows = before.result()
        self._local.index = index
        return getattr(self.handler, step)(rows)

    def __call__(self, data: Sequence[Any], context: Any) -> Any:
        """Do what BaseHandler.handle does, the steps of predictions overlapping."""
        started = time.perf_counter()
        handler = self.handler
        handler.context = context
        if handler._is_describe():
            output = [handler.describe_handle()]
        elif handler._is_explain():
            output = handler.explain_handle(handler.preprocess(data), data)
        else:
            output = self.handle(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2))
        return output
