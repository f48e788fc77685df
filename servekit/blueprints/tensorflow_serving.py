"""TensorFlow Serving's REST API, and V1 of KServe, which grew out of it: `/v1/models`.

Where the two disagree TensorFlow Serving's form is given, with KServe's members beside it. Sources: `api_rest.md` and
`json_tensor.cc` of TensorFlow Serving, `v1_endpoints.py` and `inference_client.py` of KServe.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import numpy as np
from flask import Blueprint, Flask, Response, request
from flask.blueprints import BlueprintSetupState
from numpy.typing import NDArray

from servekit import ext
from servekit.access import open_to_all, require_model
from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.instances import columns_of, outputs_of, predictions_of, rows_of, zero_row, zeros_of
from servekit.desired import Entry
from servekit.errors import InvalidInput, ModelNotFound, Overloaded, RequestError
from servekit.lean import PlainResponse
from servekit.model import Model
from servekit.openapi import Example
from servekit.platforms import AZURE
from servekit.signature import Signature
from servekit.spec import TensorSpec
from servekit.tensors import byte_count

bp = Blueprint("tensorflow_serving", __name__)
_route = partial(bp.route, strict_slashes=False, merge_slashes=False)

DEFAULT_SIGNATURE = "serving_default"

_ANY = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_PREDICT, _CLASSIFY, _REGRESS = (f"tensorflow/serving/{verb}" for verb in ("predict", "classify", "regress"))
_QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"
_NO_EXPLAINER = "Could not find explainer_host: this model has no explainer."
_DTYPES = {"bytes": "DT_STRING", "float16": "DT_HALF", "float32": "DT_FLOAT", "float64": "DT_DOUBLE"}
_JSON_TYPES = {dict: "Object", list: "Array", str: "String", bool: "Boolean", type(None): "Null"}
_PATH = re.compile(
    r"models/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/:]+)|/labels/(?P<label>[^/:]+))?"
    r"(?::(?P<verb>predict|classify|regress)|/(?P<metadata>metadata))?",
    re.IGNORECASE,
)
_MOST_LETTERS = 200  # of what a client names, in a sentence

View = Callable[..., Response]


def _both(ending: str, method: str) -> Callable[[View], View]:
    """Route a view for the default version of a model, and for one that is named."""

    def add(view: View) -> View:
        for part in ("", "/versions/<version>"):
            view = _route(f"/v1/models/<name>{part}{ending}", methods=[method])(view)
        return view

    return add


# Views.


@bp.record
def add_root(state: BlueprintSetupState) -> None:
    """Let KServe's clients find the server alive at `/`, which Azure ML asks for something else."""
    if ext.settings_of(cast(Flask, state.app)).platform != AZURE:
        state.add_url_rule("/", view_func=alive, strict_slashes=False, merge_slashes=False)


@open_to_all
def alive() -> Response:
    """Answer `{"status": "alive"}`, as KServe does."""
    return _json({"status": "alive"})


@_route("/v1/models")
def models() -> Response:
    """List the models by name: `models` for KServe, `data` for clients of OpenAI's API."""
    names = sorted(ext.repository().desired().models)
    data = [{"id": name, "object": "model", "owned_by": "servekit"} for name in names]
    return _json({"models": names, "object": "list", "data": data})


@_both("", "GET")
def status(name: str, version: str | None = None) -> Response:
    """Answer `model_version_status` and, for KServe, `name` and `ready`; 503 unless the version asked for is loaded."""
    if ":" in name:
        return malformed()
    require_model(name)
    versions = ext.repository().desired().models.get(name, {})
    if not versions:
        raise ModelNotFound(f"Could not find any versions of model {name}")
    if version is not None and version not in versions:
        raise ModelNotFound(f"Could not find version {version} of model {name}")
    shown = [version] if version is not None else sorted(versions, key=lambda each: (len(each), each), reverse=True)
    statuses = [_version_status(versions[each]) for each in shown]
    asked = version or ext.repository().desired().defaults.get(name)
    is_ready = any(each["version"] == asked and each["state"] == "AVAILABLE" for each in statuses)
    answer = {"model_version_status": statuses, "name": name, "ready": is_ready}
    if is_ready:
        return _json(answer)
    response = _json({"error": f"Model with name {name} is not ready.", **answer}, HTTPStatus.SERVICE_UNAVAILABLE)
    response.headers["Retry-After"] = "1"
    return response


