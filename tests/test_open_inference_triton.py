"""A model of Triton's layout, asked as Triton's examples ask theirs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from servekit.app import create_app
from servekit.config import Settings
from tests.triton_models import SIMPLE, simple, write

LENGTH = "Inference-Header-Content-Length"
INFER = "/v2/models/simple/infer"


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    write(tmp_path, "simple", SIMPLE, onnx=simple())
    return create_app(Settings(model_store=tmp_path, management=True)).test_client()


def tensors(rows: int = 1, **members: Any) -> dict[str, Any]:
    """Return a request whose two inputs are binary."""
    given = {"shape": [rows, 16], "datatype": "INT32", "parameters": {"binary_data_size": rows * 64}} | members
    head = json.dumps({"inputs": [{"name": name} | given for name in ("INPUT0", "INPUT1")], "id": "1"}).encode()
    numbers = np.arange(rows * 16, dtype="<i4")
    return {"data": head + numbers.tobytes() + np.ones_like(numbers).tobytes(), "headers": {LENGTH: str(len(head))}}


def test_sum_and_difference(client: FlaskClient) -> None:
    for rows in (1, 8):
        answer = client.post(INFER, **tensors(rows)).json
        assert [output["name"] for output in answer["outputs"]] == ["OUTPUT0", "OUTPUT1"]
        assert answer["outputs"][0]["shape"] == [rows, 16]
        assert answer["outputs"][0]["data"] == list(range(1, rows * 16 + 1))
        assert answer["outputs"][1]["data"] == list(range(-1, rows * 16 - 1))


def test_its_metadata_and_config_are_those_of_its_file(client: FlaskClient) -> None:
    metadata = client.get("/v2/models/simple").json
    assert metadata["platform"] == "onnxruntime_onnx" and metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": name, "datatype": "INT32", "shape": [-1, 16]} for name in ("INPUT0", "INPUT1")]
    config = client.get("/v2/models/simple/config").json
    assert config["max_batch_size"] == 8 and config["input"][0]["dims"] == [16]


def test_what_does_not_fit_is_said_in_tritons_words(client: FlaskClient) -> None:
    wrong = (
        (tensors(9), "inference request batch-size must be <= 8 for 'simple'"),
        (tensors(datatype="FP32"), "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'"),
        (tensors(shape=[1, 15]), "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,15]."),
    )
    for sent, text in wrong:
        answer = client.post(INFER, **sent)
        assert answer.status_code == 400 and answer.json["error"].startswith(text)


def test_a_load_may_bring_another_configuration(client: FlaskClient) -> None:
    def load(config: str | None) -> Any:
        parameters = {} if config is None else {"parameters": {"config": config}}
        return client.post("/v2/repository/models/simple/load", data=json.dumps(parameters))

    tensor = {"data_type": "TYPE_INT32", "dims": [16]}
    names = {"input": ("INPUT0", "INPUT1"), "output": ("OUTPUT0", "OUTPUT1")}
    config: dict[str, Any] = {kind: [{"name": name} | tensor for name in found] for kind, found in names.items()}
    config |= {"platform": "onnxruntime_onnx", "max_batch_size": "16"}
    assert load(json.dumps(config)).status_code == 200
    assert client.get("/v2/models/simple/config").json["max_batch_size"] == 16
    assert client.post(INFER, **tensors(16)).status_code == 200
    for none in ("no JSON", "[]", '{"max_batch_size": "many"}', '{"max_batch_sise": 1}'):
        answer = load(none)
        assert answer.status_code == 400 and answer.json["error"].startswith("The config cannot be read; send Triton's Model")
    assert load(json.dumps(config | {"backend": "other"})).status_code == 500
    assert client.post(INFER, **tensors(16)).status_code == 200  # what was served goes on
    assert load(None).status_code == 200
    assert client.post(INFER, **tensors(16)).status_code == 400
