"""gRPC V2: what each call becomes for the server behind it, what its answer becomes, and how both ends of it fail."""

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from servekit.cli import main
from servekit.cli.grpc import NEEDED
from servekit.cli.grpc import main as grpc_main
from servekit.cli.grpc import missing_packages
from servekit.errors import StartupError
from servekit.grpc.connections import Connections, Unreachable
from servekit.grpc.group import GAVE_UP, command_of, pipe, reserve, run_group
from servekit.grpc.infer import MAX_MEMBERS
from servekit.grpc.messages import message, methods
from servekit.grpc.service import safely
from tests.grpc_server import Fake, Gateway, Seen, request, serving
from tests.server import ROOT, Server, children, wait_for

OUTPUTS = {
    "model_name": "mnist",
    "model_version": "2",
    "id": "seven",
    "parameters": {"warm": True, "rows": 1, "large": 2**63, "share": 0.5, "word": "yes", "list": [1]},
    "outputs": [
        {"name": "class", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
        {"name": "label", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7, "k": 1}},
    ],
}
TENSORS = (7).to_bytes(8, "little") + b"\3\0\0\0cat"


def infer_answer(document: Any = OUTPUTS, tensors: bytes = TENSORS) -> tuple[int, dict[str, str], bytes]:
    head = json.dumps(document).encode()
    return 200, {"Inference-Header-Content-Length": str(len(head)), "X-Request-Id": "abc"}, head + tensors


def json_answer(value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@pytest.fixture(scope="module")
def scripted() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.close()


@pytest.fixture
def fake(scripted: Fake) -> Fake:
    scripted.seen.clear()
    scripted.answers = lambda seen: infer_answer()
    return scripted


@pytest.fixture(scope="module")
def gateway(scripted: Fake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    log = tmp_path_factory.mktemp("grpc") / "log"
    with serving(log, scripted.url, SERVEKIT_MAX_BODY_BYTES="2000000") as gateway:
        yield gateway


def head_of(seen: Seen) -> tuple[Any, bytes]:
    """Return the JSON of a request and the bytes of its tensors."""
    length = int(seen.headers["Inference-Header-Content-Length"])
    return json.loads(seen.body[:length]), seen.body[length:]


# What a call becomes, and its answer.


def test_infer_becomes_one_request_with_binary_tensors(gateway: Gateway, fake: Fake) -> None:
    call = request(model_version="2", id="seven")
    call.parameters["priority"].uint64_param = 3
    call.parameters["tag"].string_param = "x"
    call.parameters["triton_enable_empty_final_response"].bool_param = True
    call.outputs.add(name="class")
    call.outputs.add(name="label").parameters["classification"].int64_param = 3
    gateway.stub("ModelInfer")(call)
    [seen] = fake.seen
    document, tensors = head_of(seen)
    assert (seen.method, seen.path) == ("POST", "/v2/models/mnist/versions/2/infer")
    assert tensors == b"\0\0\x80\x3f"
    assert document == {
        "id": "seven",
        "parameters": {"priority": 3, "tag": "x", "binary_data_output": True},
        "inputs": [
            {"name": "value", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
        ],
        "outputs": [
            {"name": "class", "parameters": {"binary_data": True}},
            {"name": "label", "parameters": {"binary_data": True, "classification": 3}},
        ],
    }


def test_every_output_comes_raw_and_in_order(gateway: Gateway, fake: Fake) -> None:
    answer = gateway.call("ModelInfer", request())
    assert (answer.model_name, answer.model_version, answer.id) == ("mnist", "2", "seven")
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [
        ("class", "INT64", [1]),
        ("label", "BYTES", [1]),
    ]
    assert list(answer.raw_output_contents) == [TENSORS[:8], TENSORS[8:]]
    assert not any(output.HasField("contents") for output in answer.outputs)
    assert dict(answer.outputs[1].parameters) == {"k": message("inference.InferParameter")(int64_param=1)}
    kinds = {name: (value.WhichOneof("parameter_choice")) for name, value in answer.parameters.items()}
    assert kinds == {
        "warm": "bool_param",
        "rows": "int64_param",
        "large": "uint64_param",
        "share": "double_param",
        "word": "string_param",
    }


def test_an_output_that_came_as_json_is_answered_raw(gateway: Gateway, fake: Fake) -> None:
    outputs = [
        {"name": "a", "datatype": "INT32", "shape": [2, 2], "data": [[1, 2], [3, 4]]},
        {"name": "b", "datatype": "BYTES", "shape": [2], "data": ["é", ""]},
        {"name": "c", "datatype": "FP32", "shape": [0], "data": []},
    ]
    fake.answers = lambda seen: json_answer({"model_name": "m", "outputs": outputs})
    answer = gateway.call("ModelInfer", request())
    assert list(answer.raw_output_contents) == [np.arange(1, 5, dtype="<i4").tobytes(), b"\2\0\0\0\xc3\xa9\0\0\0\0", b""]


@pytest.mark.parametrize(
    ("datatype", "field", "values", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], "?"),
        ("INT8", "int_contents", [-128, 127], "<i1"),
        ("INT16", "int_contents", [-5, 300], "<i2"),
        ("INT32", "int_contents", [-(2**31), 7], "<i4"),
        ("INT64", "int64_contents", [-(2**63), 7], "<i8"),
        ("UINT8", "uint_contents", [0, 255], "<u1"),
        ("UINT16", "uint_contents", [0, 65535], "<u2"),
        ("UINT32", "uint_contents", [0, 2**32 - 1], "<u4"),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], "<u8"),
        ("FP32", "fp32_contents", [0.5, float("inf")], "<f4"),
        ("FP64", "fp64_contents", [0.1, -2.0], "<f8"),
        ("BYTES", "bytes_contents", [b"ab", b""], None),
    ],
)
def test_typed_contents_of_every_kind(
    gateway: Gateway, fake: Fake, datatype: str, field: str, values: list[Any], dtype: str | None
) -> None:
    call = message("inference.ModelInferRequest")(model_name="m")
    getattr(call.inputs.add(name="x", datatype=datatype, shape=[2]).contents, field).extend(values)
    gateway.call("ModelInfer", call)
    expected = np.array(values, dtype).tobytes() if dtype else b"\2\0\0\0ab\0\0\0\0"
    assert head_of(fake.seen[0])[1] == expected