@_both("/metadata", "GET")
def metadata(name: str, version: str | None = None) -> Response:
    """Answer the inputs and outputs as a `signature_def`."""
    model = _model(name, version)
    signature = ext.signature_of(model)
    definition = {
        "inputs": {tensor.name: _tensor_info(tensor, signature) for tensor in signature.inputs},
        "outputs": {tensor.name: _tensor_info(tensor, signature) for tensor in signature.outputs},
        "method_name": _PREDICT,
    }
    spec = {"name": model.name, "signature_name": "", "version": model.version}
    return _json({"model_spec": spec, "metadata": {"signature_def": {"signature_def": {DEFAULT_SIGNATURE: definition}}}})


@_both(":predict", "POST")
def predict(name: str, version: str | None = None) -> Response:
    """Answer `{"instances": [...]}` by `{"predictions": [...]}`, `{"inputs": ...}` by `{"outputs": ...}`.

    400 for what is no such request, 404 for a model or version that is not there, 503 while it is not loaded or too
    many wait, 504 past the deadline.
    """
    model = _model(name, version)
    signature = ext.signature_of(model)
    body = ext.inflated_body()
    tensors, is_rows = ext.apart(len(body), lambda: _sent(body, signature))
    answer = model.predict(tensors, ext.deadline())

    def written() -> Response:
        if is_rows:
            return _json({"predictions": predictions_of(answer, signature)})
        return _json({"outputs": outputs_of(answer, signature)})

    return ext.apart(byte_count(answer), written)


@_both(":classify", "POST")
def classify(name: str, version: str | None = None) -> Response:
    """Answer `{"examples": [{"input": value}]}` by `{"results": [[[label, score], ...]]}`, of a model with labels."""
    model = _model(name, version)
    signature = ext.signature_of(model)
    output = next((tensor.name for tensor in signature.outputs if signature.labels.get(tensor.name)), None)
    if output is None:
        raise InvalidInput(f"Expected classification signature method_name to be {_CLASSIFY}. Was: {_PREDICT}")
    body = ext.inflated_body()
    scores = model.predict(ext.apart(len(body), lambda: _examples(body, signature)), ext.deadline())[output]
    labels = signature.labels[output]
    labels += ("",) * (scores.shape[-1] - len(labels))
    rows = scores.reshape(len(scores), -1)
    return ext.apart(
        scores.nbytes, lambda: _json({"results": [list(map(list, zip(labels, row, strict=False))) for row in rows]})
    )


@_both(":regress", "POST")
def regress(name: str, version: str | None = None) -> Response:
    """Answer `{"examples": [{"input": value}]}` by `{"results": [number]}`, of a model that gives one number a row."""
    model = _model(name, version)
    signature = ext.signature_of(model)
    if not _is_regression(signature):
        raise InvalidInput(f"Expected regression signature method_name to be {_REGRESS}. Was: {_PREDICT}")
    body = ext.inflated_body()
    tensors = ext.apart(len(body), lambda: _examples(body, signature))
    numbers = model.predict(tensors, ext.deadline())[signature.outputs[0].name]
    return ext.apart(numbers.nbytes, lambda: _json({"results": np.ascontiguousarray(numbers).reshape(-1)}))


@_route("/v1/models/<name>:explain", methods=["POST"])
def explain(name: str) -> Response:
    """Refuse, as KServe does for a model without an explainer: 501."""
    _model(name)
    return ext.error_response(_NO_EXPLAINER, HTTPStatus.NOT_IMPLEMENTED)


