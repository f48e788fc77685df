"""Around an engine whose arrays have other shapes than clients know: reshaped ones, or without an axis for rows."""

from collections.abc import Callable, Mapping

import numpy as np

from servekit.tensors import Tensors

Shapes = Mapping[str, tuple[int, ...]]


class ShapedEngine:
    """Gives `engine` its inputs, and clients its outputs, in the shapes that each of them wants."""

    def __init__(
        self, engine: Callable[[Tensors], Tensors], device: str, inputs: Shapes, outputs: Shapes, is_batched: bool
    ) -> None:
        """`inputs` and `outputs` are the shapes that the engine, on `device`, and the clients want, rows not counted.

        They hold only the names whose shapes change. With `is_batched` False the engine knows no rows, and gets and
        gives one of them.
        """
        self.device = device
        self._engine = engine
        self._inputs, self._outputs = inputs, outputs
        self._is_batched = is_batched

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs for `tensors`; axis 0 of all of them is the rows."""
        given = {}
        for name, array in tensors.items():
            rows = array.shape[:1] if self._is_batched else ()
            given[name] = array.reshape(rows + self._inputs.get(name, array.shape[1:]))
        answer = {}
        for name, array in self._engine(given).items():
            array = array if self._is_batched else np.asarray(array)[np.newaxis]
            answer[name] = array.reshape(array.shape[:1] + self._outputs[name]) if name in self._outputs else array
        return answer
