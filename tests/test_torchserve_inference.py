"""TorchServe's inference API: every path, what the handler gets, what its client gets."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from servekit.blueprints import torchserve_inference
from servekit.desired import Entry
from servekit.engines.torchserve import HandlerRequest, HandlerResponse
from servekit.errors import DeadlineExceeded, HandlerFailed, OutOfMemory, Overloaded
from servekit.keys import JUDGES
from tests.fakes_torchserve import Behave, FakeRepository, echo, error_of, make_app

OPTIONS = {"response_timeout": 7, "loaded_at_startup": True}
OPEN = "disable_token_authorization=true\n"
NOT_FOUND = "Requested resource is not found, please refer to API document."
FAILED = "The server failed; its log says why, under the x-request-id of this answer."
FORM = "application/x-www-form-urlencoded"
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def serve(folder: Path, text: str = OPEN, behave: Behave = echo) -> tuple[FlaskClient, FakeRepository]:
    """Return a client of the API, and the repository behind it: noop 1.0 and 2.0, and an idle model."""
    repository = FakeRepository(folder, behave)
    for name, version, workers in (("noop", "1.0", 1), ("noop", "2.0", 1), ("idle", "1.0", 0)):
        repository.register(Entry(name, version, "torchserve", f"{name}.mar", str(folder), workers, workers, OPTIONS))
    return make_app(torchserve_inference, repository, text, folder).test_client(), repository


def answer_of(response: Any) -> dict[str, Any]:
    assert response.status_code == 200
    return json.loads(response.data)


def test_ping_answers_every_method_with_the_headers_of_the_contract(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    for method in [*METHODS, "OPTIONS"]:
        response = client.open("/ping/", method=method)
        assert (response.status_code, response.data) == (200, b'{\n  "status": "Healthy"\n}\n')
    assert dict(response.headers) == {
        "Content-Type": "application/json",
        "Pragma": "no-cache",
        "Cache-Control": "no-cache; no-store, must-revalidate, private",
        "Expires": "Thu, 01 Jan 1970 00:00:00 UTC",
        "Connection": "keep-alive",
        "Content-Length": "26",
    }


def test_ping_is_unhealthy_when_no_worker_could_load_a_model(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    repository.is_loading = True
    assert client.get("/ping").status_code == 200
    repository.errors = {"noop/1.0": "it failed"}
    response = client.get("/ping")
    assert (response.status_code, response.get_json()) == (500, {"status": "Unhealthy"})


@pytest.mark.parametrize("method", METHODS)
def test_a_prediction_is_the_handlers_answer(tmp_path: Path, method: str) -> None:
    client, repository = serve(tmp_path)
    answer = answer_of(client.open("/predictions/noop", method=method, data=b"x", content_type="text/plain; charset=a"))
    assert answer["parameters"] == {"body": ["text/plain", "x"]}
    assert answer["headers"]["explain"] == "False"
    assert answer["headers"]["url_path"] == ""
    assert 6 < repository.model.deadlines[0] <= 7


def test_the_handler_sees_the_rest_of_the_path_and_the_headers_but_not_the_key(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    sent = {"X-Some-Thing": "1", "Authorization": "Bearer secret", "ts_request_sequence_id": "9"}
    headers = answer_of(client.post("/predictions/noop/2.0/a/b/", headers=sent, content_type="text/csv"))["headers"]
    assert headers["url_path"] == "a/b"
    assert headers["X-Some-Thing"] == "1"
    assert headers["Content-Type"] == "text/csv"
    assert headers["ts_request_sequence_id"] == "9"
    assert "secret" not in str(headers)


def test_a_body_without_content_type_may_be_empty(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    assert answer_of(client.get("/predictions/noop"))["parameters"] == {"body": [None, ""]}


def test_fields_of_forms_are_parameters_and_the_last_one_counts(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    form = answer_of(client.post("/predictions/noop?q=1", data="x=1&x=2&y=%41+b", content_type=FORM))
    assert form["parameters"] == {"x": [None, "2"], "y": [None, "A b"]}
    utf_8 = answer_of(client.post("/predictions/noop", data="%C3%A4=%C3%A4&b=%FF&c=\xe4", content_type=FORM + "; charset=utf-8"))
    assert utf_8["parameters"] == {"\xe4": [None, "\xc3\xa4"], "b": [None, "\xff"], "c": [None, "\xc3\xa4"]}
    for data, fields in {"5.0": [], '{"a":1}': [], "a=&b": ["a"], "a&b=": ["a", "b"], "": [], "a=1&": ["a"]}.items():
        answer = answer_of(client.post("/predictions/noop", data=data, content_type=FORM))
        assert list(answer["parameters"]) == fields
    query = answer_of(client.post("/noop/predict?a=%C3%A4&b", data="x=1", content_type=FORM))
    assert query["parameters"] == {"a": [None, "\xc3\xa4"], "b": [None, ""], "x": [None, "1"]}
    parts = {"a": "text", "b": (io.BytesIO(b"\xff"), "b.bin", "image/png"), "c": (io.BytesIO(b"c"), "c")}
    answer = answer_of(client.post("/predictions/noop", data=parts, content_type="multipart/form-data"))
    assert answer["parameters"]["a"] == [None, "text"]
    assert answer["parameters"]["b"] == ["image/png", "\xff"]
    part = b'--x\r\nContent-Disposition: form-data; name="d"; filename="d"\r\n\r\nd\r\n--x--\r\n'
    answer = answer_of(client.post("/predictions/noop", data=part, content_type="multipart/form-data; boundary=x"))
    assert answer["parameters"] == {"d": ["application/octet-stream", "d"]}
    answer = answer_of(client.post("/predictions/noop", data=b"x", content_type="multipart/form-data"))
    assert answer["parameters"] == {"body": ["multipart/form-data", "x"]}


def test_explanations_say_so(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    for path in ("/explanations/noop", "/explanations/noop/1.0", "/v1/models/noop:explain", "/v2/models/noop/explain"):
        assert answer_of(client.post(path))["headers"]["explain"] == "True"


def test_other_paths_lead_to_the_same_model(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    for path in ("/v1/models/noop:predict", "/v2/models/noop/infer"):
        assert answer_of(client.post(path + "?z=1"))["parameters"] == {"body": [None, ""]}
    for path in ("/models/noop/invoke", "/noop/predict", "/noop/1.0/predict"):
        assert answer_of(client.post(path + "?z=1"))["parameters"] == {"z": [None, "1"], "body": [None, ""]}


def test_invocations_name_the_model_or_mean_the_only_one(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    assert error_of(client.post("/invocations"))[1:] == ("BadRequestException", "Parameter model_name is required.")
    assert "model_name" in answer_of(client.post("/invocations?model_name=noop"))["parameters"]
    assert "model_name" in answer_of(client.post("/invocations", data={"model_name": "noop"}))["parameters"]
    repository.unregister("idle")
    assert answer_of(client.post("/invocations"))["parameters"] == {"body": [None, ""]}


@pytest.mark.parametrize(
    ("path", "status", "kind", "message"),
    [
        ("/predictions", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/predictions/", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/predictions//noop", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/nowhere", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/v1/models/noop:other", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/v2", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/v2/health/live", 404, "ResourceNotFoundException", NOT_FOUND),
        ("/", 405, "MethodNotAllowedException", NOT_FOUND.replace("resource is not found", "method is not allowed")),
        ("/predictions/X", 404, "ModelNotFoundException", "Model not found: X"),
        ("/models/X/invoke", 404, "ModelNotFoundException", "Model not found: X"),
        ("/wfpredict/x", 404, "WorkflowNotFoundException", "Workflow not found: x"),
        (
            "/predictions/noop/1.3.1",
            404,
            "ModelVersionNotFoundException",
            "Model version: 1.3.1 does not exist for model: noop",
        ),
    ],
)
def test_what_is_not_there_is_refused_as_by_torchserve(
    tmp_path: Path, path: str, status: int, kind: str, message: str
) -> None:
    assert error_of(serve(tmp_path)[0].get(path)) == (status, kind, message)


def test_a_model_without_workers_answers_503(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    rest = "has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence "
    rest += "inference, please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
    kind = "ServiceUnavailableException"
    assert error_of(client.get("/predictions/idle")) == (503, kind, f'Model "idle" {rest}')
    assert error_of(client.get("/predictions/idle/1.0")) == (503, kind, f'Model "idle" Version 1.0" {rest}')


def test_a_model_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    repository.register(Entry("mnist", "1", "servekit", "mnist/1", str(tmp_path)))
    assert error_of(client.get("/predictions/mnist"))[0] == 400


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (HandlerFailed("Prediction failed", 503), (503, "InternalServerException", "Prediction failed")),
        (HandlerFailed("my own", 599), (599, "InternalServerException", "my own")),
        (DeadlineExceeded("late"), (500, "InternalServerException", "Worker died.")),
        (OutOfMemory("Send less."), (507, "OutOfMemoryError", "Send less.")),
        (MemoryError("secret"), (507, "OutOfMemoryError", "Out of resources")),
        (KeyError("secret"), (500, "InternalServerException", FAILED)),
    ],
)
def test_failures_have_torchserves_dress(tmp_path: Path, error: Exception, expected: tuple[int, str, str]) -> None:
    def fail(request: HandlerRequest) -> HandlerResponse:
        raise error

    assert error_of(serve(tmp_path, behave=fail)[0].get("/predictions/noop")) == expected


def test_a_full_queue_is_told_from_a_missing_worker(tmp_path: Path) -> None:
    def fail(request: HandlerRequest) -> HandlerResponse:
        error = Overloaded("The server is too busy to take this request; try again later.")
        error.retry_after = 4
        raise error

    response = serve(tmp_path, behave=fail)[0].get("/predictions/noop")
    assert error_of(response)[::2] == (503, "The server is too busy to take this request; try again later.")
    assert response.headers["Retry-After"] == "4"


def test_the_handler_decides_status_headers_and_type(tmp_path: Path) -> None:
    own = [("Content-Length", "3"), ("X-Request-Id", "mine"), ("Server", "me"), ("Date", "never")]
    made = [
        HandlerResponse(b"Invalid response", 507, "My reason", [("dummy", "1"), *own], None),
        HandlerResponse(b"x", 200, "", [("bad\n", "1"), ("worse", "1\r\nx: y"), ("content-type", "text/css")], "text/x"),
        HandlerResponse(b"", 42, "\n", [], None),
    ]
    client, _ = serve(tmp_path, behave=lambda request: made.pop(0))
    response = client.get("/predictions/noop")
    assert (response.status, response.data) == ("507 My reason", b"Invalid response")
    assert "Content-Type" not in response.headers
    assert (response.headers["dummy"], response.headers["Content-Length"]) == ("1", "16")
    assert not {"X-Request-Id", "Server", "Date"} & set(response.headers.keys())  # they are the server's
    assert response.headers["Connection"] == "close"
    response = client.get("/predictions/noop")
    assert (response.status, response.headers.getlist("Content-Type")) == ("200 OK", ["text/css"])
    assert not {"bad", "worse", "x"} & set(response.headers.keys())
    assert client.get("/predictions/noop").status == "500 Internal Server Error"


def test_a_body_that_is_too_large_is_refused_in_json(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, OPEN + "max_request_size=2000")
    message = "The request is too large; at most 2000 bytes and 1000 files or fields are read."
    expected = (413, "PayloadTooLargeException", message)
    for path in ("/predictions/noop", "/predictions/X", "/ping"):
        assert error_of(client.post(path, data=b"x" * 2001)) == expected
    stream = {"input_stream": io.BytesIO(b"x" * 2001), "environ_overrides": {"wsgi.input_terminated": True}}
    assert error_of(client.post("/predictions/noop", **stream)) == expected
    assert client.post("/predictions/noop", data=b"x" * 2000).status_code == 200
    form = "&" * 1000 + "x="
    refused = client.post("/predictions/noop", data=form, content_type=FORM)
    assert error_of(refused)[:2] == (413, "PayloadTooLargeException")


def test_a_damaged_form_is_refused(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    response = client.post("/predictions/noop", data=b"--x\r\nbroken", content_type="multipart/form-data; boundary=x")
    assert error_of(response)[:2] == (400, "BadRequestException")


def test_the_open_inference_protocol_has_probes_when_it_is_on(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, OPEN + "ts_open_inference_protocol=oip")
    assert answer_of(client.get("/v2/health/live")) == {"live": True}
    assert answer_of(client.get("/v2/health/ready")) == {"ready": True}
    server = {"name": "Torchserve", "version": "0.12.0", "extenstion": ["kserve", "kubeflow"]}
    assert answer_of(client.get("/v2")) == server
    assert error_of(client.get("/v2/health/other"))[0] == 404
    response = client.get("/v2/models/noop/versions/1/infer")
    assert (response.status_code, response.get_json()) == (501, {"error": "Model versioning is not yet supported."})


def test_every_path_asks_for_the_inference_key(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, "")
    key = json.loads((tmp_path / "key_file.json").read_text())
    failure = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
    expected = (400, "InvalidKeyException", failure)
    for path in ("/ping", "/predictions/noop", "/nowhere", "/models/noop/invoke", "/predictions/noop?y=/token"):
        assert error_of(client.get(path)) == expected
        assert error_of(client.get(path, headers={"Authorization": f"Bearer {key['management']['key']}"})) == expected
        assert error_of(client.get(path, headers={"Authorization": f"bearer {key['inference']['key']}"})) == expected
    holds = {"Authorization": f"Bearer  {key['inference']['key']}"}
    assert client.get("/ping", headers=holds).status_code == 200
    assert client.get("/ping/more", headers=holds).status_code == 200
    assert client.get("/nowhere", headers=holds).status_code == 404
    assert error_of(client.get("/"))[0] == 405
    assert client.options("/").status_code == client.get("/api-description").status_code == 200


def test_the_key_is_asked_for_before_a_body_that_is_too_large(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, "max_request_size=2000")
    key = json.loads((tmp_path / "key_file.json").read_text())["inference"]["key"]
    assert error_of(client.post("/predictions/noop", data=b"x" * 2001))[1] == "InvalidKeyException"
    answer = client.post("/predictions/noop", data=b"x" * 2001, headers={"Authorization": f"Bearer {key}"})
    assert error_of(answer)[1] == "PayloadTooLargeException"
    judges = client.application.extensions[JUDGES]
    assert judges.keys() == {"8080", "8081"}  # those of the contract by default; its metrics need no key
    assert all(knows(f"Bearer {key}") and not knows(f"Bearer {key[:-1]}") for knows in judges.values())


def test_other_sites_may_read_the_answers_if_the_properties_say_so(tmp_path: Path) -> None:
    text = OPEN + "cors_allowed_origin=https://a.example\ncors_allowed_methods=GET, POST\ncors_allowed_headers=X-A"
    client, _ = serve(tmp_path, text)
    for path in ("/ping", "/nowhere"):
        headers = client.get(path).headers
        assert headers["Access-Control-Allow-Origin"] == "https://a.example"
        assert headers["Access-Control-Allow-Methods"] == "GET, POST"
        assert headers["Access-Control-Allow-Headers"] == "X-A"


def test_a_stream_ends_when_its_client_goes(tmp_path: Path) -> None:
    ended = []

    def speak(request: HandlerRequest) -> HandlerResponse:
        for part in (b"a", b"b"):
            request.send(part)
        return echo(request)

    client, repository = serve(tmp_path, behave=speak)
    repository.model.when_streamed = lambda: ended.append(True)
    response = client.post("/predictions/noop", buffered=False)
    pieces = response.iter_encoded()
    assert next(pieces) == b"a" and not ended
    response.close()
    assert ended == [True]
