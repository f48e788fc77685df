"""Models in the words of the Open Inference Protocol, made from their signatures."""

from collections.abc import Sequence
from typing import Any

from servekit.codecs.datatypes import config_type_of, datatype_of
from servekit.model import Model
from servekit.spec import TensorSpec

PLATFORM = "servekit"  # of a version folder; Triton's own layout names others


def describe_model(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of `model`; one whose own code reads requests has neither inputs nor outputs to name."""
    signature, config = model.signature, model.config or {}
    described: dict[str, Any] = {"name": model.name, "versions": list(versions), "platform": config.get("platform", PLATFORM)}
    described["inputs"] = [] if signature is None else _tensors(signature.inputs, signature.is_batched)
    described["outputs"] = [] if signature is None else _tensors(signature.outputs, signature.is_batched)
    return described


def _tensors(specs: Sequence[TensorSpec], is_batched: bool) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": datatype_of(spec), "shape": list(spec.shape if is_batched else spec.shape[1:])}
        for spec in specs
    ]


def describe_config(model: Model) -> dict[str, Any]:
    """Return the configuration of `model` as Triton writes it: the one of its folder, or one made from its signature."""
    if model.config:
        return dict(model.config)
    signature = model.signature
    is_batched = signature is None or signature.is_batched
    most = model.spec.max_batch_rows if signature is None or signature.max_rows is None else signature.max_rows
    config = {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": most if is_batched else 0,
        "input": [] if signature is None else list(map(_input_config, signature.inputs)),
        "output": [] if signature is None else list(map(_output_config, signature.outputs)),
        "batch_input": [],
        "batch_output": [],
        "instance_group": [{"name": model.name, "kind": "KIND_GPU" if model.device == "cuda" else "KIND_CPU", "count": 1}],
        "default_model_filename": "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
        "model_transaction_policy": {"decoupled": False},
    }
    return {**config, "dynamic_batching": _BATCHING} if is_batched else config


_BATCHING = {"preferred_batch_size": [], "max_queue_delay_microseconds": 0, "preserve_ordering": False}


def _input_config(spec: TensorSpec) -> dict[str, Any]:
    return {
        **_tensor_config(spec),
        "format": "FORMAT_NONE",
        "allow_ragged_batch": False,
        "optional": False,
    }


def _output_config(spec: TensorSpec) -> dict[str, Any]:
    return {**_tensor_config(spec), "label_filename": ""}


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": config_type_of(spec),
        "dims": list(spec.shape[1:]),
        "is_shape_tensor": False,
    }
