"""The TorchScript engine: `model.pt`, called as Triton's PyTorch backend calls it.

Its tensors are found by the number at the end of their names (INPUT__0), its inputs else by the names of forward's
arguments, or all of them by their order.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from servekit.errors import ModelLoadError
from servekit.spec import TensorSpec
from servekit.tensors import Tensors

_NUMBERED = re.compile(r".+__(\d+)")


class TorchScriptEngine:
    """Runs a TorchScript module on the GPU if there is one, else on one thread of the CPU."""

    def __init__(
        self,
        content: bytes,
        path: Path,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        uses_gpu: bool = True,
    ) -> None:
        """Load `content`; raise ModelLoadError naming its `path` and the remedy. Loading it runs what it was made of."""
        self.device = "cuda" if uses_gpu and torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # the workers share the cores out among themselves
        try:
            self._network = _loaded(content, self.device)
            arguments = [argument.name for argument in self._network.forward.schema.arguments[1:]]
            self._arguments = _in_order([tensor.name for tensor in inputs], arguments)
            if any(tensor.dtype == "bytes" for tensor in (*inputs, *outputs)):
                raise ValueError("its tensors cannot be texts")
        except Exception as error:  # what a damaged file makes torch raise is not documented
            reason = textwrap.shorten(str(error), 300)
            raise ModelLoadError(f"{path} cannot be served ({reason}); save it again with torch.jit.save.") from error
        names = [tensor.name for tensor in outputs]
        self._outputs = list(zip(names, _numbers(names) or range(len(names)), strict=True))
        self._halves = {tensor.name for tensor in inputs if tensor.dtype == "bfloat16"}

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs of the network, in main memory; raise MemoryError when there was none left."""
        try:
            with torch.inference_mode():
                given = self._network(*(self._tensor(name, tensors[name]) for name in self._arguments))
        except RuntimeError as error:
            # The CPU allocator has no exception of its own; the words are those of torch's c10/core/impl/alloc_cpu.cpp.
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        found = list(given) if isinstance(given, tuple | list) else [given]
        return {name: _array(found[number]) for name, number in self._outputs}

    def _tensor(self, name: str, array: np.ndarray) -> torch.Tensor:
        # What comes from a request is read-only memory, of which torch makes no tensors without a warning.
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        return tensor.to(self.device, torch.bfloat16 if name in self._halves else None)


def _loaded(content: bytes, device: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it advises another format; these files exist
        network = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
    return network.eval()


def _array(tensor: Any) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"the network gives {type(tensor).__name__} where a tensor is wanted")
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()


def _in_order(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return `names` in the order in which forward, whose parameters are called `arguments`, takes them."""
    if len(names) > len(arguments):
        raise ValueError(f"its forward takes {len(arguments)} tensors, not {len(names)}")
    if set(names) <= set(arguments):
        return sorted(names, key=arguments.index)
    numbers = _numbers(names)
    return [name for _, name in sorted(zip(numbers, names, strict=True))] if numbers else list(names)


def _numbers(names: Sequence[str]) -> list[int]:
    """Return the numbers at the end of `names`, an empty list unless each has one and they count from 0."""
    found = [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]
    return found if len(found) == len(names) and len(set(found)) == len(found) else []