@_route("/v1/<path:rest>", methods=_ANY, provide_automatic_options=False)
def anything(rest: str) -> Response:
    """Answer paths that differ from those above in case only; refuse labels, and all others as malformed.

    No version has a label here, as none has in TensorFlow Serving before labels are configured.
    """
    found = _PATH.fullmatch(rest)
    verb = (found and (found["verb"] or found["metadata"]) or "status").lower()
    if found is None or request.method != ("GET" if verb in ("status", "metadata") else "POST"):
        return malformed()
    if found["label"]:
        raise InvalidInput(f"Unrecognized servable version label: {found['label'][:_MOST_LETTERS]}")
    return _VIEWS[verb](found["name"], found["version"])


def malformed() -> Response:
    """Refuse what was asked for."""
    raise InvalidInput(f"Malformed request: {request.method} {request.path[:_MOST_LETTERS]}")


_VIEWS: Mapping[str, View] = {
    "status": status,
    "metadata": metadata,
    "predict": predict,
    "classify": classify,
    "regress": regress,
}


@bp.errorhandler(RequestError)
def render(error: RequestError) -> Response:
    """Answer an error as `{"error": sentence}`, in TensorFlow Serving's words where its clients look for them."""
    message = f"{_QUEUE_FULL}: {error}" if isinstance(error, Overloaded) else str(error)
    response = ext.error_response(message, error.status)
    response.headers.extend(error.headers)
    return response


# What is asked for.


def _model(name: str, version: str | None = None) -> Model:
    try:
        return ext.repository().get(name, version)
    except ModelNotFound:
        asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
        raise ModelNotFound(f"Servable not found for request: {asked}") from None


def _sent(body: bytes, signature: Signature) -> tuple[dict[str, NDArray[Any]], bool]:
    """Return the inputs that the `instances` or `inputs` of `body` hold, and whether it was the first, which are rows."""
    document = _document(body, 'Serving signature name: "{}" not found in signature def')
    if "instances" not in document:
        if "inputs" not in document:
            raise InvalidInput("Missing 'inputs' or 'instances' key")
        return columns_of(document["inputs"], signature), False
    if "inputs" in document:
        raise InvalidInput("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist")
    instances = _list_of(document["instances"], "Expecting 'instances' to be an list/array", "No values in 'instances' array")
    return rows_of(instances, signature), True


def _document(body: bytes, no_signature: str) -> dict[str, Any]:
    """Return the object that `body` is; `no_signature` is the sentence for a signature that does not exist."""
    if not body:
        raise InvalidInput("JSON Parse error: The document is empty")
    try:
        document = load_json(body)
    except InvalidInput as error:
        raise InvalidInput(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"JSON Value: {_JSON_TYPES.get(type(document), 'Number')} Is not object")
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidInput("Not formatted correctly. 'signature_name' key must be a string value.")
    if name not in ("", DEFAULT_SIGNATURE):
        raise InvalidInput(no_signature.format(ascii(name[:_MOST_LETTERS])[1:-1]))
    return document


