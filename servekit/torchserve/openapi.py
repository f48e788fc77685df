"""The OpenAPI documents of TorchServe's APIs, put together from a table of operations."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from servekit import ts

TITLE = "TorchServe APIs"
ABOUT = "TorchServe's APIs, served by servekit."

_SENTENCES = {
    400: "The request cannot be understood",
    404: "There is no such model or version",
    408: "The model was not removed in time",
    409: "That version is registered already",
    500: "Internal Server Error",
    503: "No worker can answer",
}


class Operation(NamedTuple):
    """A method of a path; `parameters` are those of the query, `answers` texts by status."""

    method: str
    path: str
    name: str
    text: str
    answers: dict[int, dict[str, Any]]
    parameters: Iterable[dict[str, Any]] = ()
    errors: tuple[int, ...] = (500,)
    has_body: bool = False
    is_deprecated: bool = False


def inference() -> dict[str, Any]:
    """Return the document of the inference API."""
    return _document([*_COMMON_FIRST, _PING, *_PREDICTIONS, *_COMMON_LAST])


def management() -> dict[str, Any]:
    """Return the document of the management API."""
    return _document([*_COMMON_FIRST, *_MODELS, *_ONE_MODEL, *_COMMON_LAST])


def metrics() -> dict[str, Any]:
    """Return the document of the metrics API."""
    return _document([_METRICS])


def inference_of(name: str) -> dict[str, Any]:
    """Return the document of the predictions of one model."""
    text = f"Predict with the model {name}."
    paths = (f"/predictions/{name}", f"/v1/models/{name}:predict", f"/v2/models/{name}/infer")
    operations = [
        Operation("post", path, name, text, _DATA, errors=(404, 500, 503), has_body=True) for path in paths
    ]
    return _document(operations, title=f"RESTful API for: {name}", version="1.0.0")


def management_of(name: str) -> dict[str, Any]:
    """Return the document of the management of one model."""
    return _document(_ONE_MODEL, title=f"RESTful Management API for: {name}")


def _document(operations: Iterable[Operation], title: str = TITLE, version: str = ts.__version__) -> dict[str, Any]:
    info = {"title": title, "version": version}
    if title == TITLE:
        info = {"title": title, "description": ABOUT, "version": version}
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _describe(operation)
    return {"openapi": "3.0.1", "info": info, "paths": paths}


def _describe(operation: Operation) -> dict[str, Any]:
    in_path = [
        _parameter(name, f"The {what}.", place="path", required=True)
        for name, what in (("model_name", "name of the model"), ("model_version", "version of the model"))
        if f"{{{name}}}" in operation.path
    ]
    errors = {code: _answer(_SENTENCES[code], _ERROR) for code in operation.errors}
    description: dict[str, Any] = {
        "description": operation.text,
        "operationId": operation.name,
        "parameters": [*in_path, *operation.parameters],
    }
    if operation.has_body:
        description["requestBody"] = {**_DATA[200], "required": True}
    description["responses"] = {str(code): answer for code, answer in {**operation.answers, **errors}.items()}
    if operation.is_deprecated:
        description["deprecated"] = True
    return description


def _parameter(
    name: str, text: str, kind: str = "string", default: str | None = None, place: str = "query", required: bool = False
) -> dict[str, Any]:
    schema = {"type": kind} if default is None else {"type": kind, "default": default}
    return {"in": place, "name": name, "description": text, "required": required, "schema": schema}


def _answer(text: str, schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {media_type: {"schema": schema}}}


def _object(required: Iterable[str], **kinds: Any) -> dict[str, Any]:
    members = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in kinds.items()}
    return {"type": "object", "required": list(required), "properties": members}


def _list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


_ERROR = _object(("code", "type", "message"), code="integer", type="string", message="string")
_STATUS = _object(("status",), status="string")
_OPENAPI = _object(("openapi", "info", "paths"), openapi="string", info="object", paths="object")
_DATA = {200: _answer("The model defines its format", {"type": "string", "format": "binary"}, "*/*")}
_DONE = {200: _answer("Done", _STATUS)}
_DONE_OR_BEGUN = {**_DONE, 202: _answer("Begun; describe the model to see how far it is", _STATUS)}
_WORKER = _object(
    ("id", "startTime", "status"),
    id="string",
    startTime="string",
    status={"type": "string", "enum": ["READY", "LOADING", "UNLOADING"]},
    memoryUsage="integer",
    pid="integer",
    gpu="boolean",
    gpuUsage="string",
)
_QUEUE = _object(
    ("remainingCapacity", "pendingRequests"), remainingCapacity="integer", pendingRequests="integer"
)
_MODEL = _object(
    ("modelName", "modelVersion", "modelUrl", "minWorkers", "maxWorkers", "workers", "jobQueueStatus"),
    **{name: "string" for name in ("modelName", "modelVersion", "modelUrl", "runtime")},
    **{name: "integer" for name in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")},
    **{name: "integer" for name in ("responseTimeout", "startupTimeout")},
    deviceType="string",
    loadedAtStartup="boolean",
    workers=_list_of(_WORKER),
    jobQueueStatus=_QUEUE,
    lastError="string",
)
_LISTED = _object(("modelName", "modelUrl"), modelName="string", modelUrl="string")
_PAGE = _object(("models",), nextPageToken="string", models=_list_of(_LISTED))

_SYNCHRONOUS = _parameter("synchronous", "Whether to answer when the workers are there.", "boolean", "false")
_LATER = _parameter("timeout", "Has no effect: requests that run are always answered.", "integer", "-1")
_LISTING = (
    _parameter("limit", "How many models to list, at most 100.", "integer", "100"),
    _parameter("next_page_token", "The nextPageToken of the page before."),
)
_SCALING = (
    _parameter("min_worker", "The least workers that are to hold the model; 0 unloads it.", "integer", "1"),
    _parameter("max_worker", "The most workers; by default as many as the least.", "integer", "1"),
    _parameter("number_gpu", "Has no effect.", "integer", "0"),
    _SYNCHRONOUS,
    _LATER,
)
_REGISTERING = (
    _parameter("url", "A file in the model store, or an http or https URL.", required=True),
    _parameter("model_name", "The name to register it by, instead of the archive's own."),
    _parameter("handler", "The handler to use instead of the archive's own."),
    _parameter("runtime", "python, python3 or LSP."),
    _parameter("batch_size", "The most requests that the handler sees at once.", "integer", "1"),
    _parameter("max_batch_delay", "How many milliseconds to wait for them.", "integer", "100"),
    _parameter("response_timeout", "How many seconds the handler may take for an answer.", "integer", "120"),
    _parameter("startup_timeout", "How many seconds it may take to load.", "integer", "120"),
    _parameter("initial_workers", "How many workers are to hold the model.", "integer", "0"),
    _parameter("synchronous", "Whether to answer when the workers are there.", "boolean", "true"),
    _parameter("s3_sse_kms", "Has no effect.", "boolean", "false"),
)

_COMMON_FIRST = (
    Operation("options", "/", "apiDescription", "Describe this API.", {200: _answer("An OpenAPI document", _OPENAPI)}),
)
_METRICS = Operation(
    "get",
    "/metrics",
    "metrics",
    "Give the metrics in the text format of Prometheus.",
    {200: _answer("The metrics", {"type": "string"}, "text/plain; version=0.0.4; charset=utf-8")},
    [_parameter("name[]", "The name of a metric to give; several may be named.")],
)
_COMMON_LAST = (
    Operation(
        "get",
        "/api-description",
        "api-description",
        "Describe this API.",
        {200: _answer("An OpenAPI document", _OPENAPI)},
        is_deprecated=True,
    ),
    _METRICS,
)
_PING = Operation("get", "/ping", "ping", "Say whether the models are well.", {200: _answer("The health", _STATUS)})
_PREDICTIONS = tuple(
    Operation("post", path, name, text, _DATA, errors=(404, 500, 503), has_body=True)
    for path, name, text in (
        ("/v1/models/{model_name}:predict", "predictions", "Predict with the default version of a model."),
        ("/v2/models/{model_name}/infer", "predictions", "Predict with the default version of a model."),
        ("/predictions/{model_name}", "predictions", "Predict with the default version of a model."),
        ("/predictions/{model_name}/{model_version}", "version_predictions", "Predict with a version of a model."),
    )
)
_MODELS = (
    Operation("get", "/models", "listModels", "List the models.", {200: _answer("A page of models", _PAGE)}, _LISTING),
    Operation(
        "post", "/models", "registerModel", "Register a model.", _DONE_OR_BEGUN, _REGISTERING, (400, 404, 409, 500)
    ),
)
_ONE_MODEL = (
    *(
        operation
        for path, prefix, which in (
            ("/models/{model_name}", "", "the default version of a model"),
            ("/models/{model_name}/{model_version}", "version_", "a version of a model"),
        )
        for operation in (
            Operation(
                "get",
                path,
                f"{prefix}describeModel",
                f"Describe {which}.",
                {200: _answer("What is known of it", _list_of(_MODEL))},
                errors=(404, 500),
            ),
            Operation(
                "put",
                path,
                f"{prefix}setAutoScale",
                f"Load {which} in some workers, or in none.",
                _DONE_OR_BEGUN,
                _SCALING,
                (400, 404, 500),
            ),
            Operation(
                "delete",
                path,
                f"{prefix}unregisterModel",
                f"Remove {which}.",
                _DONE,
                (_SYNCHRONOUS, _LATER),
                (404, 408, 500),
            ),
        )
    ),
    Operation(
        "put",
        "/models/{model_name}/{model_version}/set-default",
        "setDefault",
        "Let a version answer the requests that name none.",
        _DONE,
        errors=(404, 500),
    ),
)
