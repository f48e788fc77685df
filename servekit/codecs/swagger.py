"""What Azure ML's clients read about a service: Swagger 2, OpenAPI 3.0 and 3.1, around the schemas of its input and output."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from servekit.spec import TensorSpec

VERSIONS = ("2", "3", "3.1")
ALIASES = {"2.0": "2", "3.0": "3"}

Schema = Mapping[str, Any]

_ERROR = {"type": "object", "properties": {"message": {"type": "string"}}}
_BEARER = {"type": "apiKey", "name": "Authorization", "in": "header", "description": "For example: Bearer abc123"}
_KINDS = {"bool": "boolean", "int": "integer", "uint": "integer", "bytes": "string"}


@dataclasses.dataclass(frozen=True)
class Service:
    """What the operator says of the service: its name, its version, and a path before those of its routes."""

    name: str = "ML service"
    version: str = "1.0"
    path_prefix: str = ""

    @property
    def info(self) -> dict[str, str]:
        """The head of every document."""
        return {"title": self.name, "description": f"The routes of {self.name} on Azure Machine Learning", "version": self.version}

    def path(self, route: str) -> str:
        """Return the address of `route`."""
        prefix = self.path_prefix.strip("/")
        return f"/{prefix}{route}" if prefix else route


def document(version: str, service: Service, given: Schema, answer: Schema) -> dict[str, Any]:
    """Return the description in `version`, one of VERSIONS; `given` and `answer` are the schemas of input and output."""
    schemas = {"ServiceInput": given, "ServiceOutput": answer, "ErrorResponse": _ERROR}
    if version == "2":
        return {
            "swagger": "2.0",
            "info": service.info,
            "schemes": ["https"],
            "consumes": ["application/json"],
            "produces": ["application/json"],
            "securityDefinitions": {"Bearer": _BEARER},
            "paths": _paths_2(service),
            "definitions": schemas,
        }
    return {
        "openapi": "3.1.0" if version == "3.1" else "3.0.3",
        "info": service.info,
        "security": [{"Bearer": []}],
        "paths": _paths_3(service),
        "components": {"schemas": schemas, "securitySchemes": {"Bearer": _BEARER}},
    }


def rows_schema(tensors: tuple[TensorSpec, ...]) -> dict[str, Any]:
    """Return the schema of a list of rows: a bare value each where there is one tensor, an object where there are more."""
    if len(tensors) == 1:
        row = _value(tensors[0])
    else:
        row = {"type": "object", "properties": {tensor.name: _value(tensor) for tensor in tensors}}
    return {"type": "array", "items": row}


def _value(tensor: TensorSpec) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": _KINDS.get(tensor.dtype.rstrip("0123456789"), "number")}
    for _ in tensor.shape[1:]:
        schema = {"type": "array", "items": schema}
    return schema


def _paths_2(service: Service) -> dict[str, Any]:
    def answers(schema: Schema) -> dict[str, Any]:
        failed = {"description": "The service failed.", "schema": {"$ref": "#/definitions/ErrorResponse"}}
        return {"200": {"description": "The answer.", "schema": schema}, "default": failed}

    health = answers({"type": "string"})
    health["200"]["examples"] = {"application/json": "Healthy"}
    body = {
        "name": "serviceInputPayload",
        "in": "body",
        "description": "What the model is asked.",
        "schema": {"$ref": "#/definitions/ServiceInput"},
    }
    version = {"name": "version", "in": "query", "required": False, "type": "integer", "enum": [2, 3]}
    score = _operation("score", parameters=[body], responses=answers({"$ref": "#/definitions/ServiceOutput"}))
    return {
        service.path("/"): {"get": _operation("health", responses=health)},
        service.path("/score"): {"post": score},
        service.path("/swagger.json"): {
            "get": _operation("swagger", parameters=[version], responses=answers({"type": "string"}))
        },
    }


def _paths_3(service: Service) -> dict[str, Any]:
    def content(kind: str, schema: Schema) -> dict[str, Any]:
        return {"content": {kind: {"schema": schema}}}

    def answers(kind: str, schema: Schema) -> dict[str, Any]:
        failed = content("application/json", {"$ref": "#/components/schemas/ErrorResponse"})
        return {
            "200": {"description": "The answer."} | content(kind, schema),
            "default": {"description": "The service failed."} | failed,
        }

    body = content("application/json", {"$ref": "#/components/schemas/ServiceInput"})
    version = {"name": "version", "in": "query", "required": False, "schema": {"type": "integer", "enum": [2, 3]}}
    score = _operation(
        "score",
        requestBody={"description": "What the model is asked."} | body,
        responses=answers("application/json", {"$ref": "#/components/schemas/ServiceOutput"}),
    )
    health = answers("text/plain", {"type": "string", "example": "Healthy"})
    text = answers("text/plain", {"type": "string"})
    return {
        service.path("/"): {"get": _operation("health", responses=health)},
        service.path("/score"): {"post": score},
        service.path("/swagger.json"): {"get": _operation("swagger", parameters=[version], responses=text)},
    }


# The ids that clients generated from Azure ML's documents know.
_OPERATIONS = {
    "health": ("ServiceHealthCheck", "Say whether the service can answer."),
    "score": ("RunMLService", "Ask the model."),
    "swagger": ("GetSwaggerSpec", "Get this document."),
}


def _operation(name: str, **members: Any) -> dict[str, Any]:
    identity, description = _OPERATIONS[name]
    secured: dict[str, Any] = {"security": [{"Bearer": []}]} if name == "score" else {}
    return {"operationId": identity, "description": description} | secured | members
