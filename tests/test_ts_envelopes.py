"""Service envelopes: what other servers' clients send, as a handler sees it, and back."""

import json
from pathlib import Path
from typing import Any

import pytest

from servekit.engines.torchserve import TorchServeEngine
from servekit.errors import HandlerFailed
from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope
from tests.handler_archives import ask, request, start, write

ECHO = """
    def handle(data, context):
        if data is None:
            return None
        if context.get_request_header(0, "describe") == "True":
            return ["described"]
        return [row.decode() if isinstance(row, bytes | bytearray) else row for row in data]
    """


def enveloped(folder: Path, name: str, handler: str = ECHO) -> TorchServeEngine:
    return start(write(folder, handler=handler), service_envelope=name)


def post(engine: TorchServeEngine, *bodies: Any, **headers: str) -> list[Any]:
    requests = [request(json.dumps(body).encode(), "application/json", headers=headers) for body in bodies]
    return [json.loads(answer.body) for answer in ask(engine, *requests)]


def test_body(tmp_path: Path) -> None:
    engine = enveloped(tmp_path, "body")
    assert post(engine, {"a": 1}, [2]) == [{"a": 1}, [2]]


def test_json_joins_the_instances_of_all_requests(tmp_path: Path) -> None:
    engine = enveloped(tmp_path, "json")
    first, second = {"instances": [1, {"b64": "aGk="}]}, {"instances": [{"x": {"y": 2}}]}
    assert post(engine, first) == [{"predictions": [1, "hi"]}]
    assert post(engine, first, second) == [{"predictions": [1, "hi"]}, {"predictions": [{"x": {"y": 2}}]}]


def test_kserve(tmp_path: Path) -> None:
    engine = enveloped(tmp_path, "kserve")
    assert post(engine, {"instances": [[1], [2]]}) == [{"predictions": [[1], [2]]}]
    assert post(engine, {"instances": [1]}, {"instances": [2, 3]}) == [{"predictions": [1]}, {"predictions": [2, 3]}]
    assert post(engine, {"instances": [1]}, explain="True") == [{"explanations": [1]}]
    (answer,) = ask(engine, request(b'{"instances": [5]}'))  # without a content type
    assert json.loads(answer.body) == {"predictions": [5]}
    assert ask(engine, request(headers={"describe": "True"}))[0].body == b"described"


def test_kserve_v2(tmp_path: Path) -> None:
    handler = "def handle(data, context):\n    return data and [tensor['data'] for tensor in data]"
    engine = enveloped(tmp_path, "kservev2", handler)
    one = {"name": "input-0", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]}
    text = {"name": "words", "shape": [1], "datatype": "BYTES", "data": ["hi"]}
    named = {"model_name": "m", "model_version": "1.0"}
    flat = {"name": "input-0", "datatype": "INT64", "data": [1, 2, 3, 4], "shape": [4]}
    words = {"name": "words", "datatype": "BYTES", "data": ["hi"], "shape": [1]}
    assert post(engine, {"id": "mine", "inputs": [one, text]}) == [{"id": "mine", **named, "outputs": [flat, words]}]
    answers = post(engine, {"inputs": [one]}, {"id": "b", "inputs": [text]})
    assert answers == [{"id": "id-0", **named, "outputs": [flat]}, {"id": "b", **named, "outputs": [words]}]


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("kserve", [1], "Send a JSON object."),
        ("json", {"other": 1}, "Send a JSON object with a list 'instances'."),
        ("kservev2", {"inputs": [{"name": "x"}]}, "Each of 'inputs' needs name, shape, datatype and data."),
        (
            "kservev2",
            {"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [1]}]},
            "The data of an input do not have its shape.",
        ),
    ],
)
def test_what_is_in_no_envelope_is_refused(tmp_path: Path, name: str, body: Any, message: str) -> None:
    with pytest.raises(HandlerFailed) as caught:
        post(enveloped(tmp_path, name), body)
    assert (caught.value.status, str(caught.value)) == (400, message)
    with pytest.raises(HandlerFailed, match=r"^Send a JSON object.$"):
        ask(enveloped(tmp_path, "kserve"), request(b"no json", "application/json"))


def test_a_handler_that_returns_too_few_rows_is_found_out(tmp_path: Path) -> None:
    folder = write(tmp_path, handler="def handle(data, context):\n    return data and data[:1]")
    engine = start(folder, service_envelope="kserve")
    with pytest.raises(HandlerFailed, match="Prediction failed") as failed:
        post(engine, {"instances": [1]}, {"instances": [2]})
    assert "the handler returned 1 rows for 2" in str(failed.value.__cause__)


def test_envelopes_of_ones_own() -> None:
    class Wrapped(BaseEnvelope):
        def parse_input(self, data: Any) -> Any:
            return data[0]

        def format_output(self, data: Any) -> Any:
            return [data]

    assert Wrapped(lambda data, context: data * 2).handle([4], None) == [8]
    assert Wrapped(lambda data, context: data).handle([], None) == []
