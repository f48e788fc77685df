"""The models that the documentation of TensorFlow Serving's REST API asks, as versions of a model store."""

from pathlib import Path

import numpy as np
from torch import Tensor, nn

from servekit.handlers.base import Handler
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import Tensors, bytes_tensor
from train.store import write_version

SIGNAL, SENSOR = TensorSpec("signal", "int64", (-1, 5)), TensorSpec("sensor", "float32", (-1, 2, 2))


class HalfPlusThree(nn.Module):
    """Half of `x`, plus three."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + 3


class Sums(nn.Module):
    """The sum of a signal, the length of a tag, and a sensor's matrix as it came."""

    def forward(self, length: Tensor, signal: Tensor, sensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return length, signal.sum(1), sensor


class TagHandler(Handler):
    """Takes tag, signal and sensor; gives the tag back, as text and as bytes, beside the sums."""

    @property
    def signature(self) -> Signature:
        inputs = (TensorSpec("tag", "bytes", (-1,)), SIGNAL, SENSOR)
        texts = (TensorSpec("tag", "bytes", (-1,)), TensorSpec("tag_bytes", "bytes", (-1,)))
        return Signature(inputs, (*texts, *self.spec.outputs[1:]))

    def preprocess(self, tensors: Tensors) -> Tensors:
        lengths = np.array([len(tag) for tag in tensors["tag"]])
        return {"length": lengths, "signal": tensors["signal"], "sensor": tensors["sensor"]}

    def postprocess(self, tensors: Tensors) -> Tensors:
        tags = bytes_tensor([b"x" * length for length in tensors["length"]])
        return {"tag": tags, "tag_bytes": tags, "sum": tensors["sum"], "matrix": tensors["matrix"]}


class OwnReader(Handler):
    """Stands for a model whose own code reads requests: it has no signature."""

    signature = None  # type: ignore[assignment]


def write_own_reader(store: Path) -> None:
    """Write a version of `own` that no contract can take apart."""
    x, y = TensorSpec("x", "float32", (-1, 1)), TensorSpec("y", "float32", (-1, 1))
    write_version(store, "own", HalfPlusThree(), {}, handler=f"{__name__}:OwnReader", inputs=(x,), outputs=(y,))


def write_models(store: Path) -> None:
    """Write `half_plus_three`, version 123, and `tagged`, version 1."""
    x, y = TensorSpec("x", "float32", (-1, 1)), TensorSpec("y", "float32", (-1, 1))
    handler = "servekit.handlers.regression:RegressionHandler"
    folder = write_version(store, "half_plus_three", HalfPlusThree(), {}, handler=handler, inputs=(x,), outputs=(y,))
    folder.rename(folder.with_name("123"))
    length = TensorSpec("length", "int64", (-1,))
    outputs = (length, TensorSpec("sum", "int64", (-1,)), TensorSpec("matrix", "float32", (-1, 2, 2)))
    handler = f"{__name__}:TagHandler"
    write_version(store, "tagged", Sums(), {}, handler=handler, inputs=(length, SIGNAL, SENSOR), outputs=outputs)
