"""From the fields of a ModelConfig to what servekit knows: backend, signature, batching; completed and checked.

Pure functions over the plain value that `servekit.triton.config` reads. What is wrong is a ValueError with a sentence
that the caller puts the file's name before.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from servekit.errors import ModelLoadError
from servekit.signature import Signature
from servekit.spec import ONNX, ModelSpec, TensorSpec
from servekit.triton.config import blank
from servekit.triton.folders import CONFIG, TORCHSCRIPT, inside

ONNX_RUNTIME, PYTORCH, ENSEMBLE = "onnxruntime", "pytorch", "ensemble"
FILE_OF = {ONNX_RUNTIME: ONNX, PYTORCH: TORCHSCRIPT}
# Of a model whose config says nothing: larger passes cost memory and gain little.
DEFAULT_BATCH = 64
MAX_LABEL_BYTES = 2**24  # a label takes ten times its bytes, in every worker

_PLATFORM_OF = {ONNX_RUNTIME: "onnxruntime_onnx", PYTORCH: "pytorch_libtorch", ENSEMBLE: "ensemble"}
_DTYPE_OF = {
    "TYPE_BOOL": "bool",
    "TYPE_UINT8": "uint8",
    "TYPE_UINT16": "uint16",
    "TYPE_UINT32": "uint32",
    "TYPE_UINT64": "uint64",
    "TYPE_INT8": "int8",
    "TYPE_INT16": "int16",
    "TYPE_INT32": "int32",
    "TYPE_INT64": "int64",
    "TYPE_FP16": "float16",
    "TYPE_FP32": "float32",
    "TYPE_FP64": "float64",
    "TYPE_STRING": "bytes",
    "TYPE_BF16": "bfloat16",
}
_TYPE_OF = {dtype: name for name, dtype in _DTYPE_OF.items()}
# What a model with it would answer wrongly without: field -> what the operator can do.
_REFUSED = {
    "sequence_batching": "stateful models are not served",
    "batch_input": "no inputs are made of how requests were batched",
    "batch_output": "outputs are split by rows only",
    "model_operations": "no operator libraries are loaded",
}
_KINDS = (("input", "ModelInput"), ("output", "ModelOutput"))


@dataclasses.dataclass(frozen=True)
class Queue:
    """How requests wait: seconds for others to come, seconds at most until a pass begins, rows at most; None: no limit."""

    delay: float = 0.0
    max_seconds: float = math.inf
    max_rows: int | None = None


def dtype_of(data_type: str) -> str:
    """Return servekit's name of a data type such as TYPE_FP32; raise ValueError for one that is none."""
    if data_type not in _DTYPE_OF:
        raise ValueError(f"the data_type must be one of {', '.join(_DTYPE_OF)}")
    return _DTYPE_OF[data_type]


def backend_of(values: Mapping[str, Any], folder: Path) -> str:
    """Return which of ONNX_RUNTIME, PYTORCH and ENSEMBLE serves this config, by the files in the version `folder` if need be."""
    if values["platform"] == "ensemble" or "ensemble_scheduling" in values:
        return ENSEMBLE
    for backend, platform in _PLATFORM_OF.items():
        if values["backend"] == backend or (not values["backend"] and values["platform"] == platform):
            return backend
    if named := values["backend"] or values["platform"]:
        raise ValueError(f"the backend {named} is not served here; there are {', '.join(_PLATFORM_OF)}")
    file = values["default_model_filename"]
    for backend, usual in FILE_OF.items():
        if Path(file).suffix == Path(usual).suffix if file else (folder / usual).is_file():
            return backend
    raise ValueError(f"it names no backend, and version {folder.name} holds neither {ONNX} nor {TORCHSCRIPT}")


def completed(
    values: Mapping[str, Any],
    name: str,
    backend: str,
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
) -> dict[str, Any]:
    """Return `values` with what they leave open filled in, from the file's own `inputs` and `outputs` if it knows them.

    Their shapes are whole: an axis of rows is axis 0, and -1.
    """
    values = {**values, "name": values["name"] or name, "backend": "" if backend == ENSEMBLE else backend}
    values["platform"] = values["platform"] or _PLATFORM_OF[backend]
    values.setdefault("version_policy", {"latest": {"num_versions": 1}})
    if backend != ENSEMBLE:
        values["default_model_filename"] = values["default_model_filename"] or FILE_OF[backend]
    if not values["input"] and not values["max_batch_size"] and inputs:
        if all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs)):
            values["max_batch_size"] = DEFAULT_BATCH
            values.setdefault("dynamic_batching", blank("ModelDynamicBatching"))
    known = {"input": inputs, "output": outputs}
    for field, kind in _KINDS:
        values[field] = _completed_tensors(values[field], known[field], blank(kind), bool(values["max_batch_size"]))
    return values