def test_several_inputs_keep_their_order(gateway: Gateway, fake: Fake) -> None:
    call = request()
    call.inputs.add(name="second", datatype="BYTES", shape=[1])
    call.raw_input_contents.append(b"\1\0\0\0z")
    gateway.call("ModelInfer", call)
    document, tensors = head_of(fake.seen[0])
    assert [each["name"] for each in document["inputs"]] == ["value", "second"]
    assert tensors == b"\0\0\x80\x3f\1\0\0\0z"


def malformed(kind: str) -> Any:
    call = request()
    if kind == "mixture":
        call.inputs[0].contents.fp32_contents.append(1)
    elif kind == "too few":
        call.inputs.add(name="other", datatype="FP32", shape=[1])
    elif kind == "shared memory":
        call.inputs[0].parameters["shared_memory_region"].string_param = "r"
    elif kind == "inputs":
        call.inputs.extend(call.inputs[:1] * MAX_MEMBERS)
    elif kind == "outputs":
        call.outputs.extend([call.outputs.add(name="x")] * MAX_MEMBERS)
    elif kind == "parameters":
        for number in range(MAX_MEMBERS):
            call.inputs[0].parameters[str(number)].int64_param = 1
    elif kind == "axes":
        call.inputs[0].shape.extend([1] * MAX_MEMBERS)
    else:
        call.ClearField("raw_input_contents")
        call.inputs[0].datatype = {"fp16": "FP16", "range": "INT8", "field": "INT64", "huge": "INT64"}[kind]
        field = "int64_contents" if kind == "huge" else "int_contents"
        getattr(call.inputs[0].contents, field).extend([1] * 300_000 if kind == "huge" else [1000])
    return call


@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        (
            "mixture",
            StatusCode.INVALID_ARGUMENT,
            "contents field must not be specified when using raw_input_contents for 'value' for model 'mnist'",
        ),
        ("too few", StatusCode.INVALID_ARGUMENT, "expected 2 raw_input_contents"),
        ("fp16", StatusCode.INVALID_ARGUMENT, "must be sent in raw_input_contents: contents hold no FP16"),
        ("range", StatusCode.INVALID_ARGUMENT, "a value of 'value' does not fit INT8"),
        ("field", StatusCode.INVALID_ARGUMENT, "of type INT64 belong in int64_contents, not in int_contents"),
        ("huge", StatusCode.RESOURCE_EXHAUSTED, "larger than a request may be"),
        ("shared memory", StatusCode.UNIMPLEMENTED, "shared memory is not supported"),
        ("inputs", StatusCode.INVALID_ARGUMENT, "a call may have 10000 inputs"),
        ("outputs", StatusCode.INVALID_ARGUMENT, "a call may have 10000 inputs"),
        ("parameters", StatusCode.INVALID_ARGUMENT, "a call may have 10000 inputs"),
        ("axes", StatusCode.INVALID_ARGUMENT, "a call may have 10000 inputs"),
    ],
)
def test_what_is_wrong_with_a_message_is_said_without_a_request(
    gateway: Gateway, fake: Fake, kind: str, code: StatusCode, words: str
) -> None:
    found, details = gateway.refusal("ModelInfer", malformed(kind))
    assert found is code
    assert words in details
    assert not fake.seen


