"""The torch engine: a state dict (`model.pth`) in the network that `model.json` names, in eager mode."""

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from servekit.errors import ModelLoadError
from servekit.spec import FILE_NAME, RETRAIN, WEIGHTS, ModelSpec, read_file, resolve
from servekit.tensors import Tensors


class TorchEngine:
    """Runs the network of a version folder on the GPU if there is one, else on one thread of the CPU."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Load and check the weights; raise ModelLoadError naming the file and the remedy."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # The workers share the cores out among themselves: threads of one would only fight those of the others.
        torch.set_num_threads(1)
        self._inputs = [tensor.name for tensor in spec.inputs]
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._network = _load_network(folder, spec, self.device)

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs of the network, in main memory; raise MemoryError when there was none left."""
        try:
            with torch.inference_mode():
                arguments = [_to_device(_tensor_of(tensors[name]), self.device) for name in self._inputs]
                outputs = self._network(*arguments)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                arrays = [output.cpu().numpy() for output in outputs]
        except RuntimeError as error:
            # The CPU allocator has no exception of its own; the words are those of torch's c10/core/impl/alloc_cpu.cpp.
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return dict(zip(self._outputs, arrays, strict=True))


def _load_network(folder: Path, spec: ModelSpec, device: str) -> torch.nn.Module:
    state = _read_state(folder, spec)
    try:
        network_class = resolve(spec.network)
        if not (isinstance(network_class, type) and issubclass(network_class, torch.nn.Module)):
            raise TypeError("it is not a torch.nn.Module")  # and is not called: it may be anything
        network = network_class()
    except Exception as error:  # the constructor is the user's code, which may fail in any way
        raise ModelLoadError(
            f"{folder / FILE_NAME}: the network {spec.network} cannot be made: {error}; correct its name or its class."
        ) from error
    try:
        network.load_state_dict(state)
    except Exception as error:  # RuntimeError, but others too for a state dict with strange keys
        reason = textwrap.shorten(str(error), 300)
        raise ModelLoadError(f"{folder / WEIGHTS} does not fit the network {spec.network} ({reason}); {RETRAIN}.") from error
    if any(weight.is_floating_point() and bool(torch.isnan(weight).any()) for weight in network.parameters()):
        raise ModelLoadError(f"{folder / WEIGHTS} has weights that are not a number (NaN); {RETRAIN}.")
    try:
        network = network.to(device).eval().requires_grad_(False)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ModelLoadError(f"{folder / WEIGHTS} cannot be moved to {device} ({reason}); start fewer workers.") from error


def _tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """What lies in the body of a request is read-only, and torch, which knows no such thing, warns: it gets a copy."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _to_device(argument: torch.Tensor, device: str) -> torch.Tensor:
    """Pictures go channels last: convolutions on a CPU take a third to a half less time so (docs/engines.md)."""
    if argument.ndim == 4:
        argument = argument.contiguous(memory_format=torch.channels_last)
    return argument.to(device)


def _read_state(folder: Path, spec: ModelSpec) -> Mapping[str, Any]:
    content = read_file(folder, spec, WEIGHTS)
    try:
        # weights_only: tensors and plain containers; a pickle that would run code is refused.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes the unpickler raise is not documented
        raise ModelLoadError(f"{folder / WEIGHTS} holds no state dict that can be read safely; {RETRAIN}.") from error
    if not isinstance(state, Mapping):
        raise ModelLoadError(f"{folder / WEIGHTS} holds no state dict; save network.state_dict() and try again.")
    return state
