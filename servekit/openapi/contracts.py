"""What the addresses of each contract take and give, as JSON Schema, by the endpoint of their route.

Where an endpoint is not listed the document says nothing of its bodies beyond the examples.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from servekit.openapi import FORM, JSON, MULTIPART
from servekit.openapi.schemas import (
    BASE64,
    FILE,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    YES_NO,
    Schema,
    any_of,
    array,
    columns,
    instance,
    members,
    outputs,
    prediction,
    word,
)
from servekit.signature import Signature
from servekit.spec import TensorSpec

BINARY = "application/octet-stream"


@dataclasses.dataclass(frozen=True)
class Bodies:
    """The schemas of a request's body and of its answer (status 200), by content type."""

    takes: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
    gives: Mapping[str, Schema] = dataclasses.field(default_factory=dict)


def _gives(schema: Schema, kind: str = JSON) -> Bodies:
    return Bodies(gives={kind: schema})


# servekit's own.

_VALUE = members(value={**NUMBER, "examples": [5]})
_IMAGES = {"image/png": FILE, "image/jpeg": FILE}
_IMAGE = {**_IMAGES, JSON: members(image=BASE64), MULTIPART: members(file=FILE)}
_ONE_FILE = members("file", file={"type": ["string", "null"]}, predicted_class=WHOLE, confidence=NUMBER, error=TEXT)
_HEALTH = {"status": word("healthy", "unhealthy"), "model_loaded": YES_NO, "device": TEXT}


def _number(signature: Signature) -> Bodies:
    return Bodies({FORM: _VALUE, JSON: _VALUE}, {JSON: members(input=NUMBER, prediction=NUMBER)})


def _digit(signature: Signature) -> Bodies:
    return Bodies(_IMAGE, {JSON: prediction(signature)})


def _number_or_digit(signature: Signature) -> Bodies:
    return _digit(signature) if signature.encoded else _number(signature)


def _digits(signature: Signature) -> Bodies:
    return Bodies({MULTIPART: members(files=array(FILE))}, {JSON: members(predictions=array(_ONE_FILE))})


# The dialects of `instances`.


def _tensorflow(signature: Signature) -> Bodies:
    name = {"signature_name": word("serving_default", "")}
    rows = members("instances", instances=array(instance(signature)), **name)
    all_rows = members("inputs", inputs=columns(signature), **name)
    answers = [members(predictions=array(prediction(signature))), members(outputs=outputs(signature))]
    return Bodies({JSON: any_of([rows, all_rows])}, {JSON: any_of(answers)})


def _features(results: Schema) -> Callable[[Signature], Bodies]:
    asked = members("examples", examples=array(OBJECT), context=OBJECT)
    return lambda signature: Bodies({JSON: asked}, {JSON: members(results=results)})


def _torchserve(signature: Signature) -> Bodies:
    row = instance(signature)
    has_labels = any(signature.labels.get(tensor.name) for tensor in signature.outputs)
    answer = {"type": "object", "additionalProperties": NUMBER} if has_labels else prediction(signature)
    raw = {**_IMAGES, BINARY: FILE} if signature.encoded else {}
    takes = {JSON: any_of([row, members(instances=array(row))]), **raw}
    return Bodies(takes, {JSON: any_of([answer, members(predictions=array(answer))])})


def _vertex(signature: Signature) -> Bodies:
    rows = members("instances", instances=array(instance(signature)), parameters=OBJECT)
    answer = members("predictions", predictions=array(prediction(signature)), deployedModelId=TEXT)
    return Bodies({JSON: rows, **(_IMAGES if signature.encoded else {})}, {JSON: answer})


def _vertex_raw(signature: Signature) -> Bodies:
    bodies = _vertex(signature)
    wrapped = members(httpBody=members(contentType=TEXT, data=BASE64))
    answers = [bodies.gives[JSON], members(contentType=TEXT, data=BASE64)]
    return Bodies({**bodies.takes, JSON: any_of([bodies.takes[JSON], wrapped])}, {JSON: any_of(answers)})


def _sagemaker(signature: Signature) -> Bodies:
    rows = array(prediction(signature))
    takes = {JSON: any_of([members(instances=array(instance(signature))), OBJECT, LIST]), **_TABLES}
    return Bodies(takes, {JSON: any_of([rows, members(predictions=rows)]), **_TABLES})


_TABLES = {"text/csv": TEXT, "application/jsonlines": TEXT, "application/x-npy": FILE}


def _azure(signature: Signature) -> Bodies:
    rows = array(instance(signature))
    names = ("data", "input_data", "instances")
    asked = any_of([members(**{name: rows}) for name in names] + [members(input_data=OBJECT), rows])
    return Bodies({JSON: asked, **(_IMAGES if signature.encoded else {})}, {JSON: array(prediction(signature))})


# The Open Inference Protocol.


def _tensors(specs: tuple[TensorSpec, ...], *required: str) -> Schema:
    tensor: dict[str, Any] = {
        "name": word(*(spec.name for spec in specs)),
        "shape": array({"type": "integer", "minimum": 0}),
        "datatype": _DATATYPE,
        "parameters": OBJECT,
        "data": LIST,
    }
    return array(members("name", "shape", "datatype", **tensor))


def _infer(signature: Signature) -> Bodies:
    wanted = array(members("name", name=TEXT, parameters=OBJECT))
    asked = members("inputs", id=TEXT, parameters=OBJECT, inputs=_tensors(signature.inputs), outputs=wanted)
    given: dict[str, Schema] = {"model_name": TEXT, "model_version": TEXT, "id": TEXT, "parameters": OBJECT}
    answer = members("model_name", "outputs", outputs=_tensors(signature.outputs), **given)
    return Bodies({JSON: asked, BINARY: FILE}, {JSON: answer, BINARY: FILE})