def _list_of(value: Any, is_none: str, is_empty: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidInput(is_none)
    if not value:
        raise InvalidInput(is_empty)
    return value


def _examples(body: bytes, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the inputs that `examples` and `context` of `body` hold; a feature is a value or a flat list."""
    document = _document(body, "No signature was found with the name: {}")
    if "examples" not in document:
        raise InvalidInput("When method is classify, key 'examples' is expected and was not found")
    examples = _list_of(
        document["examples"], "Expecting 'examples' value to be an list/array", "'examples' value is an empty array"
    )
    context = document.get("context", {})
    for example in (context, *examples):
        if not isinstance(example, dict):
            kind = _JSON_TYPES.get(type(example), "Number")
            raise InvalidInput(f"Example must be JSON object but got JSON {kind}")
    if any(not context.keys().isdisjoint(example) for example in examples):
        raise InvalidInput("A feature of 'context' must not appear in 'examples'.")
    if len(context) > len(signature.inputs):
        examples = examples[:1]  # enough to refuse what no input is called, and not as often as there are examples
    examples = [{name: _feature(value) for name, value in {**context, **example}.items()} for example in examples]
    tensors = rows_of(examples, dataclasses.replace(signature, inputs=tuple(map(_flat, signature.inputs))))
    for tensor in signature.inputs:
        if _flat(tensor) is not tensor and tensors[tensor.name].dtype != object:  # what came encoded has no axes yet
            tensors[tensor.name] = tensors[tensor.name].reshape(-1, *tensor.shape[1:])
    return tensors


def _feature(value: Any) -> list[Any]:
    """Return a feature as the list that it is, even if it was sent as its only value."""
    return value if isinstance(value, list) else [value]


def _flat(tensor: TensorSpec) -> TensorSpec:
    """Return `tensor` as the features of an example hold it: without axes, if its size is known."""
    if len(tensor.shape) < 3 or -1 in tensor.shape[1:]:
        return tensor
    return dataclasses.replace(tensor, shape=(-1, math.prod(tensor.shape[1:])))


# What is answered.


def _json(value: Any, code: int = HTTPStatus.OK) -> Response:
    return PlainResponse(dump_json(value), code, content_type="application/json")


def _version_status(entry: Entry) -> dict[str, Any]:
    """Return the state of a version; why it could not be loaded is the operator's to read, in the log."""
    state, code, message = "LOADING", "OK", ""
    if any(model.version == entry.version for model in ext.repository().models if model.name == entry.name):
        state = "AVAILABLE"
    elif not entry.workers:
        state = "END"
    elif any("/".join(entry.key) in worker.errors for worker in ext.repository().workers()):
        state, code, message = "END", "INTERNAL", "The version could not be loaded; the server's log says why."
    return {"version": entry.version, "state": state, "status": {"error_code": code, "error_message": message}}


def _tensor_info(tensor: TensorSpec, signature: Signature) -> dict[str, Any]:
    shape = tensor.shape if signature.is_batched else tensor.shape[1:]
    dimensions = [{"size": str(size), "name": ""} for size in shape]
    dtype = _DTYPES.get(tensor.dtype, f"DT_{tensor.dtype.upper()}")
    return {"dtype": dtype, "tensor_shape": {"dim": dimensions, "unknown_rank": False}, "name": f"{tensor.name}:0"}


def _is_regression(signature: Signature) -> bool:
    """Return True if the model gives one number a row, and nothing else."""
    output = signature.outputs[0]
    return len(signature.outputs) == 1 and math.prod(output.shape[1:]) == 1 and output.dtype not in ("bytes", "bool")


# For the OpenAPI document.


def examples(model: Model) -> list[Example]:
    """Return requests that `model` answers: its state, and a row of zeros in each form."""
    if model.signature is None:
        return []
    signature, name = model.signature, {"name": model.name}
    row = zeros_of(signature)
    columns = {key: [value] for key, value in row.items()} if signature.is_batched else row
    found = [
        Example("tensorflow_serving.status", name, summary="Its versions"),
        Example("tensorflow_serving.status", {**name, "version": model.version}, summary="One version"),
        Example("tensorflow_serving.metadata", name, summary="Its inputs and outputs"),
        Example("tensorflow_serving.predict", name, {"instances": [zero_row(signature)]}, summary="Rows"),
        Example("tensorflow_serving.predict", {**name, "version": model.version}, {"inputs": columns}, summary="Columns"),
    ]
    features = {tensor.name: np.ravel(row[tensor.name]).tolist() for tensor in signature.inputs}
    if any(signature.labels.get(tensor.name) for tensor in signature.outputs):
        found.append(Example("tensorflow_serving.classify", name, {"examples": [features]}, summary="Scores of all classes"))
    if _is_regression(signature):
        found.append(Example("tensorflow_serving.regress", name, {"examples": [features]}, summary="One number a row"))
    return found
