"""Model folders of Triton's layout, with small ONNX and TorchScript files, written as a user would write them."""

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

IR_VERSION, OPSET = 9, 17  # of long ago: every ONNX Runtime reads them

Value = tuple[str, int, Sequence[int | str | None]]  # name, element type, whole shape


def graph(nodes: Sequence[onnx.NodeProto], inputs: Sequence[Value], outputs: Sequence[Value]) -> bytes:
    """Return an ONNX file of `nodes`."""
    named = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    model = helper.make_model(
        helper.make_graph(nodes, "test", *named), ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    return model.SerializeToString()


def simple(batch: int | str = "rows") -> bytes:
    """Return the model of Triton's examples: INPUT0 and INPUT1 INT32 [16] in, their sum and their difference out."""
    shape = (batch, 16)
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    inputs = [("INPUT0", TensorProto.INT32, shape), ("INPUT1", TensorProto.INT32, shape)]
    return graph(nodes, inputs, [("OUTPUT0", TensorProto.INT32, shape), ("OUTPUT1", TensorProto.INT32, shape)])


def unary(
    operator: str = "Neg",
    element: int = TensorProto.FLOAT,
    shape: Sequence[int | str | None] = ("rows", 4),
    names: tuple[str, str] = ("x", "y"),
) -> bytes:
    """Return a model of one node."""
    node = helper.make_node(operator, [names[0]], [names[1]])
    return graph([node], [(names[0], element, shape)], [(names[1], element, shape)])


def write(store: Path, name: str, config: str | None = None, version: int = 1, **files: bytes) -> Path:
    """Write a version folder and, if given, the config; `files` are called by their stem. Returns the model folder."""
    folder = store / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (folder / {"onnx": "model.onnx", "pt": "model.pt"}[file]).write_bytes(content)
    if config is not None:
        (store / name / "config.pbtxt").write_text(config)
    return store / name


SIMPLE = """
name: "simple"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [
  { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] }
]
output [
  { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
  { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] }
]
"""
