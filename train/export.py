"""From a trained network to `model.onnx`, checked against the network itself."""

import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch

from servekit.spec import TensorSpec

CHECK_ROWS = (1, 7)  # batch sizes of the comparison: one row, and a number that nothing was traced with
TOLERANCE = 1e-4  # of the largest output; sums of float32 in another order differ far less


class ExportError(Exception):
    """The exported model does not answer as the network does; it must not be served."""


def export_onnx(network: torch.nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bytes:
    """Return `network` as an ONNX file that takes any number of rows, its inputs and outputs named as given."""
    rows = torch.export.Dim("rows")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # and says that torchvision is not there
        program = torch.onnx.export(
            network.cpu().eval(),
            tuple(torch.zeros(2, *tensor.shape[1:], dtype=getattr(torch, tensor.dtype)) for tensor in inputs),
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            dynamic_shapes=tuple({0: rows} for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # None is for the exporters before dynamo
    stream = io.BytesIO()
    program.save(stream)  # type: ignore[arg-type]  # a stream is documented, too
    return stream.getvalue()


def largest_difference(network: torch.nn.Module, content: bytes, inputs: Sequence[TensorSpec]) -> float:
    """Return the largest absolute difference between the outputs of `network` and of the ONNX file `content`.

    Raises ExportError if it is more than rounding can explain. The inputs are random numbers between 0 and 1.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    largest = 0.0
    for rows in CHECK_ROWS:
        arrays = [generator.random((rows, *tensor.shape[1:])).astype(tensor.dtype) for tensor in inputs]
        with torch.inference_mode():
            expected = network(*map(torch.from_numpy, arrays))
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(None, {tensor.name: array for tensor, array in zip(inputs, arrays, strict=True)})
        for mine, theirs in zip(expected, found, strict=True):
            difference = float(np.abs(mine.numpy() - theirs).max())
            if not difference <= TOLERANCE * max(1.0, float(mine.abs().max())):
                raise ExportError(f"The ONNX file answers otherwise than the network, by {difference:.2g}.")
            largest = max(largest, difference)
    return largest
