"""Networks that cost something: time of the processor, the interpreter, or memory that they never give back.

Like those of models.py they have the weights of models/linear.py, and answer as it does.
"""

import time

import torch
from torch import Tensor

from models.linear import LinearRegressor

SECONDS = 0.005  # of a pass
LEAKED_BYTES = 1000  # a row


class Costly(LinearRegressor):
    """Computes for about SECONDS in one operation, in which other threads run; its speed is measured when it is made."""

    def __init__(self) -> None:
        super().__init__()
        size = 64
        while (seconds := _product_seconds(size)) < SECONDS:
            size = int(size * min(2.0, max(1.02, (SECONDS / seconds) ** (1 / 3))))
        self._matrix = torch.rand(size, size)

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        torch.mm(self._matrix, self._matrix)
        return super().forward(value)


class Device(LinearRegressor):
    """Waits SECONDS, as for an accelerator: its speed is the same on every machine, however much else that does."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        time.sleep(SECONDS)
        return super().forward(value)


class Pure(LinearRegressor):
    """Computes for SECONDS in Python, which gives other threads the interpreter only when they insist."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        until = time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            pass
        return super().forward(value)


class Leak(LinearRegressor):
    """Keeps something of every row."""

    kept: list[bytes] = []

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        self.kept.extend(bytes(LEAKED_BYTES) for _ in range(len(value)))
        return super().forward(value)


def _product_seconds(size: int) -> float:
    matrix = torch.rand(size, size)
    fastest = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest
