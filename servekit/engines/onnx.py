"""The ONNX engine: `model.onnx` in ONNX Runtime, without torch; a third of its memory and of its time."""

import textwrap
from pathlib import Path

import onnxruntime

from servekit.errors import ModelLoadError
from servekit.spec import ONNX, RETRAIN, ModelSpec, read_file
from servekit.tensors import Tensors

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # in the order of preference


class OnnxEngine:
    """Runs the ONNX file of a version folder: on the GPU if this build of ONNX Runtime can, else on one CPU thread."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        """Load and check the file; raise ModelLoadError naming it and the remedy.

        Made in the worker, never before the fork: the threads of a session do not survive one.
        """
        content = read_file(folder, spec, ONNX)
        offered = onnxruntime.get_available_providers()
        try:
            self._session = onnxruntime.InferenceSession(
                content, _options(), providers=[name for name in _PROVIDERS if name in offered]
            )
            names = {tensor.name for tensor in self._session.get_inputs()}
            if names != {tensor.name for tensor in spec.inputs}:
                raise ValueError(f"its inputs are called {', '.join(sorted(names))}")
            self._outputs = [tensor.name for tensor in spec.outputs]
            if missing := set(self._outputs) - {tensor.name for tensor in self._session.get_outputs()}:
                raise ValueError(f"it has no output called {', '.join(sorted(missing))}")
        except Exception as error:  # what a damaged file makes ONNX Runtime raise is not documented
            reason = textwrap.shorten(str(error), 300)
            raise ModelLoadError(f"{folder / ONNX} cannot be served ({reason}); {RETRAIN}.") from error
        self.device = "cuda" if _PROVIDERS[0] in self._session.get_providers() else "cpu"

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return the outputs of the network; raise MemoryError when there was none left."""
        try:
            arrays = self._session.run(self._outputs, tensors)
        except Exception as error:
            # ONNX Runtime has no exception of its own for it; the words are those of its allocator and of C++.
            if "bad_alloc" in str(error) or "allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            raise
        return dict(zip(self._outputs, arrays, strict=True))


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # The workers share the cores out among themselves: threads of one would only fight those of the others.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; its warnings tell how a graph was optimised
    return options
