"""What the addresses of each contract take and give, as JSON Schema, by the endpoint of their route.

Where an endpoint is not listed the document says nothing of its bodies beyond the examples.
"""

import dataclasses
from collections.abc import Callable, Mapping

from servekit.model import Model
from servekit.openapi import FORM, JSON, MULTIPART
from servekit.openapi.schemas import (
    BASE64,
    FILE,
    NUMBER,
    TEXT,
    WHOLE,
    YES_NO,
    Schema,
    anything_of,
    array,
    members,
    nested,
    one_of,
)


@dataclasses.dataclass(frozen=True)
class Bodies:
    """The schemas of a request's body and of its answer (status 200), by content type."""

    takes: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
    gives: Mapping[str, Schema] = dataclasses.field(default_factory=dict)


ERROR = members(error=TEXT)

_VALUE = members(value=NUMBER)
_IMAGE = {"image/png": FILE, "image/jpeg": FILE, JSON: members(image=BASE64), MULTIPART: members(file=FILE)}
_ONE_FILE = members("file", file={"type": ["string", "null"]}, predicted_class=WHOLE, confidence=NUMBER, error=TEXT)
_READY = members(
    "status", "model_loaded", "device", status=one_of("healthy", "unhealthy"), model_loaded=YES_NO, device=TEXT
)


def _number(model: Model) -> Bodies:
    target = nested(model.spec.outputs[0], leading=2)
    return Bodies({FORM: _VALUE, JSON: _VALUE}, {JSON: members(input=NUMBER, prediction=target)})


def _digit(model: Model) -> Bodies:
    outputs = model.signature.outputs if model.signature else ()
    return Bodies(_IMAGE, {JSON: members(**{tensor.name: nested(tensor, leading=1) for tensor in outputs})})


def _number_or_digit(model: Model) -> Bodies:
    return _digit(model) if model.signature and model.signature.encoded else _number(model)


def _digits(model: Model) -> Bodies:
    return Bodies({MULTIPART: members(files=array(FILE))}, {JSON: members(predictions=array(_ONE_FILE))})


OF_SERVER: Mapping[str, Bodies] = {
    "ops.live": Bodies(gives={JSON: members(status=one_of("alive"))}),
    "ops.ready": Bodies(gives={JSON: _READY}),
    "prometheus_metrics": Bodies(gives={"text/plain": TEXT}),
}
OF_MODEL: Mapping[str, Callable[[Model], Bodies]] = {
    "linear.predict": _number,
    "mnist.predict": _digit,
    "mnist.predict_batch": _digits,
    "predict.predict": _number_or_digit,
}


def bodies_of(endpoint: str, models: list[Model]) -> Bodies:
    """Return what `endpoint` takes and gives for one or another of `models`."""
    if endpoint in OF_SERVER:
        return OF_SERVER[endpoint]
    if endpoint not in OF_MODEL:
        return Bodies()
    each = [OF_MODEL[endpoint](model) for model in models]
    return Bodies(_merged([bodies.takes for bodies in each]), _merged([bodies.gives for bodies in each]))


def _merged(alternatives: list[Mapping[str, Schema]]) -> dict[str, Schema]:
    kinds = dict.fromkeys(kind for schemas in alternatives for kind in schemas)
    return {kind: anything_of([schemas[kind] for schemas in alternatives if kind in schemas]) for kind in kinds}
