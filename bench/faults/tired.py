"""A network that takes its time, so that requests wait in line for it."""

import time

from torch import Tensor

from models.linear import LinearRegressor

SECONDS = 2.5  # longer than the server needs to find out that a client has gone


class Tired(LinearRegressor):
    """The linear regressor, after a while."""

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        time.sleep(SECONDS if len(value) else 0.0)
        return super().forward(value)
