"""One handwritten digit, asked about in every contract by the client that speaks it: each must read the same digit.

The model is the one that `make train` writes, untouched. The ensemble has a preprocessing model in front of it.
"""

import asyncio
import base64
import json
import re
import shutil
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import httpx
import numpy as np
import pytest
import tritonclient.http
from conftest import Server, running, wait_for
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform_v1
from google.protobuf import json_format, struct_pb2

SECONDS = 60.0
PIXELS = {"name": "pixels", "dtype": "float32", "shape": [-1, 1, 28, 28]}
PREPARE = {
    "handler": "servekit.handlers.image:PixelsHandler",
    "options": {"background": "black"},
    "inputs": [PIXELS],
    "outputs": [PIXELS],
    "files": {},
}
DIGITS = """
    platform: "ensemble"
    max_batch_size: 16
    input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
    output [ { name: "CLASS" data_type: TYPE_INT64 dims: [ 1 ] } ]
    ensemble_scheduling {
      step [
        {
          model_name: "prepare"
          model_version: -1
          input_map { key: "image" value: "IMAGE" }
          output_map { key: "pixels" value: "between" }
        },
        {
          model_name: "mnist"
          model_version: -1
          input_map { key: "image" value: "between" }
          output_map { key: "predicted_class" value: "CLASS" }
        }
      ]
    }
"""


class Address(NamedTuple):
    """Where a server listens, as a text that another process can use."""

    url: str
    address: str


class Digit(NamedTuple):
    """What is sent: the picture as a file, and its pixels `(1, 28, 28)` float32."""

    png: bytes
    pixels: "np.ndarray[Any, np.dtype[np.float32]]"

    @property
    def b64(self) -> dict[str, str]:
        """The file as JSON holds bytes in most of the contracts."""
        return {"b64": base64.b64encode(self.png).decode()}


def post(url: str, body: bytes, kind: str) -> Any:
    """Send `body` as urllib does; return the answer, which is JSON."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return json.load(response)


def ask_form(server: Address, digit: Digit) -> int:
    with httpx.Client(timeout=SECONDS) as client:
        answer = client.post(f"{server.url}/predict", files={"file": ("digit.png", digit.png, "image/png")})
    return int(answer.raise_for_status().json()["predicted_class"])


def ask_torchserve(server: Address, digit: Digit) -> int:
    """The answer of TorchServe's image classifiers: the probabilities of the best classes by their labels."""
    answer = post(f"{server.url}/predictions/mnist", digit.png, "image/png")
    return int(max(answer, key=lambda label: answer[label]))


def ask_v1(server: Address, digit: Digit) -> int:
    """TensorFlow Serving has no client for REST; its documentation sends JSON by hand."""
    body = json.dumps({"instances": [{"image": digit.pixels.tolist()}]}).encode()
    answer = post(f"{server.url}/v1/models/mnist:predict", body, "application/json")
    return int(answer["predictions"][0]["predicted_class"])


def ask_kserve_v1(server: Address, digit: Digit) -> int:
    from kserve import InferenceRESTClient, RESTConfig

    async def ask() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v1", timeout=SECONDS)) as client:
            return await client.infer(server.url, {"instances": [digit.b64]}, model_name="mnist")

    return int(asyncio.run(ask())["predictions"][0]["predicted_class"])


def ask_kserve_v2(server: Address, digit: Digit) -> int:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    image = InferInput("image", [1, *digit.pixels.shape], "FP32")
    image.set_data_from_numpy(digit.pixels[None], binary_data=False)

    async def ask() -> Any:
        async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=SECONDS)) as client:
            return await client.infer(server.url, InferRequest("mnist", [image]), model_name="mnist")

    answer = asyncio.run(ask())
    return int(next(output for output in answer.outputs if output.name == "predicted_class").data[0])


def ask_v2(server: Address, digit: Digit, is_binary: bool) -> int:
    image = tritonclient.http.InferInput("image", [1, *digit.pixels.shape], "FP32")
    image.set_data_from_numpy(digit.pixels[None], binary_data=is_binary)
    wanted = tritonclient.http.InferRequestedOutput("predicted_class", binary_data=is_binary)
    with tritonclient.http.InferenceServerClient(server.address, network_timeout=SECONDS) as client:
        return int(client.infer("mnist", [image], outputs=[wanted]).as_numpy("predicted_class")[0])


def ask_v2_json(server: Address, digit: Digit) -> int:
    return ask_v2(server, digit, is_binary=False)


def ask_v2_binary(server: Address, digit: Digit) -> int:
    return ask_v2(server, digit, is_binary=True)


def ask_ensemble(server: Address, digit: Digit) -> int:
    picture = tritonclient.http.InferInput("IMAGE", [1, 1], "BYTES")
    picture.set_data_from_numpy(np.array([[digit.png]], object))
    with tritonclient.http.InferenceServerClient(server.address, network_timeout=SECONDS) as client:
        return int(client.infer("digits", [picture]).as_numpy("CLASS").item())