def test_what_is_no_message_is_refused_without_a_word_of_the_servers_code(gateway: Gateway, fake: Fake) -> None:
    for method in ("unary_unary", "stream_stream"):
        name = "ModelInfer" if method == "unary_unary" else "ModelStreamInfer"
        make = getattr(gateway.channel, method)(f"/inference.GRPCInferenceService/{name}")
        with pytest.raises(grpc.RpcError) as caught:
            list(make(iter([b"\xff" * 9]), timeout=20)) if method == "stream_stream" else make(b"\xff" * 9, timeout=20)
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "the message of the call is damaged"
    assert not fake.seen


def test_many_typed_values_are_packed_in_pieces(gateway: Gateway, fake: Fake) -> None:
    call = request()
    call.ClearField("raw_input_contents")
    call.inputs[0].datatype = "INT32"
    call.inputs[0].contents.int_contents.extend(range(200_000))
    gateway.call("ModelInfer", call)
    assert head_of(fake.seen[0])[1] == b"".join(number.to_bytes(4, "little") for number in range(200_000))


def test_a_size_of_the_clients_own_does_not_reach_the_server(gateway: Gateway, fake: Fake) -> None:
    call = request()
    call.inputs[0].parameters["binary_data_size"].int64_param = 0
    call.parameters["binary_data_output"].bool_param = False
    gateway.call("ModelInfer", call)
    document, _ = head_of(fake.seen[0])
    assert document["inputs"][0]["parameters"] == {"binary_data_size": 4}
    assert document["parameters"] == {"binary_data_output": True, "timeout": document["parameters"]["timeout"]}


def test_a_message_over_the_limit_is_refused(gateway: Gateway, fake: Fake) -> None:
    call = request()
    call.raw_input_contents[0] = bytes(3_100_000)
    assert gateway.refusal("ModelInfer", call)[0] is StatusCode.RESOURCE_EXHAUSTED
    code, _ = gateway.refusal("ModelInfer", call, compression=grpc.Compression.Gzip)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    call.raw_input_contents[0] = bytes(1_900_000)
    assert gateway.call("ModelInfer", call).outputs
    assert len(fake.seen) == 1


# Names, metadata, deadlines.


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("%2f..", "/v2/models/%252f../infer"),
        ("a?b=c#d", "/v2/models/a%3Fb%3Dc%23d/infer"),
        ("a b\r\nHost: x", "/v2/models/a%20b%0D%0AHost%3A%20x/infer"),
        ("模型", "/v2/models/%E6%A8%A1%E5%9E%8B/infer"),
        ("a\\b\0", "/v2/models/a%5Cb%00/infer"),
    ],
)
def test_a_name_stays_one_part_of_the_path(gateway: Gateway, fake: Fake, name: str, path: str) -> None:
    gateway.call("ModelInfer", request(name))
    assert [seen.path for seen in fake.seen] == [path]


@pytest.mark.parametrize("name", ["a/b", "mnist/versions/1", "..", ".", "/", "x" * 5000])
def test_a_name_that_could_lead_elsewhere_is_unknown(gateway: Gateway, fake: Fake, name: str) -> None:
    code, words = gateway.refusal("ModelInfer", request(name))
    assert code is StatusCode.NOT_FOUND
    assert words.startswith("Request for unknown model: '")
    assert gateway.refusal("ModelMetadata", {"name": "m", "version": name})[0] is StatusCode.NOT_FOUND
    assert gateway.refusal("RepositoryModelLoad", {"model_name": name})[0] is StatusCode.NOT_FOUND
    assert gateway.refusal("RepositoryIndex", {"repository_name": name})[0] is StatusCode.NOT_FOUND
    assert not fake.seen


def test_a_request_without_a_name_is_refused(gateway: Gateway, fake: Fake) -> None:
    assert gateway.refusal("ModelInfer", request("")) == (StatusCode.INVALID_ARGUMENT, "the request names no model")
    assert gateway.refusal("RepositoryModelLoad")[0] is StatusCode.INVALID_ARGUMENT
    assert not fake.seen


def test_authorization_and_the_request_id_are_passed_on_and_nothing_else(gateway: Gateway, fake: Fake) -> None:
    metadata = [("authorization", "Bearer k"), ("x-request-id", "mine"), ("content-length", "1"), ("host", "evil")]
    answer, call = gateway.stub("ModelInfer").with_call(request(), metadata=metadata)
    assert answer.outputs
    headers = fake.seen[0].headers
    assert (headers["authorization"], headers["x-request-id"]) == ("Bearer k", "mine")
    assert headers["Host"] == fake.url.removeprefix("http://")
    assert set(headers) == {
        *("Host", "Content-Length", "Content-Type", "authorization", "x-request-id", "Inference-Header-Content-Length")
    }
    assert dict(call.trailing_metadata())["x-request-id"] == "abc"


