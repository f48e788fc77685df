"""SageMaker's contract, asked by AWS' own client; MLflow's bodies, as its clients send them; and what their pages show."""

import contextlib
import io
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from botocore.config import Config
from conftest import PYTHON, ROOT, environment, wait_for

DOCS = Path(__file__).parents[2] / "docs"
CODE = """
import json

def model_fn(model_dir):
    return 2.0

def input_fn(body, content_type):
    return json.loads(body)

def predict_fn(data, model):
    return [value * model for value in data]

def output_fn(prediction, accept):
    return json.dumps({"twice": prediction})
"""


def runtime(url: str) -> Any:
    """Return AWS' client, pointed at `url`; it signs requests with keys that mean nothing here."""
    return boto3.client(
        "sagemaker-runtime",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
        config=Config(retries={"max_attempts": 0}),
    )


@pytest.fixture(scope="module")
def url(serve: Callable[..., Any]) -> str:
    return str(serve("sagemaker", SERVEKIT_DEFAULT_MODEL="mnist").url)


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    return runtime(url)


def invoke(client: Any, body: bytes, kind: str, **more: str) -> tuple[bytes, str]:
    answer = client.invoke_endpoint(EndpointName="any", Body=body, ContentType=kind, **more)
    return answer["Body"].read(), answer["ContentType"]


def npy(array: "np.ndarray[Any, Any]") -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_digit_is_recognised_in_every_form(client: Any, digit: bytes, digit_class: int, pixels: Any) -> None:
    body, kind = invoke(client, digit, "image/png")
    assert kind == "application/json"
    assert json.loads(body)["predictions"][0]["predicted_class"] == digit_class
    for body, kind in [
        (npy(pixels), "application/x-npy"),
        (",".join(map(str, pixels.ravel())).encode(), "text/csv"),
        (json.dumps([pixels.tolist()]).encode(), "application/json"),
        (json.dumps(pixels.tolist()).encode(), "application/jsonlines"),
    ]:
        answer, _ = invoke(client, body, kind, Accept="text/csv")
        assert answer.decode().split(",")[0] == str(digit_class), kind


def test_an_array_comes_back(client: Any, digit_class: int, pixels: Any) -> None:
    body, kind = invoke(client, npy(np.stack([pixels, pixels])), "application/x-npy", Accept="application/x-npy")
    answer = np.load(io.BytesIO(body), allow_pickle=False)
    assert (kind, answer.shape, answer[:, 0].tolist()) == ("application/x-npy", (2, 12), [digit_class] * 2)


def test_attributes_come_back_and_a_target_is_chosen(client: Any) -> None:
    answer = client.invoke_endpoint(
        EndpointName="any",
        Body=b"5\n6\n",
        ContentType="text/csv",
        Accept="text/csv",
        TargetModel="linear",
        CustomAttributes="trace=1, user=a",
        InferenceId="17",
    )
    assert answer["CustomAttributes"] == "trace=1, user=a"
    values = [float(line) for line in answer["Body"].read().splitlines()]
    assert values == pytest.approx([9, 11], abs=0.1)


@pytest.mark.parametrize(
    ("body", "kind", "more", "status"),
    [
        (b"{", "application/json", {}, 400),
        (b"1", "text/plain", {}, 415),
        (b"[1]", "application/json", {"Accept": "text/html"}, 406),
        (b"[1]", "application/json", {"TargetModel": "none"}, 404),
        (b"\x93NUMPY\x01\x00", "application/x-npy", {}, 400),
        (b"x" * (26 * 2**20), "text/csv", {}, 413),
    ],
)
def test_the_client_raises_what_is_refused(client: Any, body: bytes, kind: str, more: dict[str, str], status: int) -> None:
    with pytest.raises(client.exceptions.ModelError) as raised:
        invoke(client, body, kind, **more)
    answer = raised.value.response
    assert (answer["OriginalStatusCode"], json.loads(answer["OriginalMessage"])["code"]) == (status, status)


