"""Networks and handlers that misbehave on purpose, for model stores that tests write."""

import os
import time

import torch
from torch import Tensor, nn

from servekit.handlers.base import Handler

IN_PASS = "Now this takes a while.\n"  # what the next two write, for the log of a server, as a pass begins


class Slow(nn.Module):
    """Takes a second and a half for each pass with an input above zero; the warm-up's zeros pass at once."""

    def forward(self, value: Tensor) -> Tensor:
        if value.max() > 0:
            os.write(1, IN_PASS.encode())
            time.sleep(1.5)
        return value


class Double(nn.Module):
    """Answers with twice its input."""

    def forward(self, value: Tensor) -> Tensor:
        return value * 2


class Hanging(nn.Module):
    """Never comes back from an input above zero."""

    def forward(self, value: Tensor) -> Tensor:
        if value.max() > 0:
            os.write(1, IN_PASS.encode())
        while value.max() > 0:
            time.sleep(0.1)
        return value


class ThreadCounter(nn.Module):
    """Answers with the number of threads that torch computes with."""

    def forward(self, value: Tensor) -> Tensor:
        return value * 0 + torch.get_num_threads()


class Hungry(nn.Module):
    """Asks for 8 PB when the input is above zero."""

    def forward(self, value: Tensor) -> Tensor:
        if value.max() > 0:
            torch.empty(10**15)
        return value


class Faulty(nn.Module):
    """Fails with a bug of its own when the input is above zero."""

    def forward(self, value: Tensor) -> Tensor:
        if value.max() > 0:
            raise KeyError("secret")
        return value


class Infinite(nn.Module):
    """Answers with an infinity."""

    def forward(self, value: Tensor) -> Tensor:
        return value + float("inf")


class TwoOutputs(nn.Module):
    """Returns a tuple: the double and the half."""

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        return value * 2, value / 2


class Unmakeable(nn.Module):
    """Cannot be constructed."""

    def __init__(self) -> None:
        raise LookupError("no such layer")


class PlainHandler(Handler):
    """A handler as a user would write it."""


def not_a_network() -> object:
    """Return something that is no module."""
    return object()