_WIDTHS = ("8", "16", "32", "64")
_WHOLE_NUMBERS = (f"{kind}{width}" for kind in ("INT", "UINT") for width in _WIDTHS)
_DATATYPE = word("BOOL", *_WHOLE_NUMBERS, "FP16", "FP32", "FP64", "BF16", "BYTES")
_DESCRIBED = array(members("name", "datatype", "shape", name=TEXT, datatype=_DATATYPE, shape=array(WHOLE)))


OF_SERVER: Mapping[str, Bodies] = {
    "ops.live": _gives(members(status=word("alive"))),
    "ops.ready": _gives(members(**_HEALTH)),
    "prometheus_metrics": _gives(TEXT, "text/plain"),
    "tensorflow_serving.alive": _gives(members(status=word("alive"))),
    "tensorflow_serving.models": _gives(members("models", models=array(TEXT), object=TEXT, data=array(OBJECT))),
    "tensorflow_serving.status": _gives(
        members("model_version_status", model_version_status=array(OBJECT), name=TEXT, ready=YES_NO)
    ),
    "tensorflow_serving.metadata": _gives(members(model_spec=OBJECT, metadata=OBJECT)),
    "open_inference.describe_server": _gives(members(name=TEXT, version=TEXT, extensions=array(TEXT))),
    "open_inference.live": _gives(members(live=YES_NO)),
    "open_inference.ready": _gives(members(ready=YES_NO)),
    "open_inference.model_metadata": _gives(
        members(name=TEXT, versions=array(TEXT), platform=TEXT, inputs=_DESCRIBED, outputs=_DESCRIBED)
    ),
    "open_inference.model_ready": _gives(members(name=TEXT, ready=YES_NO)),
    "open_inference.model_config": _gives(members("name", name=TEXT, max_batch_size=WHOLE, input=LIST, output=LIST)),
    "open_inference.all_statistics": _gives(members(model_stats=array(OBJECT))),
    "open_inference.model_statistics": _gives(members(model_stats=array(OBJECT))),
    "open_inference.model_names": _gives(members(models=array(TEXT))),
    "open_inference.logging_settings": _gives(OBJECT),
    "open_inference.trace_settings": _gives(OBJECT),
    "open_inference.shared_memory_status": _gives(LIST),
    "open_inference.unregister_shared_memory": _gives(OBJECT),
    "open_inference.index": Bodies(
        {JSON: {"type": "object", "properties": {"ready": YES_NO}}},
        {JSON: array(members("name", name=TEXT, version=TEXT, state=TEXT, reason=TEXT))},
    ),
    "sagemaker.execution_parameters": _gives(
        members(MaxConcurrentTransforms=WHOLE, BatchStrategy=TEXT, MaxPayloadInMB=WHOLE)
    ),
    "mlflow.version": _gives(TEXT, "text/plain"),
    "vertex.health": _gives(members(status=TEXT)),
    "azure.health": _gives(TEXT, "text/html"),
    "azure.describe": _gives(OBJECT),
}
OF_MODEL: Mapping[str, Callable[[Signature], Bodies]] = {
    "linear.predict": _number,
    "mnist.predict": _digit,
    "mnist.predict_batch": _digits,
    "predict.predict": _number_or_digit,
    "tensorflow_serving.predict": _tensorflow,
    "tensorflow_serving.classify": _features(array(array(array({"type": ["string", "number"]})))),
    "tensorflow_serving.regress": _features(array(NUMBER)),
    "predictions.predictions": _torchserve,
    "open_inference.infer": _infer,
    "sagemaker.invocations": _sagemaker,
    "vertex.predict": _vertex,
    "vertex.predict_by_endpoint": _vertex,
    "vertex.predict_raw_by_endpoint": _vertex_raw,
    "azure.score": _azure,
}

# What names no model in its path is for the default one, but for servekit's own.
OF_DEFAULT = ("sagemaker.", "vertex.", "azure.", "mlflow.")

_STATUS_AND_SENTENCE = {"code": WHOLE, "message": TEXT}
ERROR = members(error=TEXT)
_CONTAINER_ERROR = members(error=TEXT, code=WHOLE)
_MODEL_ERROR = members(Message=TEXT, OriginalMessage=TEXT, OriginalStatusCode=WHOLE, LogStreamArn=TEXT)  # around it, of an endpoint
_MLFLOW_ERROR = members(error_code=TEXT, message=TEXT)  # where that is the platform
ERRORS: Mapping[str, Schema] = {
    "predictions": members(type=TEXT, **_STATUS_AND_SENTENCE),
    "sagemaker": any_of([_CONTAINER_ERROR, _MODEL_ERROR, _MLFLOW_ERROR]),
    "sagemaker_multi_model": _CONTAINER_ERROR,
    "mlflow": _MLFLOW_ERROR,
    "vertex": members(error=members(status=TEXT, **_STATUS_AND_SENTENCE)),
    "azure": members(message=TEXT),
}


def bodies_of(endpoint: str, signatures: list[Signature]) -> Bodies:
    """Return what `endpoint` takes and gives by models of one or another of `signatures`."""
    if endpoint in OF_SERVER:
        return OF_SERVER[endpoint]
    if endpoint not in OF_MODEL:
        return Bodies()
    each = [OF_MODEL[endpoint](signature) for signature in signatures]
    return Bodies(_merged([bodies.takes for bodies in each]), _merged([bodies.gives for bodies in each]))


def _merged(alternatives: list[Mapping[str, Schema]]) -> dict[str, Schema]:
    kinds = dict.fromkeys(kind for schemas in alternatives for kind in schemas)
    return {kind: any_of([schemas[kind] for schemas in alternatives if kind in schemas]) for kind in kinds}
