"""gRPC V2, asked by tritonclient.grpc: blocking, with callbacks, by a stream and asynchronously; and by KServe's client."""

import asyncio
import queue
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from conftest import running, wait_for
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

PAGE = Path(__file__).parents[2] / "docs" / "grpc.md"
NAMES = ["predicted_class", "confidence", "probabilities"]


@pytest.fixture(scope="module")
def address(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `servekit grpc` listens, in front of a server whose models clients may load and unload."""
    server = serve(SERVEKIT_MANAGEMENT="true", WEB_CONCURRENCY="2")
    command = ("-m", "servekit", "grpc", "--bind", "127.0.0.1:0", "--server", server.url)
    with running(tmp_path_factory.mktemp("grpc") / "log", *command) as gateway:
        found = wait_for(lambda: re.search(r"gRPC  (127\.0\.0\.1:\d+)", gateway.text()), gateway.process)
        assert found, gateway.text()
        yield found[1]


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Any]:
    with triton.InferenceServerClient(address) as client:
        yield client


def image_of(pixels: np.ndarray, rows: int = 1, module: Any = triton) -> Any:
    tensor = module.InferInput("image", [rows, *pixels.shape], "FP32")
    tensor.set_data_from_numpy(np.repeat(pixels[None], rows, 0))
    return tensor


def test_liveness_and_metadata(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("mnist") and client.is_model_ready("mnist", "1")
    assert not client.is_model_ready("nothing") and not client.is_model_ready("mnist", "7")
    assert "statistics" in client.get_server_metadata().extensions
    metadata = client.get_model_metadata("mnist", "1", as_json=True)
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "28", "28"]}]
    config = client.get_model_config("mnist").config
    assert config.max_batch_size > 1 and config.input[0].data_type == 11


def test_a_digit(client: Any, pixels: np.ndarray, digit_class: int) -> None:
    outputs = [triton.InferRequestedOutput(name) for name in reversed(NAMES)]
    result = client.infer("mnist", [image_of(pixels, 3)], "1", outputs, "an id", priority=1, timeout=20_000_000)
    assert result.as_numpy("predicted_class").tolist() == [digit_class] * 3
    assert result.as_numpy("probabilities").shape == (3, 10)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("an id", "mnist", "1")
    assert [output.name for output in response.outputs] == NAMES[::-1]
    everything = client.infer("mnist", [image_of(pixels)], compression_algorithm="gzip", client_timeout=30)
    assert sorted(output.name for output in everything.get_response().outputs) == sorted(NAMES)


def test_a_digit_in_typed_contents(client: Any, pixels: np.ndarray, digit_class: int, address: str) -> None:
    request = service_pb2.ModelInferRequest(model_name="mnist")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, *pixels.shape])
    tensor.contents.fp32_contents.extend(pixels.ravel().tolist())
    response = client._client_stub.ModelInfer(request)
    assert np.frombuffer(response.raw_output_contents[0], "<i8").tolist() == [digit_class]
    request.raw_input_contents.append(pixels.tobytes())
    with pytest.raises(Exception, match="contents field must not be specified when using raw_input_contents for 'image'"):
        client._client_stub.ModelInfer(request)


def test_a_picture_and_its_classes(client: Any, digit: bytes, digit_class: int) -> None:
    picture = triton.InferInput("image", [1], "BYTES")
    picture.set_data_from_numpy(np.array([digit], object))
    best = triton.InferRequestedOutput("probabilities", class_count=3)
    result = client.infer("mnist", [picture], outputs=[best]).as_numpy("probabilities")
    assert result.shape == (1, 3)
    value, index, label = result[0][0].decode().split(":")
    assert float(value) > 0.3 and int(index) == digit_class and label == str(digit_class)


def test_many_at_once_by_callback(client: Any, pixels: np.ndarray, digit_class: int) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for _ in range(20):
        client.async_infer("mnist", [image_of(pixels)], lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=60)
        assert error is None and result.as_numpy("predicted_class").tolist() == [digit_class]


def test_a_stream(address: str, pixels: np.ndarray, digit_class: int) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for model in ("mnist", "nothing", "mnist"):
            client.async_stream_infer(model, [image_of(pixels)], request_id=model, enable_empty_final_response=True)
        (first, _), (none, error), (last, _) = [answers.get(timeout=60) for _ in range(3)]
        client.stop_stream()
    assert none is None and "Request for unknown model: 'nothing' is not found" in error.message()
    for result in (first, last):
        assert result.as_numpy("predicted_class").tolist() == [digit_class]
        assert result.get_response(as_json=True)["parameters"]["triton_final_response"]["bool_param"]


def test_the_asynchronous_client(address: str, pixels: np.ndarray, digit_class: int) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(address) as client:
            results = await asyncio.gather(*(client.infer("mnist", [image_of(pixels, 1, triton_aio)]) for _ in range(8)))
            assert {int(result.as_numpy("predicted_class")[0]) for result in results} == {digit_class}

            async def requests() -> Any:
                for _ in range(2):
                    yield {"model_name": "mnist", "inputs": [image_of(pixels, 1, triton_aio)]}

            streamed = [pair async for pair in client.stream_infer(requests())]
            assert [int(result.as_numpy("predicted_class")[0]) for result, _ in streamed] == [digit_class] * 2

    asyncio.run(ask())


def test_statistics(client: Any, pixels: np.ndarray) -> None:
    def count() -> int:
        return int(client.get_inference_statistics("mnist", "1").model_stats[0].inference_stats.success.count)

    before = count()
    client.infer("mnist", [image_of(pixels)])
    assert count() > before
    assert {model.name for model in client.get_inference_statistics().model_stats} >= {"linear", "mnist"}


def test_the_repository(client: Any) -> None:
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "linear", "version": "1", "state": "READY"}.items() <= next(
        each for each in index if each["name"] == "linear"
    ).items()
    client.unload_model("linear")
    assert not client.is_model_ready("linear")
    client.load_model("linear")
    assert client.is_model_ready("linear")
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model("nothing")


def test_settings_and_shared_memory(client: Any) -> None:
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    assert not client.get_system_shared_memory_status().regions
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"] == {"value": ["OFF"]}
    assert "log_info" in client.get_log_settings(as_json=True)["settings"]
    with pytest.raises(InferenceServerException, match="StatusCode.UNIMPLEMENTED"):
        client.update_log_settings({"log_file": "elsewhere"})
    with pytest.raises(InferenceServerException, match="StatusCode.UNIMPLEMENTED"):
        client.register_system_shared_memory("region", "/key", 64)


def test_errors_carry_triton_words(client: Any, pixels: np.ndarray) -> None:
    wrong = triton.InferInput("image", [1, 784], "FP32")
    wrong.set_data_from_numpy(pixels.reshape(1, 784))
    for model, tensor, status, words in (
        ("nothing", image_of(pixels), "NOT_FOUND", "Request for unknown model: 'nothing' is not found"),
        ("mnist/versions/1", image_of(pixels), "NOT_FOUND", "Request for unknown model"),
        ("mnist", wrong, "INVALID_ARGUMENT", "unexpected shape for input 'image'"),
    ):
        with pytest.raises(InferenceServerException, match=re.escape(words)) as caught:
            client.infer(model, [tensor])
        assert caught.value.status() == f"StatusCode.{status}"
    assert client.is_server_ready()


# In a process of its own: KServe's messages bear the names of Triton's.
BY_KSERVE = """
import asyncio, sys
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

async def ask(address, pixels):
    tensor = InferInput("image", [1, 1, 28, 28], "FP32")
    tensor.set_data_from_numpy(pixels.reshape(1, 1, 28, 28), binary_data=True)
    client = InferenceGRPCClient(url=address)
    assert await client.is_server_ready() and await client.is_model_ready("mnist")
    answer = await client.infer(InferRequest(model_name="mnist", infer_inputs=[tensor]))
    print(answer.outputs[0].name, answer.outputs[0].as_numpy().tolist())

asyncio.run(ask(sys.argv[1], np.frombuffer(sys.stdin.buffer.read(), np.float32)))
"""


def test_kserves_client(address: str, pixels: np.ndarray, digit_class: int) -> None:
    command = [sys.executable, "-c", BY_KSERVE, address]
    ran = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False, timeout=60)
    assert ran.stdout.decode() == f"predicted_class [{digit_class}]\n", ran.stderr.decode()


def test_our_numbers_are_tritons() -> None:
    """Every message, field and method of ours that Triton has bears Triton's name, number and type."""
    from google.protobuf import descriptor_pb2, descriptor_pool

    ours = descriptor_pool.DescriptorPool()
    for path in ("servekit/triton/model_config.binpb", "servekit/grpc/inference.binpb"):
        for file in descriptor_pb2.FileDescriptorSet.FromString((PAGE.parents[1] / path).read_bytes()).file:
            ours.AddSerializedFile(file.SerializeToString())
    for name, theirs in service_pb2.DESCRIPTOR.message_types_by_name.items():
        mine = ours.FindMessageTypeByName(f"inference.{name}")
        for field in theirs.fields:
            found = mine.fields_by_name[field.name]
            assert (found.number, found.type, found.is_repeated) == (field.number, field.type, field.is_repeated), name
    service = ours.FindServiceByName("inference.GRPCInferenceService")
    stubs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in stubs.methods} == {method.name for method in service.methods}


def test_the_snippet_of_the_page_runs(address: str) -> None:
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "127.0.0.1:8001" in snippet
    snippet = snippet.replace("127.0.0.1:8001", address)
    ran = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False, timeout=60)
    assert re.fullmatch(r"\[\d\] \(1, 10\)\n", ran.stdout), ran.stderr