def test_a_model_with_its_own_code_answers(serve: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(CODE)
    server = serve("sagemaker", SERVEKIT_MODEL_STORE=str(tmp_path))
    client = runtime(server.url)
    assert json.loads(invoke(client, b"[1, 2.5]", "application/json")[0]) == {"twice": [2.0, 5.0]}
    with pytest.raises(client.exceptions.ModelError) as raised:
        invoke(client, b"not json", "application/json")
    assert raised.value.response["OriginalStatusCode"] == 500
    assert "not json" not in str(raised.value)


# Batch transform, and a container's probe, as the platform sends them.


def test_a_batch_transform_keeps_the_lines(url: str) -> None:
    parameters = httpx.get(f"{url}/execution-parameters").json()
    assert parameters["BatchStrategy"] == "MULTI_RECORD"
    assert 1 <= parameters["MaxConcurrentTransforms"] * parameters["MaxPayloadInMB"] <= 100
    lines = "".join(f"{number}\n" for number in range(500))
    headers = {"Content-Type": "text/csv", "Accept": "text/csv", "X-Amzn-SageMaker-Target-Model": "linear"}
    answer = httpx.post(f"{url}/invocations", content=lines, headers=headers).text
    assert len(answer.splitlines()) == 500
    assert (httpx.get(f"{url}/ping").status_code, httpx.get(f"{url}/ping").content) == (200, b"")


# MLflow.


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"index": [0, 1], "columns": ["value"], "data": [[5.0], [6.0]]}},
        {"dataframe_records": [{"value": 5.0}, {"value": 6.0}], "params": {"any": 1}},
        {"inputs": [[5.0], [6.0]]},
        {"instances": [5.0, 6.0]},
    ],
)
def test_mlflow_bodies_are_answered(serve: Callable[..., Any], body: Any) -> None:
    server = serve("mlflow", SERVEKIT_DEFAULT_MODEL="linear")
    assert {httpx.get(f"{server.url}/{path}").status_code for path in ("ping", "health", "version")} == {200}
    answer = httpx.post(f"{server.url}/invocations", json=body).json()
    assert list(answer) == ["predictions"]
    assert answer["predictions"] == pytest.approx([9, 11], abs=0.1)


# What the pages show.


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", ["sagemaker.md", "mlflow.md"])
def test_the_snippets_of_the_page_work(
    serve: Callable[..., Any], page: str, digit: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("sagemaker", SERVEKIT_DEFAULT_MODEL="mnist") if page == "sagemaker.md" else None
    server = server or serve("mlflow", SERVEKIT_DEFAULT_MODEL="linear")
    (tmp_path / "digit.png").write_bytes(digit)
    monkeypatch.chdir(tmp_path)
    asked = [code for code in snippets(page) if "http://127.0.0.1" in code]
    assert asked
    for code in asked:
        names: dict[str, Any] = {}
        exec(re.sub(r"http://127\.0\.0\.1:\d+", server.url, code), names)


@contextlib.contextmanager
def container(models: Path, log: Path) -> Iterator[str]:
    """Run the command `serve` as SageMaker does for a multi-model endpoint; give its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = {"SAGEMAKER_MULTI_MODEL": "true", "SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_MODEL_SERVER_WORKERS": "1"}
    command = [PYTHON, "-m", "servekit.cli.container"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(SERVEKIT_MODEL_STORE=str(models), **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        assert wait_for(lambda: "is ready" in log.read_text(), process), log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=40)


def test_a_multi_model_endpoint_is_driven_as_the_platform_does(store: Path, tmp_path: Path) -> None:
    with container(store, tmp_path / "log") as url:
        assert httpx.get(f"{url}/ping").status_code == 200
        body = {"model_name": "0a1b", "url": str(store / "linear" / "1")}
        assert [httpx.post(f"{url}/models", json=body).status_code for _ in range(2)] == [200, 409]
        assert httpx.get(f"{url}/models/0a1b").json() == {"modelName": "0a1b", "modelUrl": body["url"]}
        values = json.loads(invoke(runtime(url), b"5\n", "text/csv", TargetModel="0a1b")[0])
        assert values == pytest.approx([9], abs=0.1)
        assert [httpx.delete(f"{url}/models/0a1b").status_code for _ in range(2)] == [200, 404]
        assert httpx.get(f"{url}/models").json() == {"models": []}