def ask_grpc(server: Address, digit: Digit) -> int:
    import tritonclient.grpc  # where KServe's client is not imported, which this module also serves

    image = tritonclient.grpc.InferInput("image", [1, *digit.pixels.shape], "FP32")
    image.set_data_from_numpy(digit.pixels[None])
    with tritonclient.grpc.InferenceServerClient(server.address) as client:
        return int(client.infer("mnist", [image], client_timeout=SECONDS).as_numpy("predicted_class")[0])


def ask_sagemaker(server: Address, digit: Digit) -> int:
    keys = {"aws_access_key_id": "none", "aws_secret_access_key": "none", "region_name": "us-east-1"}
    client = boto3.client("sagemaker-runtime", endpoint_url=server.url, **keys)
    answer = client.invoke_endpoint(EndpointName="digits", ContentType="image/png", Body=digit.png)
    return int(json.loads(answer["Body"].read())["predictions"][0]["predicted_class"])


def ask_vertex(server: Address, digit: Digit) -> int:
    client = aiplatform_v1.PredictionServiceClient(
        transport="rest", credentials=AnonymousCredentials(), client_options={"api_endpoint": server.url}
    )
    instance = json_format.ParseDict({"image": digit.pixels.tolist()}, struct_pb2.Value())
    answer = client.predict(endpoint="projects/p/locations/l/endpoints/e", instances=[instance], timeout=SECONDS)
    return int(answer.predictions[0]["predicted_class"])


def ask_azure(server: Address, digit: Digit) -> int:
    """Azure's command line and its SDK send JSON by plain HTTP, with the endpoint's key."""
    request = urllib.request.Request(
        f"{server.url}/score",
        json.dumps([digit.b64]).encode(),
        {"Content-Type": "application/json", "Authorization": "Bearer none", "x-ms-client-request-id": str(uuid.uuid4())},
    )
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        return int(json.load(response)[0]["predicted_class"])


ASK: dict[str, Callable[[Address, Digit], int]] = {
    "form": ask_form,
    "TorchServe": ask_torchserve,
    "TensorFlow Serving": ask_v1,
    "KServe V1": ask_kserve_v1,
    "KServe V2": ask_kserve_v2,
    "V2 JSON": ask_v2_json,
    "V2 binary": ask_v2_binary,
    "ensemble": ask_ensemble,
    "gRPC V2": ask_grpc,
    "SageMaker": ask_sagemaker,
    "Vertex AI": ask_vertex,
    "Azure ML": ask_azure,
}
APART = {"KServe V1", "KServe V2"}  # not in a process that has tritonclient.grpc
PLATFORMS = {"SageMaker": "sagemaker", "Vertex AI": "vertex", "Azure ML": "azure"}


@pytest.fixture(scope="module")
def repository(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained models, a model that only reads pictures, and an ensemble of Triton's that joins the two."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(store, folder, dirs_exist_ok=True)
    (folder / "prepare" / "1").mkdir(parents=True)
    (folder / "prepare" / "1" / "model.json").write_text(json.dumps(PREPARE))
    (folder / "digits" / "1").mkdir(parents=True)
    (folder / "digits" / "config.pbtxt").write_text(DIGITS)
    return folder


@pytest.fixture(scope="module")
def own(serve: Callable[..., Server], repository: Path) -> Server:
    """The server with its own address: what answers there in any environment."""
    return serve(SERVEKIT_MODEL_STORE=str(repository), SERVEKIT_DEFAULT_MODEL="mnist")


@pytest.fixture(scope="module")
def grpc(own: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`servekit grpc` in front of that server."""
    command = ("-m", "servekit", "grpc", "--bind", "127.0.0.1:0", "--server", own.url)
    with running(tmp_path_factory.mktemp("grpc") / "log", *command) as gateway:
        found = wait_for(lambda: re.search(r"gRPC  127\.0\.0\.1:(\d+)", gateway.text()), gateway.process)
        assert found, gateway.text()
        gateway.port = int(found[1])
        yield gateway


def test_the_same_digit_by_every_contract(
    serve: Callable[..., Server],
    own: Server,
    grpc: Server,
    apart: Callable[..., Any],
    digit: bytes,
    pixels: "np.ndarray[Any, np.dtype[np.float32]]",
    digit_class: int,
) -> None:
    answers: dict[str, int | str] = {}
    for name, ask in ASK.items():
        server = grpc if name == "gRPC V2" else own
        if name in PLATFORMS:
            server = serve(PLATFORMS[name], SERVEKIT_DEFAULT_MODEL="mnist")
        address = Address(server.url, server.address)
        try:
            asked = (address, Digit(digit, pixels))
            answers[name] = apart(ask, *asked) if name in APART else ask(*asked)
        except Exception as error:  # so that one run says of every contract what it answers
            answers[name] = f"{type(error).__name__}: {error}"
    assert answers == dict.fromkeys(ASK, digit_class)