def test_the_deadline_becomes_the_timeout(gateway: Gateway, fake: Fake) -> None:
    call = request()
    gateway.stub("ModelInfer")(call)
    gateway.stub("ModelInfer")(call, timeout=10)
    call.parameters["timeout"].int64_param = 5
    gateway.stub("ModelInfer")(call, timeout=10)
    none, deadline, shorter = [head_of(seen)[0]["parameters"].get("timeout") for seen in fake.seen]
    assert none is None
    assert 8_000_000 < deadline < 11_000_000  # gRPC rounds what it sends up
    assert shorter == 5


def test_a_call_that_is_given_up_closes_its_connection(gateway: Gateway, fake: Fake) -> None:
    asked, go = threading.Event(), threading.Event()

    def slowly(seen: Seen) -> Any:
        asked.set()
        go.wait(20)
        return infer_answer()

    fake.answers = slowly
    before = {seen.connection for seen in fake.seen}
    future = gateway.stub("ModelInfer").future(request())
    assert asked.wait(20)
    fake.lost.clear()
    future.cancel()
    go.set()
    assert fake.lost.wait(20)
    fake.answers = lambda seen: infer_answer()
    gateway.call("ModelInfer", request())
    assert fake.seen[-1].connection not in before | {fake.seen[0].connection}


def test_a_call_past_its_deadline_ends(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: (time.sleep(1), infer_answer())[1]
    assert gateway.refusal("ModelInfer", request(), timeout=0.2)[0] is StatusCode.DEADLINE_EXCEEDED


# What goes wrong behind it.


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, StatusCode.INVALID_ARGUMENT),
        (401, StatusCode.UNAUTHENTICATED),
        (403, StatusCode.PERMISSION_DENIED),
        (404, StatusCode.NOT_FOUND),
        (409, StatusCode.ALREADY_EXISTS),
        (413, StatusCode.RESOURCE_EXHAUSTED),
        (500, StatusCode.INTERNAL),
        (501, StatusCode.UNIMPLEMENTED),
        (503, StatusCode.UNAVAILABLE),
        (504, StatusCode.DEADLINE_EXCEEDED),
        (418, StatusCode.INTERNAL),
    ],
)
def test_an_error_keeps_its_words_and_gets_the_code_of_its_status(
    gateway: Gateway, fake: Fake, status: int, code: StatusCode
) -> None:
    fake.answers = lambda seen: json_answer({"error": "In plain words: é."}, status)
    assert gateway.refusal("ModelInfer", request()) == (code, "In plain words: é.")


def test_an_error_of_something_in_between_is_named_by_its_status(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: (502, {}, b"<html>Bad gateway</html>")
    expected = (StatusCode.UNAVAILABLE, "the inference server answered with HTTP status 502")
    assert gateway.refusal("ModelInfer", request()) == expected


@pytest.mark.parametrize(
    "answer",
    [
        (200, {}, b"[" * 100_000),
        (200, {}, b"7"),
        json_answer({"model_name": "m"}),
        json_answer({"model_name": "m", "outputs": [{"name": "a", "datatype": "INT8", "shape": [1], "data": [999]}]}),
        infer_answer(tensors=b"short"),
        (200, {"Inference-Header-Content-Length": "x"}, b"{}"),
    ],
)
def test_an_answer_that_cannot_be_read_is_internal(gateway: Gateway, fake: Fake, answer: Any) -> None:
    fake.answers = lambda seen: answer
    expected = (StatusCode.INTERNAL, "the inference server gave an answer that cannot be read")
    assert gateway.refusal("ModelInfer", request()) == expected


def test_a_connection_that_the_server_closes_at_that_moment_loses_no_call(gateway: Gateway, fake: Fake) -> None:
    gateway.call("ModelInfer", request())
    kept = fake.seen[0].connection
    fake.answers = lambda seen: None if seen.connection == kept else infer_answer()
    assert gateway.call("ModelInfer", request()).outputs
    assert [seen.connection == kept for seen in fake.seen] == [True, True, False]


def test_a_call_is_sent_twice_at_most_and_never_after_a_part_of_its_answer(gateway: Gateway, fake: Fake) -> None:
    gateway.call("ModelInfer", request())
    fake.answers = lambda seen: None
    unreachable = (StatusCode.UNAVAILABLE, "the inference server does not answer")
    assert gateway.refusal("ModelInfer", request()) == unreachable
    assert len(fake.seen) == 3
    fake.answers = lambda seen: (200, {"Content-Length": "100", "Connection": "close"}, b"part")
    assert gateway.refusal("ModelInfer", request()) == unreachable
    assert len(fake.seen) == 4


def talk(*answers: bytes, calls: int = 1, at_once: bool = False, **options: Any) -> tuple[list[Any], int]:
    """Call a server that sends these bytes, one after each request; return what came of it, and how many connected."""
    found: list[Any] = []
    left = list(answers)
    connected: list[Any] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError):
            while left:
                await reader.readuntil(b"\r\n\r\n")
                answer = left.pop(0)
                writer.write(answer)
                if answer.endswith(b"bye"):
                    break
        await asyncio.sleep(0.05)
        writer.close()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connections = Connections("127.0.0.1", server.sockets[0].getsockname()[1], **options)
        if at_once:
            found.extend(await asyncio.gather(*(connections.request("GET", "/") for _ in range(calls))))
        for _ in range(0 if at_once else calls):
            try:
                found.append((await connections.request("GET", "/")).body)
            except Unreachable:
                found.append(Unreachable)
            await asyncio.sleep(0.1)
        connections.close()
        server.close()
        await asyncio.wait(connected)

    asyncio.run(asyncio.wait_for(ask(), 20))
    return found, len(connected)


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def test_connections_are_kept_until_either_side_closes_them() -> None:
    assert talk(OK + b"ab", OK + b"cd", OK + b"ef", calls=3) == ([b"ab", b"cd", b"ef"], 1)
    closing = OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert talk(closing + b"ab", OK + b"cd", OK + b"ef", calls=2) == ([b"ab", b"cd"], 2)
    idle = OK.replace(b"2", b"3", 2).replace(b"300", b"200")
    assert talk(idle + b"bye", OK + b"cd", OK + b"ef", calls=2) == ([b"bye", b"cd"], 2)  # closed while nobody used it
    assert talk(OK + b"ab", OK + b"cd", OK + b"ef", calls=2, at_once=True, max_idle=0)[1] == 2


