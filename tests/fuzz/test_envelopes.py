"""The envelopes of TorchServe's handlers: what a body holds reaches the handler, or the client hears what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servekit.engines.torchserve import TorchServeEngine
from servekit.errors import HandlerFailed
from servekit.ts.exchange import Parameter, row_of
from tests.fuzz.made import JSON, bounded, damaged
from tests.handler_archives import ask, request, start, write

ECHO = """
    def handle(data, context):
        return [row.decode("utf-8", "replace") if isinstance(row, bytes | bytearray) else row for row in data or ()]
    """
NAMES = ("body", "json", "kserve", "kservev2")
SEEDS = (
    b'{"instances": [1, {"b64": "aGk="}, {"x": {"y": [2]}}]}',
    b'{"id": "1", "inputs": [{"name": "input-0", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]}]}',
    b'{"data": [1]}',
)
KINDS = st.sampled_from(
    (None, "application/json", "text/plain", "application/octet-stream", "application/json; charset=latin-1")
)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TorchServeEngine]:
    return {name: start(write(tmp_path_factory.mktemp(name), handler=ECHO), service_envelope=name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@given(bodies=st.lists(st.tuples(damaged(SEEDS), KINDS), min_size=1, max_size=3))
def test_no_body_hurts_an_envelope(engines: dict[str, TorchServeEngine], name: str, bodies: list[tuple[bytes, Any]]) -> None:
    try:
        answers = ask(engines[name], *(request(body, kind) for body, kind in bodies))
    except HandlerFailed as error:
        assert error.status == 400
        return
    assert len(answers) == len(bodies)


@given(rows=st.lists(JSON, min_size=1, max_size=3))
def test_instances_reach_the_handler_and_come_back(engines: dict[str, TorchServeEngine], rows: list[Any]) -> None:
    (answer,) = ask(engines["kserve"], request(json.dumps({"instances": rows}).encode(), "application/json"))
    assert json.loads(answer.body) == {"predictions": rows}


@given(damaged(SEEDS), KINDS)
def test_a_row_is_json_text_or_bytes(body: bytes, kind: str | None) -> None:
    row = bounded(row_of, request(body, kind))
    assert set(row) == {"body"}
    if not isinstance(row["body"], bytearray):
        assert kind is not None and not kind.startswith("application/octet")
    two = request(body, kind)
    two.parameters = [Parameter("body", None, b"first"), *two.parameters]
    assert bytearray(body) == row_of(two, decode=False)["body"]


@pytest.mark.parametrize("name", ("json", "kserve", "kservev2"))
@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"instances":' * 5000 + b"1", b'{"instances": [' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"]}"]
)
def test_nesting_is_the_clients_fault_or_none(
    engines: dict[str, TorchServeEngine], name: str, body: bytes, tmp_path: Path
) -> None:
    for kind in (None, "application/json"):
        try:
            ask(engines[name], request(body, kind))
        except HandlerFailed as error:
            assert error.status == 400
