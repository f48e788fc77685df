"""The OpenAPI documents: which operations they list, and that they are whole."""

from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from servekit.blueprints import torchserve_inference, torchserve_management
from servekit.desired import Entry
from servekit.torchserve import openapi
from tests.fakes_torchserve import FakeRepository, error_of, make_app

INFERENCE = {
    "/": ["options"],
    "/ping": ["get"],
    "/v1/models/{model_name}:predict": ["post"],
    "/v2/models/{model_name}/infer": ["post"],
    "/predictions/{model_name}": ["post"],
    "/predictions/{model_name}/{model_version}": ["post"],
    "/api-description": ["get"],
    "/metrics": ["get"],
}
ONE_MODEL = {
    "/models/{model_name}": ["get", "put", "delete"],
    "/models/{model_name}/{model_version}": ["get", "put", "delete"],
    "/models/{model_name}/{model_version}/set-default": ["put"],
}
MANAGEMENT = {
    "/": ["options"],
    "/models": ["get", "post"],
    **ONE_MODEL,
    "/api-description": ["get"],
    "/metrics": ["get"],
}


def client_of(blueprint: Any, folder: Path) -> FlaskClient:
    repository = FakeRepository(folder)
    repository.register(Entry("noop", "1.0", "torchserve", "noop.mar", str(folder), 1, 1, {"response_timeout": 1}))
    return make_app(blueprint, repository, "disable_token_authorization=true", folder).test_client()


def operations_of(document: dict[str, Any]) -> dict[str, list[str]]:
    return {path: list(methods) for path, methods in document["paths"].items()}


@pytest.mark.parametrize(
    ("blueprint", "operations"), [(torchserve_inference, INFERENCE), (torchserve_management, MANAGEMENT)]
)
def test_an_address_describes_all_its_operations(tmp_path: Path, blueprint: Any, operations: dict[str, list[str]]) -> None:
    client = client_of(blueprint, tmp_path)
    document = client.options("/").get_json()
    assert document == client.get("/api-description").get_json() == client.post("/api-description/").get_json()
    assert document["openapi"] == "3.0.1"
    assert document["info"]["title"] == "TorchServe APIs"
    assert operations_of(document) == operations
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["description"].endswith(".")
            in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
            assert in_path == [name for name in ("model_name", "model_version") if f"{{{name}}}" in path]
            assert "200" in operation["responses"]


def test_a_model_has_a_document_of_its_own_at_both_addresses(tmp_path: Path) -> None:
    client = client_of(torchserve_inference, tmp_path)
    for path in ("/predictions/noop", "/predictions/noop/1.0", "/explanations/noop"):
        document = client.options(path).get_json()
        assert document["info"] == {"title": "RESTful API for: noop", "version": "1.0.0"}
        assert "/predictions/noop" in document["paths"]
    assert error_of(client.options("/predictions/X"))[0] == 404
    client = client_of(torchserve_management, tmp_path)
    for path in ("/models/noop", "/models/noop/1.0", "/models/noop/1.0/set-default"):
        document = client.options(path).get_json()
        assert document["info"]["title"] == "RESTful Management API for: noop"
        assert operations_of(document) == ONE_MODEL
    assert error_of(client.options("/models/X")) == (404, "ModelNotFoundException", "Model not found: X")


def test_the_metrics_have_a_document_of_their_own() -> None:
    assert operations_of(openapi.metrics()) == {"/metrics": ["get"]}


def test_registration_lists_its_parameters() -> None:
    operation = openapi.management()["paths"]["/models"]["post"]
    assert [parameter["name"] for parameter in operation["parameters"]] == [
        *("url", "model_name", "handler", "runtime", "batch_size", "max_batch_delay", "response_timeout"),
        *("startup_timeout", "initial_workers", "synchronous", "s3_sse_kms"),
    ]
    assert list(operation["responses"]) == ["200", "202", "400", "404", "409", "500"]
