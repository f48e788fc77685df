"""Google's own REST client, pointed at servekit."""

import base64
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from conftest import ROOT, Server
from google.api import httpbody_pb2
from google.api_core.exceptions import BadRequest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

ENDPOINT = "projects/p/locations/l/endpoints/e"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server]) -> Server:
    """A server as Vertex AI starts it."""
    return serve(AIP_MODE="PREDICTION", AIP_ENDPOINT_ID="77", AIP_DEPLOYED_MODEL_ID="88", SERVEKIT_DEFAULT_MODEL="mnist")


@pytest.fixture(scope="module")
def client(server: Server) -> aiplatform_v1.PredictionServiceClient:
    """Google's client, without an account."""
    return aiplatform_v1.PredictionServiceClient(
        transport="rest", credentials=AnonymousCredentials(), client_options={"api_endpoint": server.url}
    )


def value(item: Any) -> Value:
    """Return what Google's client sends for `item`: its integers are floats."""
    return json_format.ParseDict(item, Value())


def plain(answer: Any) -> dict[str, Any]:
    """Return a message as what it means in JSON."""
    found: dict[str, Any] = json_format.MessageToDict(answer._pb)
    return found


def test_the_client_gets_a_prediction_for_each_instance(
    client: aiplatform_v1.PredictionServiceClient, digit: bytes, digit_class: int, pixels: Any
) -> None:
    encoded = {"b64": base64.b64encode(digit).decode()}
    for instance in (encoded, {"image": encoded}):
        answer = plain(client.predict(endpoint=ENDPOINT, instances=[value(instance), value(instance)]))
        assert [prediction["predicted_class"] for prediction in answer["predictions"]] == [digit_class] * 2
    assert answer["deployedModelId"] == "88"
    answer = plain(client.predict(endpoint=ENDPOINT, instances=[value(pixels.tolist())], parameters=value({"k": 1})))
    assert answer["predictions"][0]["predicted_class"] == digit_class


def test_the_client_sends_a_raw_image(
    client: aiplatform_v1.PredictionServiceClient, digit: bytes, digit_class: int
) -> None:
    body = httpbody_pb2.HttpBody(content_type="image/png", data=digit)
    answer = client.raw_predict(endpoint=ENDPOINT, http_body=body)
    assert answer.content_type == "application/json"
    assert f'"predicted_class":{digit_class}'.encode() in answer.data


def test_the_client_reads_what_is_wrong(client: aiplatform_v1.PredictionServiceClient) -> None:
    with pytest.raises(BadRequest, match="instances"):
        client.predict(endpoint=ENDPOINT, instances=[])
    with pytest.raises(BadRequest, match="image cannot be read"):
        client.predict(endpoint=ENDPOINT, instances=[value("no picture")])


def test_the_platforms_own_routes_answer(server: Server, digit: bytes, digit_class: int) -> None:
    base = f"{server.url}/v1/endpoints/77/deployedModels/88"
    assert httpx.get(base).status_code == 200
    answer = httpx.post(f"{base}:predict", content=digit, headers={"Content-Type": "image/png"}).json()
    assert answer["predictions"][0]["predicted_class"] == digit_class


def test_the_snippet_of_the_documentation_works(server: Server, digit: bytes, digit_class: int) -> None:
    page = (ROOT / "docs" / "vertex.md").read_text()
    [code] = re.findall(r"```python\n(import base64.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("http://127.0.0.1:8080", server.url).replace('open("digit.png", "rb").read()', repr(digit)), found)
    assert found["answer"].predictions[0]["predicted_class"] == digit_class
