"""Azure ML's inference server: `/score`, by a scoring script or by a model of the store, `/swagger.json` and its probe.

What it stands in for is azureml-inference-server-http 1.5; docs/azure.md lists where they differ.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, current_app, g, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

import servekit
from servekit import ext
from servekit.access import open_to_all
from servekit.codecs import swagger
from servekit.codecs.arrays import dump_json, load_json
from servekit.codecs.instances import columns_of, predictions_of, rows_of, zero_row
from servekit.engines.azure import EXEC_MS, FAILED, JSON, NETWORK, SCHEMAS, query_values
from servekit.errors import InvalidInput, SettingError
from servekit.exchange import RawResponse
from servekit.lean import PlainResponse
from servekit.logs import request_id
from servekit.model import Model
from servekit.openapi import Example
from servekit.payload import require_plain
from servekit.platforms import azure_root
from servekit.signature import Signature
from servekit.tensors import Tensors, byte_count, bytes_tensor

bp = Blueprint("azure", __name__)
route = partial(bp.route, strict_slashes=False, merge_slashes=False, provide_automatic_options=False)

MAX_ID = 100  # characters of an id that a client gives

_KEY = "servekit.azure"
_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*")  # RFC 9110, sections 5.1 and 5.5
# the server's own
_FRAMING = frozenset(("content-length", "transfer-encoding", "connection", "date", "server", "x-request-id"))
_RAW = ("image/", "application/octet-stream")


# Routes.


@bp.get("/")
@open_to_all
def health() -> Response:
    """Say `Healthy` if predictions can be made; 503 with the reason if not."""
    ext.repository().require_ready()
    return PlainResponse(b"Healthy", content_type="text/html; charset=utf-8")


@route("/score", methods=["GET", "HEAD", "POST", "OPTIONS"])
def score() -> Response:
    """Answer as the scoring script does, or with a list of predictions by the model that is the default."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return _message(HTTPStatus.OK, None)  # from a browser, before it sends: no script is asked
    model = ext.default_model()
    if model.signature is None:
        return _written(ext.ask(model))
    if request.method not in ("GET", "POST"):
        is_question = request.method == "OPTIONS"
        return _message(HTTPStatus.OK, None) if is_question else _message(HTTPStatus.METHOD_NOT_ALLOWED, "Method not allowed")
    require_plain(request)
    started = time.perf_counter()
    signature, body = model.signature, request.get_data(cache=False)
    answer = model.predict(ext.apart(len(body), lambda: _tensors(body, signature)), ext.deadline())
    content = ext.apart(byte_count(answer), lambda: dump_json(predictions_of(answer, signature)))
    elapsed = (time.perf_counter() - started) * 1000
    return _written(RawResponse(content, JSON, headers={FAILED: "False", EXEC_MS: f"{elapsed:.3f}"}))


@bp.get("/swagger.json", strict_slashes=False)
def describe() -> Response:
    """Describe the service: Swagger 2, or `?version=3` or `3.1`; a file of the user's goes before what is made here."""
    asked = request.args.get("version", "2")
    version, configured = swagger.ALIASES.get(asked, asked), current_app.extensions[_KEY]
    documents = configured["documents"]
    if version in documents:
        return _json(documents[version])
    said = _schemas(ext.default_model())
    supported = ", ".join(sorted({*documents, *said["versions"]}))
    if version not in swagger.VERSIONS:
        return _message(HTTPStatus.NOT_FOUND, f"That version of swagger is not valid. Supported versions: [{supported}].")
    if version not in said["versions"]:
        sentence = f"That version of swagger is not supported for the scoring script. Supported swagger versions: [{supported}]."
        return _message(HTTPStatus.NOT_FOUND, sentence)
    return _json(swagger.document(version, configured["service"], said["input"], said["output"]))


def examples(model: Model) -> list[Example]:
    """Return requests that work for `model`: a row of zeros."""
    found = [Example("azure.health", {}, summary="Probe"), Example("azure.describe", {}, summary="Description")]
    if model.signature is not None:
        found.append(Example("azure.score", {}, {"data": [zero_row(model.signature)]}, summary="One row"))
    return found


# Start.


@bp.record
def configure(state: BlueprintSetupState) -> None:
    """Read what Azure ML's variables and files say of this service; raise SettingError for a file that is no JSON."""
    environ = os.environ
    origins = [origin.strip().lower() for origin in environ.get("AML_CORS_ORIGINS", "").split(",") if origin.strip()]
    service = {name: environ.get(f"SERVICE_{name.upper()}") for name in ("name", "version", "path_prefix")}
    shows = environ.get("SERVER_VERSION_LOG_RESPONSE_ENABLED", "true").lower() == "true"
    state.app.extensions[_KEY] = {
        "origins": origins,
        "service": swagger.Service(**{name: value for name, value in service.items() if value}),
        "documents": _documents(azure_root(environ)),
        "version": f"servekit/{servekit.__version__}" if shows else "",
    }


def _documents(root: Path) -> dict[str, Any]:
    """Return the user's own descriptions, by version: swagger.json, swagger2.json, swagger3.json, swagger3.1.json."""
    found = {}
    for name, version in [("2", "2"), ("3", "3"), ("3.1", "3.1"), ("", "2")]:
        path = root / f"swagger{name}.json"
        try:
            found[version] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise SettingError(f"{path} cannot be read as JSON: {error}.") from None
    return found


# Headers.


