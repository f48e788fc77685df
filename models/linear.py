"""The linear regressor: one dense layer."""

from torch import Tensor, nn


class LinearRegressor(nn.Module):
    """`(rows, 1)` -> `(rows, 1)`: y = w x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(1, 1)

    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value."""
        return self.dense(value)
