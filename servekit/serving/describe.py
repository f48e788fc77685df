"""Models in the words of the Open Inference Protocol, made from their signatures."""

from collections.abc import Sequence
from typing import Any

from servekit.codecs.datatypes import datatype_of
from servekit.model import Model
from servekit.spec import TensorSpec

PLATFORM = "servekit"  # of a version folder; Triton's own layout names others


def describe_model(model: Model, versions: Sequence[str]) -> dict[str, Any]:
    """Return the metadata of `model`; one whose own code reads requests has neither inputs nor outputs to name."""
    signature, config = model.signature, getattr(model, "config", None) or {}
    described: dict[str, Any] = {"name": model.name, "versions": list(versions), "platform": config.get("platform", PLATFORM)}
    described["inputs"] = [] if signature is None else _tensors(signature.inputs, signature.is_batched)
    described["outputs"] = [] if signature is None else _tensors(signature.outputs, signature.is_batched)
    return described


def _tensors(specs: Sequence[TensorSpec], is_batched: bool) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": datatype_of(spec), "shape": list(spec.shape if is_batched else spec.shape[1:])}
        for spec in specs
    ]