def test_what_is_no_answer_closes_its_connection() -> None:
    assert talk(b"what?\r\n\r\n", OK + b"ab", OK + b"cd", calls=2) == ([Unreachable, b"ab"], 2)
    assert talk(OK + b"ab" + OK + b"unasked", OK + b"cd", OK + b"ef", calls=2) == ([b"ab", b"cd"], 2)


def test_a_header_field_cannot_begin_another_one() -> None:
    with pytest.raises(ValueError, match="authorization"):
        asyncio.run(Connections("127.0.0.1", 1).request("GET", "/", {"authorization": "a\r\nHost: b"}))


def test_a_bug_tells_the_client_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    class Context:
        async def abort(self, *status: Any) -> None:
            ended.append(status)

    async def broken(call: Any, context: Any) -> None:
        raise RuntimeError("secret")

    asyncio.run(safely(broken)(None, Context()))
    assert ended == [(StatusCode.INTERNAL, "the call failed; the log of the gRPC server has the reason")]
    assert "secret" in caplog.text


def test_without_a_server_calls_say_so(tmp_path: Path) -> None:
    gone = Fake()
    gone.close()
    with serving(tmp_path / "log", gone.url) as gateway:
        assert gateway.call("ServerLive").live is False
        assert gateway.call("ServerReady").ready is False
        assert gateway.call("Check").status == 2
        assert gateway.refusal("ServerMetadata") == (StatusCode.UNAVAILABLE, "the inference server does not answer")


# Streams.


