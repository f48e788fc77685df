"""The Open Inference Protocol (V2) over HTTP, asked by tritonclient, by KServe's client and by open-inference-openapi's."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from open_inference.openapi.client import OpenInferenceClient
from open_inference.openapi.core.api_error import ApiError
from open_inference.openapi.types import InferenceRequest, RequestInput
from tritonclient.utils import InferenceServerException

PAGE = Path(__file__).parents[2] / "docs" / "open-inference.md"
NAMES = ["predicted_class", "confidence", "probabilities"]


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any]) -> Any:
    """A server whose models clients may load and unload; two workers, whose counts are one."""
    return serve(SERVEKIT_MANAGEMENT="true", WEB_CONCURRENCY="2")


@pytest.fixture(scope="session")
def client(server: Any) -> Any:
    return triton.InferenceServerClient(server.address, concurrency=4)


def image_of(pixels: np.ndarray, is_binary: bool = True, rows: int = 1) -> triton.InferInput:
    tensor = triton.InferInput("image", [rows, *pixels.shape], "FP32")
    tensor.set_data_from_numpy(np.repeat(pixels[None], rows, 0), binary_data=is_binary)
    return tensor


def test_liveness_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mnist") and client.is_model_ready("mnist", "1")
    assert not client.is_model_ready("nothing") and not client.is_model_ready("mnist", "7")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("mnist", "1")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    config = client.get_model_config("mnist")
    assert config["max_batch_size"] > 1 and config["input"][0]["data_type"] == "TYPE_FP32"


@pytest.mark.parametrize("is_binary_in", [True, False])
@pytest.mark.parametrize("is_binary_out", [True, False])
@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_a_digit(
    client: Any, pixels: np.ndarray, digit_class: int, is_binary_in: bool, is_binary_out: bool, algorithm: str | None
) -> None:
    outputs = [triton.InferRequestedOutput(name, binary_data=is_binary_out) for name in reversed(NAMES)]
    result = client.infer(
        "mnist",
        [image_of(pixels, is_binary_in, 40)],
        outputs=outputs,
        request_id="forty digits",
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    assert result.get_response()["id"] == "forty digits" and result.get_response()["model_version"] == "1"
    assert [each["name"] for each in result.get_response()["outputs"]] == NAMES[::-1]
    assert result.as_numpy("predicted_class").tolist() == [digit_class] * 40
    assert result.as_numpy("probabilities").shape == (40, 10)


def test_a_digit_without_requested_outputs_and_with_parameters(client: Any, pixels: np.ndarray, digit_class: int) -> None:
    result = client.infer(
        "mnist", [image_of(pixels)], model_version="1", timeout=5_000_000, priority=1, parameters={"who": "a test"}
    )
    assert result.as_numpy("predicted_class").tolist() == [digit_class]
    assert result.as_numpy("confidence").dtype == np.float32


def test_pictures_as_bytes_and_their_classes(client: Any, digit: bytes, digit_class: int) -> None:
    for shape in ([2], [2, 1]):
        image = triton.InferInput("image", shape, "BYTES")
        image.set_data_from_numpy(np.array([digit, digit], object).reshape(shape))
        best = triton.InferRequestedOutput("probabilities", class_count=3)
        found = client.infer("mnist", [image], outputs=[best]).as_numpy("probabilities")
        assert found.shape == (2, 3)
        value, index, label = found[0, 0].decode().split(":")
        assert 0.1 < float(value) <= 1 and index == label == str(digit_class)


def test_asking_without_waiting(client: Any, pixels: np.ndarray, digit_class: int) -> None:
    pending = [client.async_infer("mnist", [image_of(pixels)]) for _ in range(20)]
    assert {request.get_result().as_numpy("predicted_class")[0] for request in pending} == {digit_class}
    with pytest.raises(InferenceServerException, match="unexpected shape for input 'image'"):
        client.async_infer("mnist", [image_of(pixels[0])]).get_result()


def test_what_is_wrong_is_said_in_words(client: Any, pixels: np.ndarray) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nothing' is not found") as caught:
        client.infer("nothing", [image_of(pixels)])
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="unexpected inference output 'logits'"):
        client.infer("mnist", [image_of(pixels)], outputs=[triton.InferRequestedOutput("logits")])
    with pytest.raises(InferenceServerException, match="sequence"):
        client.infer("mnist", [image_of(pixels)], sequence_id=7, sequence_start=True)
    # An answer that says what is wrong is never compressed: the client would not read it.
    with pytest.raises(InferenceServerException, match="unknown model"):
        client.infer("nothing", [image_of(pixels)], response_compression_algorithm="gzip")


def test_statistics_count_what_all_workers_did(client: Any, pixels: np.ndarray) -> None:
    def counted() -> tuple[int, int, int]:
        [found] = client.get_inference_statistics("mnist", "1")["model_stats"]
        stats = found["inference_stats"]
        return found["inference_count"], stats["success"]["count"], stats["compute_infer"]["ns"]

    rows, requests, nanoseconds = counted()
    for pending in [client.async_infer("mnist", [image_of(pixels, rows=3)]) for _ in range(12)]:
        pending.get_result()
    after = counted()
    assert after[:2] == (rows + 36, requests + 12) and after[2] > nanoseconds
    assert {each["name"] for each in client.get_inference_statistics()["model_stats"]} == {"linear", "mnist"}


def test_models_come_and_go(client: Any) -> None:
    assert client.get_model_repository_index() == [
        {"name": name, "version": "1", "state": "READY"} for name in ("linear", "mnist")
    ]
    client.unload_model("linear")
    assert not client.is_model_ready("linear") and client.is_server_ready()
    assert client.get_model_repository_index()[0] == {
        "name": "linear", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded",
    }  # fmt: skip
    client.load_model("linear")
    assert client.is_model_ready("linear")
    with pytest.raises(InferenceServerException, match="failed to load 'nothing'"):
        client.load_model("nothing")
    with pytest.raises(InferenceServerException, match="unknown model: 'nothing'"):
        client.unload_model("nothing")
    with pytest.raises(InferenceServerException, match="Files cannot be sent"):
        client.load_model("linear", config="{}", files={"file:../../x": b"content"})


def test_loading_is_off_by_default(serve: Callable[..., Any]) -> None:
    client = triton.InferenceServerClient(serve().address)
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
            change("linear")


def test_settings_can_be_seen_and_not_changed(client: Any) -> None:
    assert client.get_log_settings()["log_info"] is True
    assert client.get_trace_settings()["trace_level"] == client.get_trace_settings("mnist")["trace_level"] == ["OFF"]
    assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory("region")
    changes = (
        lambda: client.update_log_settings({"log_file": "/tmp/x"}),
        lambda: client.update_trace_settings(settings={"trace_file": "/tmp/x"}),
        lambda: client.register_system_shared_memory("region", "/key", 64),
    )
    for change in changes:
        with pytest.raises(InferenceServerException) as caught:
            change()
        assert caught.value.status() == "501"


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_the_asynchronous_client(server: Any, pixels: np.ndarray, digit_class: int, algorithm: str | None) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready() and await client.is_model_ready("mnist")
            assert (await client.get_model_metadata("mnist"))["name"] == "mnist"
            assert (await client.get_model_config("mnist"))["name"] == "mnist"
            assert len(await client.get_model_repository_index()) == 2
            assert (await client.get_inference_statistics("mnist"))["model_stats"][0]["name"] == "mnist"
            result = await client.infer(
                "mnist",
                [image_of(pixels, rows=40)],
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
            assert result.as_numpy("predicted_class").tolist() == [digit_class] * 40
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.infer("nothing", [image_of(pixels)])

    asyncio.run(ask())


def test_the_client_made_from_the_specification(server: Any, pixels: np.ndarray, digit_class: int) -> None:
    client = OpenInferenceClient(base_url=server.url)
    client.check_server_liveness()
    client.check_server_readiness()
    client.check_model_readiness("mnist")
    client.check_model_version_readiness("mnist", "1")
    assert client.read_server_metadata().name == "servekit"
    assert client.read_model_metadata("mnist").inputs[0].shape == [-1, 1, 28, 28]
    image = RequestInput(name="image", shape=[1, 1, 28, 28], datatype="FP32", data=pixels.ravel().tolist())
    answer = client.model_infer("mnist", request=InferenceRequest(id="one", inputs=[image]))
    assert (answer.id, answer.model_name, answer.model_version) == ("one", "mnist", "1")
    assert answer.outputs[0].data.__root__ == [digit_class]
    with pytest.raises(ApiError) as caught:
        client.read_model_metadata("nothing")
    assert caught.value.status_code == 404


def test_kserve(server: Any, apart: Callable[..., Any], pixels: np.ndarray, digit_class: int) -> None:
    assert apart(ask_by_kserve, server.url, pixels, True) == [True, True, True, [digit_class], [digit_class], 404]
    assert apart(ask_by_kserve, server.url, pixels, False) == [True, True, True, [digit_class], [digit_class], 404]


def ask_by_kserve(url: str, pixels: np.ndarray, is_binary: bool) -> list[Any]:
    """Ask in a process without tritonclient.grpc."""
    import httpx
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
    from kserve.protocol.infer_type import RequestedOutput

    async def ask() -> list[Any]:
        async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
            answers: list[Any] = [await client.is_server_live(url), await client.is_server_ready(url)]
            answers.append(await client.is_model_ready(url, "mnist"))
            image = InferInput("image", [1, 1, 28, 28], "FP32")
            image.set_data_from_numpy(pixels[None], binary_data=is_binary)
            for outputs in ([], [RequestedOutput("predicted_class", parameters={"binary_data": is_binary})]):
                request = InferRequest("mnist", [image], request_id="k", request_outputs=outputs or None)
                answer = await client.infer(url, request, model_name="mnist")
                answers.append(next(out for out in answer.outputs if out.name == "predicted_class").as_numpy().tolist())
            try:
                await client.infer(url, InferRequest("nothing", [image]), model_name="nothing")
            except httpx.HTTPStatusError as error:
                assert "Request for unknown model: 'nothing' is not found" in str(error)
                answers.append(error.response.status_code)
            return answers

    return asyncio.run(ask())


def test_the_snippets_of_the_page_run(server: Any, digit: bytes, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "digit.png").write_bytes(digit)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(snippet.replace("localhost:5001", server.address), {})  # noqa: S102
    finally:
        os.chdir(before)
    printed = capsys.readouterr().out
    assert "(1, 10)" in printed and ":" in printed.splitlines()[-1]