def check(values: Mapping[str, Any], name: str) -> None:
    """Raise ValueError, with what is wrong, for a completed config that cannot be served as the model `name`."""
    if values["name"] != name:
        raise ValueError(f"its name is {values['name']}, but its folder is called {name}; make them the same")
    for field, reason in _REFUSED.items():
        if values.get(field):
            raise ValueError(f"{field} is set, and {reason}")
    if values.get("model_transaction_policy", {}).get("decoupled"):
        raise ValueError("its model_transaction_policy is decoupled, and a request has one answer here")
    if values["max_batch_size"] < 0:
        raise ValueError("max_batch_size must be 0 or more")
    for field, _ in _KINDS:
        if not values[field]:
            raise ValueError(f"it names no {field}; add one with name, data_type and dims")
        names = [tensor["name"] for tensor in values[field]]
        if "" in names or len(set(names)) != len(names):
            raise ValueError(f"each {field} needs a name of its own")
        for tensor in values[field]:
            _check_tensor(field, tensor)


def check_file(values: Mapping[str, Any], file: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise ValueError if a completed config does not fit what the model file says of itself, whole shapes."""
    for field, known in (("input", inputs), ("output", outputs)):
        found = {tensor.name: tensor for tensor in known}
        for tensor in values[field]:
            _check_against(field, tensor, found[tensor["name"]], file, bool(values["max_batch_size"]))


def check_names(values: Mapping[str, Any], file: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raise ValueError if a config names other tensors than its model file has; it may name none."""
    wanted = {tensor.name for tensor in inputs}
    if values["input"] and {tensor["name"] for tensor in values["input"]} != wanted:
        raise ValueError(f"the inputs of {file} are called {', '.join(sorted(wanted))}; name all of them, and no others")
    there = {tensor.name for tensor in outputs}
    if unknown := sorted({tensor["name"] for tensor in values["output"]} - there):
        raise ValueError(f"{file} has no output called {unknown[0]}; it has {', '.join(sorted(there))}")


def signature_of(values: Mapping[str, Any], model: Path) -> Signature:
    """Return what clients send and get; label files lie in the folder `model`."""
    inputs, outputs = (tuple(map(_spec_of, values[field])) for field, _ in _KINDS)
    labels = {
        tensor["name"]: _read_labels(model, tensor["label_filename"])
        for tensor in values["output"]
        if tensor["label_filename"]
    }
    most = values["max_batch_size"]
    return Signature(inputs, outputs, labels=labels, is_batched=most > 0, max_rows=most or None)


def spec_of(signature: Signature) -> ModelSpec:
    """Return the description that servekit's models have."""
    return ModelSpec(
        handler="servekit.handlers.tensors:TensorsHandler",
        inputs=signature.inputs,
        outputs=signature.outputs,
        files={},
        max_batch_rows=signature.max_rows or 1,
    )


def reshapes_of(values: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return, by input, the shape that the network wants and, by output, the one that clients get, rows not counted.

    Only of those tensors whose two shapes differ.
    """
    inputs = {tensor["name"]: tuple(tensor["reshape"]["shape"]) for tensor in values["input"] if "reshape" in tensor}
    outputs = {tensor["name"]: tuple(tensor["dims"]) for tensor in values["output"] if "reshape" in tensor}
    return inputs, outputs


def queue_of(values: Mapping[str, Any]) -> Queue:
    """Return how requests wait, by dynamic_batching."""
    batching = values.get("dynamic_batching", {})
    policy = batching.get("default_queue_policy", {})
    rejects = policy.get("timeout_action") == "REJECT"
    seconds = policy.get("default_timeout_microseconds", 0) / 1e6 if rejects else 0
    most = policy.get("max_queue_size", 0)
    delay = batching.get("max_queue_delay_microseconds", 0) / 1e6
    return Queue(delay, seconds or math.inf, most + max(1, values["max_batch_size"]) if most else None)


def uses_gpu(values: Mapping[str, Any]) -> bool:
    """Return False if the config keeps the model on the CPU."""
    kinds = {group["kind"] for group in values["instance_group"]}
    return kinds != {"KIND_CPU"}


def wants_gpu(values: Mapping[str, Any]) -> bool:
    """Return True if the config says that the model computes on a GPU."""
    return any(group["kind"] == "KIND_GPU" for group in values["instance_group"])


def with_instances(values: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return `values` with an instance group, where they name none, on the device where the model is."""
    kind = "KIND_GPU" if device == "cuda" else "KIND_CPU"
    group = {**blank("ModelInstanceGroup"), "name": f"{values['name']}_0", "kind": kind, "count": 1}
    return {**values, "instance_group": values["instance_group"] or [group]}


def network_shape(tensor: Mapping[str, Any], is_batched: bool) -> tuple[int, ...]:
    """Return the whole shape of an entry of `input` or `output` as the network knows it."""
    shape = tensor["reshape"]["shape"] if "reshape" in tensor else tensor["dims"]
    return (-1, *shape) if is_batched else tuple(shape)


def _completed_tensors(
    given: Sequence[Mapping[str, Any]], known: Sequence[TensorSpec], empty: Mapping[str, Any], is_batched: bool
) -> list[dict[str, Any]]:
    found = {tensor.name: tensor for tensor in known}
    tensors = [dict(tensor) for tensor in given] or [{**empty, "name": tensor.name} for tensor in known]
    for tensor in tensors:
        if tensor["name"] not in found:
            continue
        own = found[tensor["name"]]
        if tensor["data_type"] == "TYPE_INVALID":
            tensor["data_type"] = _type_of(own)
        if not tensor["dims"]:
            tensor["dims"] = list(own.shape[1:] if is_batched else own.shape)
            if not tensor["dims"]:  # no dims cannot be said: one number, which the network knows without an axis
                tensor["dims"], tensor["reshape"] = [1], {"shape": []}
    return tensors


def _type_of(tensor: TensorSpec) -> str:
    if tensor.dtype not in _TYPE_OF:
        raise ValueError(f"{tensor.name} is {tensor.dtype} in the file, which is no tensor; name only the others")
    return _TYPE_OF[tensor.dtype]


def _check_tensor(field: str, tensor: Mapping[str, Any]) -> None:
    name, dims = tensor["name"], tensor["dims"]
    if tensor["data_type"] not in _DTYPE_OF:
        raise ValueError(f"the {field} {name} needs a data_type, such as TYPE_FP32")
    if not dims or not all(size > 0 or size == -1 for size in dims):
        raise ValueError(f"the {field} {name} needs dims above 0, or -1 where they may differ")
    if "reshape" not in tensor:
        return
    shape = tensor["reshape"]["shape"]
    free = [each.count(-1) for each in (dims, shape)]
    sizes = [math.prod(size for size in each if size != -1) for each in (dims, shape)]
    if not all(size > 0 or size == -1 for size in shape) or free[0] != free[1] or sizes[0] != sizes[1]:
        raise ValueError(f"the reshape of the {field} {name} must have as many elements as its dims {dims}")
    if free[0] > 1:
        raise ValueError(f"the reshape of the {field} {name} may leave one axis open, not {free[0]}")


def _check_against(field: str, tensor: Mapping[str, Any], own: TensorSpec, file: str, is_batched: bool) -> None:
    name, dtype = tensor["name"], dtype_of(tensor["data_type"])
    if dtype != own.dtype:
        raise ValueError(f"the {field} {name} is {tensor['data_type']}, but {_type_of(own)} in {file}; correct it")
    if dtype == "bfloat16":
        raise ValueError(f"the {field} {name} is TYPE_BF16, which numpy lacks; TorchScript models alone are served with it")
    wanted = network_shape(tensor, is_batched)
    if is_batched and own.shape and own.shape[0] != -1:
        raise ValueError(
            f"max_batch_size is above 0, but {file} takes {name} as {list(own.shape)} only; set max_batch_size to 0 and "
            f"give the whole shape as dims"
        )
    if fits(wanted, own.shape):
        return
    hint = "the rows come before dims" if is_batched else "without max_batch_size dims are the whole shape"
    raise ValueError(f"the {field} {name} is {list(wanted)}, but {list(own.shape)} in {file}; correct dims: {hint}")


def fits(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Return True if two shapes can be the same one; -1 may be of any size."""
    return len(shape) == len(other) and all(
        -1 in (mine, its) or mine == its for mine, its in zip(shape, other, strict=True)
    )


def _spec_of(tensor: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(tensor["name"], dtype_of(tensor["data_type"]), (-1, *tensor["dims"]))


def _read_labels(model: Path, name: str) -> tuple[str, ...]:
    path = inside(model, model, name, "label_filename")
    if path.stat().st_size > MAX_LABEL_BYTES:
        raise ModelLoadError(f"{path} is larger than {MAX_LABEL_BYTES} bytes; correct label_filename in {CONFIG}.")
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read as lines of UTF-8; correct it, or label_filename in {CONFIG}.") from error
