"""One list of what can happen to a request, and every contract a row: each must say the same in its own dress.

What only one contract has is in its own tests, with its golden files; gRPC, which asks V2, is in `test_grpc`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from servekit.app import create_app
from servekit.config import Settings
from servekit.ext import repository_of
from tests import networks
from tests.versions import write_regressor

Dress = Callable[[int], Mapping[str, Any]]  # status -> what stands in an error beside its sentence
ROWS = [5.0, -1.0]
DOUBLED = [10.0, -2.0]
BUSY = "The server is too busy to take this request; try again later."


@dataclass(frozen=True)
class Contract:
    """Where a contract is asked, what it takes and gives, and how its errors look."""

    name: str
    path: str  # {model} is its name
    good: Any
    bad: Any
    answer: Any
    dress: Dress
    sentence: tuple[str, ...] = ("error",)  # where the sentence of an error stands
    versioned: str = ""  # the address of {model} in version {version}
    platform: str = "none"
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)  # {model} as in `path`


def plain(_: int) -> Mapping[str, Any]:
    return {}


def torchserve(status: int) -> Mapping[str, Any]:
    types = {400: "BadRequestException", 503: "ServiceUnavailableException", 504: "InternalServerException"}
    return {"code": status, "type": types.get(status)}


def mlflow(status: int) -> Mapping[str, Any]:
    return {"error_code": {400: "BAD_REQUEST", 413: "BAD_REQUEST", 503: "TEMPORARILY_UNAVAILABLE", 504: "INTERNAL_ERROR"}[status]}


def vertex(status: int) -> Mapping[str, Any]:
    return {"code": status, "status": _VERTEX[status]}


_VERTEX = {400: "INVALID_ARGUMENT", 413: "INVALID_ARGUMENT", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}


def tensor(*data: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "value", "datatype": "FP32", "shape": [2, 1], "data": list(data)}]}


OUTPUT = {"name": "prediction", "datatype": "FP32", "shape": [2], "data": DOUBLED}
CONTRACTS = [
    Contract(
        name="form",
        path="/{model}/predict",
        good="value=5",
        bad="value=five",
        answer={"input": 5.0, "prediction": 10.0},
        dress=plain,
        kind="application/x-www-form-urlencoded",
    ),
    Contract(
        name="TorchServe",
        path="/predictions/{model}",
        versioned="/predictions/{model}/{version}",
        good={"instances": ROWS},
        bad={"instances": ["five"]},
        answer={"predictions": DOUBLED},
        dress=torchserve,
        sentence=("message",),
    ),
    Contract(
        name="TensorFlow Serving and KServe V1",
        path="/v1/models/{model}:predict",
        versioned="/v1/models/{model}/versions/{version}:predict",
        good={"instances": ROWS},
        bad={"instances": ["five"]},
        answer={"predictions": DOUBLED},
        dress=plain,
    ),
    Contract(
        name="Open Inference V2",
        path="/v2/models/{model}/infer",
        versioned="/v2/models/{model}/versions/{version}/infer",
        good=tensor(*ROWS),
        bad=tensor(5.0),
        answer={"model_name": "linear", "model_version": "1", "outputs": [OUTPUT]},
        dress=plain,
    ),
    Contract(
        name="SageMaker",
        platform="sagemaker",
        path="/invocations",
        headers={"X-Amzn-SageMaker-Target-Model": "{model}"},
        good=ROWS,
        bad=["five"],
        answer=DOUBLED,
        dress=lambda status: {"code": status},
    ),
    Contract(
        name="MLflow",
        platform="mlflow",
        path="/invocations",
        good={"inputs": ROWS},
        bad={"inputs": ["five"]},
        answer={"predictions": DOUBLED},
        dress=mlflow,
        sentence=("message",),
    ),
    Contract(
        name="Vertex AI",
        platform="vertex",
        path="/v1/projects/p/locations/l/endpoints/e:predict",
        good={"instances": ROWS},
        bad={"instances": ["five"]},
        answer={"predictions": DOUBLED, "deployedModelId": ""},
        dress=vertex,
        sentence=("error", "message"),
    ),
    Contract(
        name="Azure ML",
        platform="azure",
        path="/score",
        good=ROWS,
        bad=["five"],
        answer=DOUBLED,
        dress=plain,
        sentence=("message",),
    ),
]
every_contract = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.name)


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one model, `linear`, that doubles numbers."""
    folder = tmp_path_factory.mktemp("doubling")
    write_regressor(folder, networks.Double())
    return folder


