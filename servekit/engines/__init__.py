"""Engines: from the files of a version folder to a function `Tensors -> Tensors`, one module a runtime.

An engine module is imported only when it is chosen, since it imports its heavy library.
"""

from typing import Protocol

from servekit.tensors import Tensors


class Engine(Protocol):
    """A loaded network: the one method maps input tensors to output tensors, row by row."""

    device: str  # where it computes: "cpu" or "cuda"

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs for `tensors`, row i of each output belonging to row i of the inputs."""