def test_a_stream_answers_in_order_and_survives_errors(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: json_answer({"error": "no"}, 400) if "/bad/" in seen.path else infer_answer()
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for each in (request(), request("bad", id="b"), request("a/b", id="c"), request()):
        requests.put(each)
    answers = gateway.stub("ModelStreamInfer")(iter(requests.get, None), timeout=20)
    first, second, third, last = [next(answers) for _ in range(4)]
    assert first.infer_response.outputs and last.infer_response.outputs
    assert last.infer_response.parameters["triton_final_response"].bool_param
    assert (second.error_message, second.infer_response.id) == ("no", "b")
    assert (third.infer_response.id, third.error_message[:26]) == ("c", "Request for unknown model:")
    requests.put(None)
    assert list(answers) == []


# Everything that is no inference.


def test_health(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: json_answer({})
    assert gateway.call("ServerLive").live and gateway.call("ServerReady").ready
    assert gateway.call("ModelReady", {"name": "m", "version": "1"}).ready
    assert [seen.path for seen in fake.seen] == ["/v2/health/live", "/v2/health/ready", "/v2/models/m/versions/1/ready"]
    assert gateway.call("Check").status == gateway.call("Check", {"service": "inference.GRPCInferenceService"}).status == 1
    assert gateway.refusal("Check", {"service": "other"})[0] is StatusCode.NOT_FOUND
    fake.answers = lambda seen: json_answer({"error": "not yet"}, 503)
    assert not gateway.call("ServerReady").ready
    assert not gateway.call("ModelReady", {"name": "m"}).ready
    assert gateway.call("Check").status == 2
    fake.answers = lambda seen: json_answer({"error": "who?"}, 401)
    assert gateway.refusal("ModelReady", {"name": "m"})[0] is StatusCode.UNAUTHENTICATED


def test_health_is_watched(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: json_answer({})
    watch = gateway.call("Watch")
    assert next(watch).status == 1
    fake.answers = lambda seen: json_answer({}, 503)
    assert next(watch).status == 2
    watch.cancel()
    unknown = gateway.call("Watch", {"service": "other"})
    assert next(unknown).status == 3
    unknown.cancel()


def test_descriptions_become_messages(gateway: Gateway, fake: Fake) -> None:
    statistics = {"count": 3, "ns": 4}
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    answers = {
        "/v2": {"name": "triton", "version": "1", "extensions": ["statistics"]},
        "/v2/models/m": {"name": "m", "versions": ["1"], "platform": "p", "inputs": [tensor], "outputs": [], "new": 1},
        "/v2/models/m/config": {
            "name": "m",
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
            "dynamic_batching": {},
        },
        "/v2/models/stats": {
            "model_stats": [
                {
                    "name": "m",
                    "version": "1",
                    "inference_count": 3,
                    "inference_stats": {"success": statistics},
                    "response_stats": {"0": {"success": statistics}},
                }
            ]
        },
        "/v2/repository/index": [{"name": "m", "version": "1", "state": "READY"}, {"name": "n"}],
    }
    fake.answers = lambda seen: json_answer(answers[seen.path])
    assert list(gateway.call("ServerMetadata").extensions) == ["statistics"]
    assert list(gateway.call("ModelMetadata", {"name": "m"}).inputs[0].shape) == [-1, 2]
    config = gateway.call("ModelConfig", {"name": "m"}).config
    assert (config.max_batch_size, config.input[0].data_type, config.WhichOneof("scheduling_choice")) == (
        *(8, 11, "dynamic_batching"),
    )
    [model] = gateway.call("ModelStatistics").model_stats
    assert model.inference_stats.success.ns == model.response_stats["0"].success.ns == 4
    index = gateway.call("RepositoryIndex", {"ready": True}).models
    assert [(each.name, each.state) for each in index] == [("m", "READY"), ("n", "")]
    assert json.loads(fake.seen[-1].body) == {"ready": True}
    fake.answers = lambda seen: json_answer({"extensions": 7})
    assert gateway.refusal("ServerMetadata")[0] is StatusCode.INTERNAL


def test_loading_hands_its_parameters_on(gateway: Gateway, fake: Fake) -> None:
    fake.answers = lambda seen: (200, {}, b"")
    gateway.call("RepositoryModelUnload", {"model_name": "m"})
    call = message("inference.RepositoryModelLoadRequest")(model_name="m", repository_name="r")
    call.parameters["config"].string_param = "{}"
    call.parameters["file:1/model.onnx"].bytes_param = b"\0\1"
    gateway.call("RepositoryModelLoad", call)
    unload, load = fake.seen
    assert (unload.path, json.loads(unload.body)) == ("/v2/repository/models/m/unload", {})
    assert load.path == "/v2/repository/r/models/m/load"
    assert json.loads(load.body) == {"parameters": {"config": "{}", "file:1/model.onnx": "AAE="}}


def test_settings_become_messages(gateway: Gateway, fake: Fake) -> None:
    log = {"log_file": "", "log_info": True, "log_verbose_level": 2}
    fake.answers = lambda seen: json_answer(log if seen.path == "/v2/logging" else {"trace_level": ["OFF"], "trace_rate": "9"})
    found = gateway.call("LogSettings").settings
    assert (found["log_info"].bool_param, found["log_verbose_level"].uint32_param) == (True, 2)
    found = gateway.call("TraceSetting", {"model_name": "m"}).settings
    assert (list(found["trace_level"].value), list(found["trace_rate"].value)) == (["OFF"], ["9"])
    call = message("inference.LogSettingsRequest")()
    call.settings["log_file"].string_param = "x"
    fake.answers = lambda seen: json_answer({"error": "not here"}, 501)
    assert gateway.refusal("LogSettings", call) == (StatusCode.UNIMPLEMENTED, "not here")
    assert (fake.seen[-1].method, json.loads(fake.seen[-1].body)) == ("POST", {"log_file": "x"})
    trace = message("inference.TraceSettingRequest")()
    trace.settings["trace_level"].value.append("OFF")
    assert gateway.refusal("TraceSetting", trace)[0] is StatusCode.UNIMPLEMENTED
    fake.answers = lambda seen: json_answer([])
    assert gateway.refusal("TraceSetting")[0] is StatusCode.INTERNAL


def test_shared_memory_is_refused(gateway: Gateway, fake: Fake) -> None:
    for kind in ("System", "Cuda"):
        code, words = gateway.refusal(f"{kind}SharedMemoryRegister")
        assert code is StatusCode.UNIMPLEMENTED and words
        assert not gateway.call(f"{kind}SharedMemoryStatus").regions
        gateway.call(f"{kind}SharedMemoryUnregister")
    assert not fake.seen


def test_descriptors_are_those_of_the_proto_files() -> None:
    text = "".join(path.read_text() for path in (Path(__file__).parent.parent / "servekit/grpc").glob("*.proto"))
    for service in ("inference.GRPCInferenceService", "grpc.health.v1.Health"):
        for name, asked, answered, reads, writes in methods(service):
            stream = ["", "stream "]
            line = f"rpc {name}({stream[reads]}{asked.DESCRIPTOR.name}) returns ({stream[writes]}{answered.DESCRIPTOR.name});"
            assert line in text
            for field in (*asked.DESCRIPTOR.fields, *answered.DESCRIPTOR.fields):
                assert f" {field.name} = {field.number};" in text


# In front of a real server.


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with serving(tmp_path_factory.mktemp("front") / "log", f"http://127.0.0.1:{server.port}") as gateway:
        yield gateway


def test_the_real_server_answers(front: Gateway) -> None:
    assert front.call("ServerLive").live and front.call("ServerReady").ready
    assert front.call("ModelReady", {"name": "mnist"}).ready
    assert not front.call("ModelReady", {"name": "missing"}).ready
    metadata = front.call("ModelMetadata", {"name": "mnist"})
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("image", "FP32", [-1, 1, 28, 28])]
    assert front.call("ModelConfig", {"name": "mnist"}).config.name == "mnist"
    before = front.call("ModelStatistics", {"name": "linear"}).model_stats[0].inference_count
    answer = front.call("ModelInfer", request("linear"))
    outputs = dict(zip([each.name for each in answer.outputs], answer.raw_output_contents, strict=True))
    assert np.frombuffer(outputs["prediction"], "<f4").shape == (1,)
    assert front.call("ModelStatistics", {"name": "linear"}).model_stats[0].inference_count >= before
    assert {"linear", "mnist"} <= {each.name for each in front.call("RepositoryIndex").models}
    assert "statistics" in front.call("ServerMetadata").extensions


def test_the_real_server_refuses(front: Gateway) -> None:
    code, words = front.refusal("ModelInfer", request("missing"))
    assert code is StatusCode.NOT_FOUND
    assert "Request for unknown model: 'missing' is not found" in words
    assert front.refusal("ModelInfer", request("linear", model_version="77"))[0] is StatusCode.NOT_FOUND
    call = request("linear")
    call.inputs[0].shape[:] = [2**62, 4]
    assert front.refusal("ModelInfer", call)[0] is StatusCode.INVALID_ARGUMENT
    call.inputs[0].shape[:] = [2, 1]
    assert front.refusal("ModelInfer", call)[0] is StatusCode.INVALID_ARGUMENT
    assert front.refusal("RepositoryModelLoad", {"model_name": "linear"})[0] is StatusCode.UNAVAILABLE
    assert front.call("ServerReady").ready


# Where the process has been started with the keys of the server.


def test_strangers_are_turned_away_unread_and_the_server_has_the_last_word(fake: Fake, tmp_path: Path) -> None:
    known, other = "a-key-that-both-know", "a-key-of-the-server-only"

    def answers(seen: Seen) -> Any:
        if seen.headers.get("authorization") not in (f"Bearer {known}", f"Bearer {other}"):
            return json_answer({"error": "No key."}, 401)
        return infer_answer() if "infer" in seen.path else json_answer({})

    fake.answers = answers
    variables = {"SERVEKIT_INFERENCE_KEY": known, "SERVEKIT_MAX_BODY_BYTES": "2000000"}
    with serving(tmp_path / "log", fake.url, "--processes", "2", **variables) as gateway:
        refused = (StatusCode.UNAUTHENTICATED, "No key.")
        large = request(raw_input_contents=[bytes(5_000_000)])  # RESOURCE_EXHAUSTED if it were read
        for name, call in (("ModelInfer", large), ("ModelInfer", {}), ("RepositoryModelLoad", {})):
            assert gateway.refusal(name, call, wait_for_ready=True) == refused
        calls = gateway.stub("ModelStreamInfer")(iter([large]), timeout=10)
        with pytest.raises(grpc.RpcError, match="No key"):
            next(calls)
        assert [(seen.method, seen.path, seen.body) for seen in fake.seen] == [("GET", "/v2", b"")] * 4
        fake.seen.clear()
        for key, count in ((known, 1), (other, 2)):
            assert gateway.call("ModelInfer", request(), metadata=[("authorization", f"Bearer {key}")]).outputs
            assert len(fake.seen) == count
            fake.seen.clear()
        assert gateway.refusal("ServerLive") == refused and fake.seen[0].path == "/v2/health/live"  # the server's to say


# The process and its group.


def test_a_group_replaces_a_process_that_dies(fake: Fake, tmp_path: Path) -> None:
    asked = threading.Event()

    def slowly(seen: Seen) -> Any:
        if "infer" in seen.path:
            asked.set()
            time.sleep(1)
        return infer_answer()

    fake.answers = slowly
    with serving(tmp_path / "log", fake.url, "--processes", "2") as gateway:
        first, second = wait_for(lambda: len(children(gateway.process.pid)) == 2 and children(gateway.process.pid))
        os.kill(first, signal.SIGKILL)
        assert wait_for(lambda: len({*children(gateway.process.pid)} - {first, second}) == 1)
        stream = gateway.stub("ModelStreamInfer")(iter(queue.SimpleQueue().get, None), wait_for_ready=True)
        watch = gateway.call("Watch", wait_for_ready=True)
        assert next(watch).status == 1
        future = gateway.stub("ModelInfer").future(request(), wait_for_ready=True)
        assert asked.wait(20)
        gateway.process.terminate()
        assert [health.status for health in watch] == [2]
        assert future.result(timeout=20).outputs  # what is under way at the end is answered
        assert list(stream) == []  # and what waits for requests does not hold it up
        assert gateway.process.wait(timeout=10) == 0
    assert f"The gRPC process {first} ended with status -9; another one starts." in (tmp_path / "log").read_text()


def test_a_group_does_not_outlive_the_process_that_has_started_it(fake: Fake, tmp_path: Path) -> None:
    fake.answers = lambda seen: json_answer({})
    with serving(tmp_path / "log", fake.url, "--processes", "2") as gateway:
        assert gateway.call("ServerLive", wait_for_ready=True).live
        both = wait_for(lambda: len(children(gateway.process.pid)) == 2 and children(gateway.process.pid))
        gateway.process.kill()
        assert wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in both))