def serve(store: Path, contract: Contract, default_model: str = "linear", **settings: Any) -> Flask:
    chosen = Settings(model_store=store, platform=contract.platform, default_model=default_model, engine="torch")
    return create_app(Settings(**(vars(chosen) | settings)))


def ask(app: Flask, contract: Contract, body: Any, model: str = "linear", version: str = "") -> TestResponse:
    path = (contract.versioned if version else contract.path).format(model=model, version=version)
    headers = {name: value.format(model=model) for name, value in contract.headers.items()}
    data = body if isinstance(body, str) else json.dumps(body)
    return app.test_client().post(path, data=data, content_type=contract.kind, headers=headers)


def refusal(response: TestResponse, contract: Contract, status: int, dress: Dress | None = None) -> str:
    """Return the sentence of an error, after its status and everything else of it have been compared."""
    assert (response.status_code, response.content_type) == (status, "application/json")
    found = json.loads(response.data)
    *outer, last = contract.sentence
    for key in outer:
        assert list(found) == [key]
        found = found[key]
    sentence = found.pop(last)
    assert found == (dress or contract.dress)(status)
    return str(sentence)


@every_contract
def test_a_model_that_is_known_answers(doubling: Path, contract: Contract) -> None:
    app = serve(doubling, contract)
    response = ask(app, contract, contract.good)
    assert (response.status_code, response.content_type) == (200, "application/json")
    assert json.loads(response.data) == contract.answer
    if contract.versioned:
        assert ask(app, contract, contract.good, version="1").data == response.data


@every_contract
def test_bad_input_is_refused_with_a_sentence_that_does_not_repeat_it(doubling: Path, contract: Contract) -> None:
    app = serve(doubling, contract)
    for body in (contract.bad, "{" if contract.name != "form" else "valeu=5", ""):
        sentence = refusal(ask(app, contract, body), contract, 400)
        assert sentence and "five" not in sentence and "Traceback" not in sentence
    assert ask(app, contract, contract.good).status_code == 200


NAMED = [contract for contract in CONTRACTS if "{model}" in contract.path + "".join(contract.headers.values())]


@pytest.mark.parametrize("contract", NAMED[1:], ids=lambda contract: contract.name)
def test_an_unknown_model_is_not_found(doubling: Path, contract: Contract) -> None:
    dress = contract.dress
    if contract.name == "TorchServe":
        dress = {404: {"code": 404, "type": "ModelNotFoundException"}}.__getitem__
    assert refusal(ask(serve(doubling, contract), contract, contract.good, model="nothing"), contract, 404, dress)


@pytest.mark.parametrize("contract", [row for row in CONTRACTS if row.versioned], ids=lambda contract: contract.name)
def test_an_unknown_version_is_not_found(doubling: Path, contract: Contract) -> None:
    dress = contract.dress
    if contract.name == "TorchServe":
        dress = {404: {"code": 404, "type": "ModelVersionNotFoundException"}}.__getitem__
    assert "7" in refusal(ask(serve(doubling, contract), contract, contract.good, version="7"), contract, 404, dress)


@every_contract
def test_a_model_that_is_not_loaded_is_not_ready(doubling: Path, contract: Contract) -> None:
    app = serve(doubling, contract)
    repository_of(app).scale("linear", None, 0, 0)
    response = ask(app, contract, contract.good)
    assert refusal(response, contract, 503) and response.headers["Retry-After"] == "1"


@every_contract
def test_who_comes_when_too_many_wait_is_told_when_to_try_again(doubling: Path, contract: Contract) -> None:
    app = serve(doubling, contract, max_waiting=1)
    repository_of(app)._backlog.enter(1)
    response = ask(app, contract, contract.good)
    assert refusal(response, contract, 503).endswith(BUSY) and int(response.headers["Retry-After"]) >= 1
    repository_of(app)._backlog.leave(1)
    assert ask(app, contract, contract.good).status_code == 200


@every_contract
def test_who_is_late_is_told(doubling: Path, contract: Contract) -> None:
    response = ask(serve(doubling, contract, deadline_seconds=1e-9), contract, contract.good)
    assert "deadline" in refusal(response, contract, 504)


@every_contract
def test_a_body_over_the_limit_is_refused(doubling: Path, contract: Contract) -> None:
    body = contract.good if isinstance(contract.good, str) else json.dumps(contract.good)
    response = ask(serve(doubling, contract, max_body_bytes=200), contract, body + " " * 1000)
    dress = contract.dress
    if contract.name == "TorchServe":
        dress = {413: {"code": 413, "type": "PayloadTooLargeException"}}.__getitem__
    assert "at most 200 bytes" in refusal(response, contract, 413, dress)