@bp.before_request
def _read_ids() -> Response | None:
    """Tell the ids of a request apart; 431 for those that are too long.

    `x-ms-request-id` once was the client's id; who sends only one of both gets it as both.
    """
    given = {name: request.headers.get(name, "") for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id")}
    g.ids = {}
    if len(given["x-request-id"]) > MAX_ID:
        return _message(431, f"x-request-id must not exceed {MAX_ID} characters")
    legacy, client = given["x-ms-request-id"], given["x-ms-client-request-id"]
    if max(len(legacy), len(client)) > MAX_ID:
        return _message(431, f"x-ms-request-id and x-ms-client-request-id must not exceed {MAX_ID} characters")
    g.ids = {"x-ms-request-id": legacy or client or request_id(), "x-ms-client-request-id": client or legacy}
    return None


@bp.after_request
def _add_headers(response: Response) -> Response:
    configured = current_app.extensions[_KEY]
    ids = getattr(g, "ids", {})
    more = {**ids, "x-ms-server-version": configured["version"], "TraceId": request.headers.get("TraceId", "")}
    for name, value in more.items():
        if value and _FIELD.fullmatch(f"{name}: {value}"):
            response.headers[name] = value
    if configured["origins"]:
        _allow_origin(response, configured["origins"])
    return response


def _allow_origin(response: Response, origins: list[str]) -> None:
    """Let the pages of `origins` read the answer in a browser (CORS)."""
    is_open, origin = "*" in origins, request.headers.get("Origin", "")
    if not is_open:
        response.vary.add("Origin")
    if not origin or not (is_open or origin.lower() in origins):
        return
    response.headers["Access-Control-Allow-Origin"] = "*" if is_open else origin
    if request.headers.get("Access-Control-Request-Method", "").upper() in ("GET", "POST") and request.method == "OPTIONS":
        response.headers["Access-Control-Allow-Methods"] = "GET, POST"
        if asked := request.headers.get("Access-Control-Request-Headers"):
            response.headers["Access-Control-Allow-Headers"] = asked


# Errors.


ext.dress_blueprint(bp, lambda message, status: _message(status, message))


@bp.app_errorhandler(NotFound)  # addresses that do not exist belong to no blueprint
@bp.app_errorhandler(MethodNotAllowed)
def _render_http(error: HTTPException) -> Response:
    response = _message(error.code or HTTPStatus.INTERNAL_SERVER_ERROR, error.description or "")
    for name, value in error.get_headers(request.environ):
        if name != "Content-Type":
            response.headers[name] = value
    return response


def _message(status: int, text: str | None) -> Response:
    """Return `{"message": text}`, or nothing, with its status."""
    if text is None:
        response: Response = PlainResponse(b"", content_type="text/html; charset=utf-8")
        response.headers[FAILED] = "False"
    else:
        response = _json({"message": text})
    response.status_code = int(status)
    return response


def _json(value: Any) -> Response:
    response = PlainResponse(json.dumps(value).encode(), content_type=JSON)
    response.headers[FAILED] = "False"
    return response


# A scoring script.


def _written(made: RawResponse) -> Response:
    response = PlainResponse(made.body)
    response.status_code = made.status
    del response.headers["Content-Type"]
    for name, value in [("Content-Type", made.content_type), *made.headers.items()]:
        if value and _FIELD.fullmatch(f"{name}: {value}") and name.lower() not in _FRAMING:
            response.headers[name] = value
    return response


def _schemas(model: Model) -> dict[str, Any]:
    """Return which versions of Swagger can describe `model`, and the schemas of its input and output."""
    signature = model.signature
    if signature is None and model.spec.network == NETWORK:
        said: dict[str, Any] = json.loads(ext.ask(model, SCHEMAS).body)
        return said
    if signature is None:
        return {"versions": swagger.VERSIONS, "input": {"type": "object"}, "output": {"type": "object"}}
    given = {"type": "object", "properties": {"data": swagger.rows_schema(signature.inputs)}, "required": ["data"]}
    return {"versions": swagger.VERSIONS, "input": given, "output": swagger.rows_schema(signature.outputs)}


# A model of the store.


def _tensors(body: bytes, signature: Signature) -> Tensors:
    """Return what the current request asks of a model with `signature`; raise InvalidInput."""
    if request.method == "GET":
        return _read(query_values(request.query_string.decode("latin-1")), signature)
    kind = request.headers.get("Content-Type", "").lower()
    if kind.startswith(_RAW) and len(signature.inputs) == 1 and signature.encoded:
        return {signature.inputs[0].name: bytes_tensor([body])}
    return _read(load_json(body), signature)


def _read(value: Any, signature: Signature) -> Tensors:
    """Read a list of rows, or an object that holds it as `data`, `instances` or `input_data`.

    `input_data` may also be a table as pandas and MLflow write it, or an object with all rows of each input.
    """
    if isinstance(value, list):
        return rows_of(value, signature)
    found = [name for name in ("data", "instances", "input_data") if isinstance(value, dict) and name in value]
    if len(found) != 1:
        raise InvalidInput('The JSON must be an object with one of data, input_data and instances, such as {"data": [[5]]}.')
    given = value[found[0]]
    if not isinstance(given, dict):
        return rows_of(given, signature)
    return rows_of(_rows_of_table(given), signature) if given.keys() >= {"columns", "data"} else columns_of(given, signature)


def _rows_of_table(table: Mapping[str, Any]) -> list[Any]:
    names, rows = table["columns"], table["data"]
    fits = isinstance(names, list) and isinstance(rows, list) and all(type(name) is str for name in names)
    if not fits or not all(isinstance(row, list) and len(row) == len(names) for row in rows):
        raise InvalidInput("A table needs columns, a list of names, and data, a list of rows with a value for each.")
    return [dict(zip(names, row, strict=True)) for row in rows]