def test_a_process_that_cannot_start_ends_its_group(gateway: Gateway) -> None:
    command = command_of(f"127.0.0.1:{gateway.port}", "127.0.0.1", "1", "1000", "0")
    ended = subprocess.run(command, cwd=ROOT, stdin=subprocess.PIPE, capture_output=True, text=True, check=False)
    assert ended.returncode == GAVE_UP
    assert "cannot be listened on; choose another address." in ended.stderr
    reading, writing = pipe()
    assert asyncio.run(run_group([sys.executable, "-c", f"raise SystemExit({GAVE_UP})"], 2, reading)) is False
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("address", [("no.such.host.invalid", 0), ("192.0.2.1", 0)])
def test_an_address_that_cannot_be_reserved_is_refused(address: tuple[str, int]) -> None:
    with pytest.raises(StartupError, match="cannot be listened on"):
        reserve(*address)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind", "nowhere"], "--bind must be an address like 127.0.0.1:8001."),
        (["--bind", "127.0.0.1:99999"], "--bind must be an address"),
        (["--server", "https://127.0.0.1"], "--server must be the address of a server"),
        (["--server", "http://[::1"], "--server must be the address of a server"),
        (["--processes", "0"], "--processes must be a number above 0."),
    ],
)
def test_flags_that_make_no_sense_are_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grpc", *arguments]) == grpc_main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("servekit grpc cannot start: ") and words in error


def test_packages_that_are_missing_are_named() -> None:
    assert missing_packages(NEEDED) == []
    assert missing_packages({"no_such_package.part": "one", "json": "two", "no_such_module": "three"}) == ["one", "three"]


def test_a_process_holds_neither_networks_nor_arrays() -> None:
    program = "import sys, servekit.grpc.server; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'grpc'" in loaded
    assert not [name for name in ("flask", "numpy", "onnxruntime", "torch") if f"'{name}'" in loaded]


def test_an_address_of_version_6(fake: Fake, tmp_path: Path) -> None:
    fake.answers = lambda seen: json_answer({})
    with serving(tmp_path / "log", fake.url, bind="[::1]:0") as gateway:
        assert gateway.call("ServerLive").live


def test_a_taken_address_is_named_with_its_holder(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    for count in ("1", "2"):
        assert grpc_main(["--bind", f"127.0.0.1:{gateway.port}", "--processes", count]) == 1
        assert f"is in use by process {gateway.process.pid}" in capsys.readouterr().err
