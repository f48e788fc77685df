"""The ONNX engine: an ONNX file in ONNX Runtime, without torch; a third of its memory and of its time."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from servekit.errors import InvalidInput, ModelLoadError
from servekit.spec import ONNX, RETRAIN, ModelSpec, TensorSpec, read_file
from servekit.tensors import Tensors

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in the order of preference
_DTYPE_OF = {"float": "float32", "double": "float64", "string": "bytes"}  # the others are called as numpy calls them
_STRING = "tensor(string)"


class OnnxEngine:
    """Runs an ONNX file: on the GPU if this build of ONNX Runtime can, else on one CPU thread."""

    def __init__(self, content: bytes, path: Path, uses_gpu: bool = True, remedy: str = RETRAIN) -> None:
        """Load `content`; raise ModelLoadError naming its `path` and the `remedy`.

        Made in the worker, never before the fork: the threads of a session do not survive one.
        """
        offered = onnxruntime.get_available_providers()
        wanted = [name for name in (_PROVIDERS if uses_gpu else _PROVIDERS[1:]) if name in offered]
        try:
            self._session = onnxruntime.InferenceSession(content, _options(path.parent), providers=wanted)
        except Exception as error:  # what a damaged file makes ONNX Runtime raise is not documented
            reason = textwrap.shorten(str(error), 300)
            raise ModelLoadError(f"{path} cannot be served ({reason}); {remedy}.") from error
        self._texts = [tensor.name for tensor in self._session.get_inputs() if tensor.type == _STRING]
        self._gives_texts = any(tensor.type == _STRING for tensor in self._session.get_outputs())
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self.device = "cuda" if _PROVIDERS[0] in self._session.get_providers() else "cpu"

    @classmethod
    def from_version(cls, folder: Path, spec: ModelSpec) -> "OnnxEngine":
        """Load the ONNX file of a version folder after checking its hash; raise ModelLoadError naming file and remedy."""
        engine = cls(read_file(folder, spec, ONNX), folder / ONNX)
        names, outputs = {tensor.name for tensor in engine.inputs}, [tensor.name for tensor in spec.outputs]
        reason = ""
        if names != {tensor.name for tensor in spec.inputs}:
            reason = f"its inputs are called {', '.join(sorted(names))}"
        elif missing := set(outputs) - {tensor.name for tensor in engine.outputs}:
            reason = f"it has no output called {', '.join(sorted(missing))}"
        if reason:
            raise ModelLoadError(f"{folder / ONNX} cannot be served ({reason}); {RETRAIN}.")
        engine.select(outputs)
        return engine

    @property
    def inputs(self) -> list[TensorSpec]:
        """What the file says of its inputs: whole shapes, -1 where they are free."""
        return [_described(tensor) for tensor in self._session.get_inputs()]

    @property
    def outputs(self) -> list[TensorSpec]:
        """What the file says of its outputs, as `inputs` does."""
        return [_described(tensor) for tensor in self._session.get_outputs()]

    def select(self, outputs: Sequence[str]) -> None:
        """Compute only these `outputs`, names of those that the file has."""
        self._outputs = list(outputs)

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs of the network; raise MemoryError when there was none left.

        Texts are bytes outside, UTF-8; InvalidInput is raised for those that are not.
        """
        if self._texts:
            tensors = {name: _decoded(name, array) if name in self._texts else array for name, array in tensors.items()}
        try:
            arrays = self._session.run(self._outputs, tensors)
        except Exception as error:
            # ONNX Runtime has no exception of its own for it; the words are those of its allocator and of C++.
            if "bad_alloc" in str(error) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        answer = dict(zip(self._outputs, arrays, strict=True))
        if self._gives_texts:
            answer = {name: _encoded(array) if array.dtype.kind in "OUS" else array for name, array in answer.items()}
        return answer


def _options(folder: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # The workers share the cores out among themselves: threads of one would only fight those of the others.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A large file keeps its weights in files beside it.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.log_severity_level = 3  # errors; its warnings tell how a graph was optimised
    return options


def _described(tensor: onnxruntime.NodeArg) -> TensorSpec:
    kind = tensor.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape or ())
    return TensorSpec(tensor.name, _DTYPE_OF.get(kind, kind), shape)


def _decoded(name: str, array: np.ndarray) -> np.ndarray:
    try:
        return np.array([item.decode() for item in array.flat], object).reshape(array.shape)
    except UnicodeDecodeError:
        raise InvalidInput(f"The texts of {name} must be UTF-8.") from None


def _encoded(array: np.ndarray) -> np.ndarray:
    encoded = np.empty(array.size, object)
    encoded[:] = [item.encode() for item in array.flat]
    return encoded.reshape(array.shape)
