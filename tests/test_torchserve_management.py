"""TorchServe's management API: every verb with its sentences, through a repository in memory."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from servekit.blueprints import torchserve_management
from servekit.engines.torchserve import HandlerRequest, HandlerResponse
from servekit.errors import ModelLoadError, ModelNotFound, OutOfMemory, VersionExists, VersionNotFound, WorkersFailed
from servekit.torchserve.registry import MAX_LATER
from tests.fakes_torchserve import STARTED, Behave, FakeRepository, echo, error_of, make_app, make_archive

OPEN = "disable_token_authorization=true\nenable_model_api=true\n"
NO_METHOD = "Requested method is not allowed, please refer to API document."


def serve(folder: Path, text: str = OPEN, behave: Behave = echo) -> tuple[FlaskClient, FakeRepository]:
    """Return a client of the API, and the repository behind it; noop 1.0 and 1.11 and a broken one are in the store."""
    store = folder / "store"
    store.mkdir()
    make_archive(store / "noop.mar")
    make_archive(store / "noop_v2.mar", version="1.11")
    make_archive(store / "broken.mar", "broken", handler="broken")
    repository = FakeRepository(folder / "unpacked", behave)
    return make_app(torchserve_management, repository, text, store).test_client(), repository


def status_of(response: Any, code: int = 200) -> str:
    assert response.status_code == code, response.data
    body = response.get_json()
    assert list(body) == ["status"]
    return str(body["status"])


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_model_is_registered_without_workers(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    response = client.post("/models?url=noop.mar")
    assert response.data == (
        b'{\n  "status": "Model \\"noop\\" Version: 1.0 registered with 0 initial workers. '
        b'Use scale workers API to add workers for the model."\n}\n'
    )
    entry = repository.find("noop")
    assert (entry.format, entry.source, entry.workers) == ("torchserve", "noop.mar", 0)
    assert (Path(entry.folder) / "service.py").is_file()
    message = "Model version 1.0 is already registered for model noop"
    assert error_of(client.post("/models?url=noop.mar")) == (409, "ConflictStatusException", message)
    assert len(repository.dropped) == 1


def test_a_model_is_registered_with_workers_now_or_later(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    response = client.post("/models?url=noop.mar&initial_workers=2")
    assert status_of(response) == 'Model "noop" Version: 1.0 registered with 2 initial workers'
    response = client.post("/models?url=noop_v2.mar&initial_workers=1&synchronous=false")
    assert status_of(response, 202) == "Processing worker updates..."
    wait_for(lambda: repository.find("noop", "1.11").workers == 1)
    assert repository.desired().defaults == {"noop": "1.0"}


def test_what_cannot_be_loaded_is_not_registered(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    message = "Failed to start workers for model broken version: 1.0"
    response = client.post("/models?url=broken.mar&initial_workers=1")
    assert error_of(response) == (500, "InternalServerException", message)
    repository.failure = OutOfMemory("too large")
    response = client.post("/models?url=broken.mar&initial_workers=1")
    assert error_of(response) == (507, "OutOfMemoryError", message)
    repository.failure = ModelLoadError("it is broken")
    assert status_of(client.post("/models?url=broken.mar&initial_workers=1&synchronous=false"), 202)
    wait_for(lambda: not repository.desired().models)
    response = client.post("/models?url=noop.mar&initial_workers=1&startup_timeout=0")
    assert error_of(response)[::2] == (500, "Failed to start workers for model noop version: 1.0")
    assert not repository.desired().models


def test_changes_that_go_on_after_their_answer_are_bounded(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar")
    end = threading.Event()
    repository.before_trying = end.wait
    for _ in range(MAX_LATER):
        assert status_of(client.put("/models/noop"), 202)
    try:
        later = client.post("/models?url=noop_v2.mar&initial_workers=1&synchronous=false")
        for response in (client.put("/models/noop"), later):
            assert error_of(response)[:2] == (503, "ServiceUnavailableException")
        assert list(repository.desired().models["noop"]) == ["1.0"]
    finally:
        end.set()
    wait_for(lambda: client.put("/models/noop").status_code == 202)


@pytest.mark.parametrize(
    ("query", "status", "kind", "message"),
    [
        ("", 400, "BadRequestException", "Parameter url is required."),
        ("?url=", 404, "ModelNotFoundException", "empty url"),
        (f"?url={'x' * 8193}", 400, "BadRequestException", "A url has at most 8192 characters."),
        ("?url=nope.mar", 404, "ModelNotFoundException", "Model not found at: nope.mar"),
        ("?url=../x.mar", 404, "ModelNotFoundException", "Relative path is not allowed in url: ../x.mar"),
        ("?url=noop.mar&runtime=ruby", 400, "BadRequestException", "Invalid RuntimeType value: ruby"),
        (
            "?url=ftp://a/b.mar",
            404,
            "ModelNotFoundException",
            "Model not found at: ftp://a/b.mar",
        ),
        (
            "?url=http://127.0.0.1:1/noop.mar",
            500,
            "InternalServerException",
            "Model file already exists noop.mar",
        ),
        (
            "?url=http://127.0.0.1:1/x.mar",
            400,
            "DownloadArchiveException",
            "Failed to download archive from: http://127.0.0.1:1/x.mar",
        ),
    ],
)
def test_registrations_are_refused_as_by_torchserve(
    tmp_path: Path, query: str, status: int, kind: str, message: str
) -> None:
    client, repository = serve(tmp_path)
    assert error_of(client.post(f"/models{query}")) == (status, kind, message)
    assert not repository.desired().models


def test_parameters_may_come_as_json(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    response = client.post("/models", json={"url": "noop.mar", "model_name": "other", "batch_size": 4, "initial_workers": "1"})
    assert status_of(response) == 'Model "other" Version: 1.0 registered with 1 initial workers'
    options = repository.find("other").options
    assert (options["batch_size"], options["max_batch_delay"]) == (4, 100)
    assert error_of(client.post("/models?url=noop.mar", json={}))[2] == "Parameter url is required."
    for body in ("{bad", "[]"):
        response = client.post("/models", data=body, content_type="application/json")
        assert error_of(response)[:2] == (400, "BadRequestException")


def test_numbers_that_are_none_count_as_not_given(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    query = "batch_size=x&max_batch_delay=&response_timeout=99999999999&initial_workers=1.5&synchronous=yes"
    assert "0 initial workers" in status_of(client.post(f"/models?url=noop.mar&{query}"))
    options = repository.find("noop").options
    assert [options[name] for name in ("batch_size", "max_batch_delay", "response_timeout")] == [1, 100, 120]


def test_models_are_scaled_now_or_later(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar")
    assert status_of(client.put("/models/noop?min_worker=3&timeout=x"), 202) == "Processing worker updates..."
    wait_for(lambda: repository.find("noop").workers == 3)
    response = client.put("/models/noop?min_worker=2&max_worker=5&synchronous=true")
    assert status_of(response) == "Workers scaled to 2 for model: noop"
    assert (repository.find("noop").workers, repository.find("noop").max_workers) == (2, 5)
    response = client.put("/models/noop/1.0?min_worker=0&synchronous=TRUE")
    assert status_of(response) == "Workers scaled to 0 for model: noop, version: 1.0"
    assert status_of(client.put("/models/noop?synchronous=true")) == "Workers scaled to 1 for model: noop"


def test_scaling_is_refused_as_by_torchserve(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    client.post("/models?url=noop.mar")
    client.post("/models?url=broken.mar")
    for query in ("min_worker=2&max_worker=1", "max_worker=-1"):
        refused = error_of(client.put(f"/models/noop?{query}"))
        assert refused == (400, "BadRequestException", "max_worker cannot be less than min_worker.")
    assert error_of(client.put("/models/noop?min_worker=-1"))[0] == 500
    assert error_of(client.put("/models/X")) == (404, "ModelNotFoundException", "Model not found: X")
    message = "Model version: 9 does not exist for model: noop"
    assert error_of(client.put("/models/noop/9")) == (404, "ModelVersionNotFoundException", message)
    message = "Failed to start workers for model broken version: "
    assert error_of(client.put("/models/broken?synchronous=true"))[::2] == (500, message + "null")
    assert error_of(client.put("/models/broken/1.0?synchronous=true"))[::2] == (500, message + "1.0")


def test_a_description_has_the_fields_of_the_contract_in_their_order(tmp_path: Path) -> None:
    client, repository = serve(tmp_path, OPEN + "job_queue_size=10")
    client.post("/models?url=noop.mar&initial_workers=2&batch_size=4&max_batch_delay=50")
    described = client.get("/models/noop").get_json()
    started = time.strftime("%Y-%m-%dT%H:%M:%S.801Z", time.localtime(STARTED))
    worker = {"startTime": started, "status": "READY", "memoryUsage": 0}
    expected = {
        "modelName": "noop",
        "modelVersion": "1.0",
        "modelUrl": "noop.mar",
        "runtime": "python",
        "minWorkers": 2,
        "maxWorkers": 2,
        "batchSize": 4,
        "maxBatchDelay": 50,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "maxRetryTimeoutInSec": 300,
        "clientTimeoutInMills": 0,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": "cpu",
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": False,
        "workers": [
            {"id": "9000", **worker, "pid": 10**9 + 1, "gpu": False, "gpuUsage": "N/A"},
            {"id": "9001", **worker, "pid": 10**9 + 2, "gpu": False, "gpuUsage": "N/A"},
        ],
        "jobQueueStatus": {"remainingCapacity": 7, "pendingRequests": 3},
    }
    assert json.dumps(described) == json.dumps([expected])
    repository.errors["noop/1.0"] = "Traceback: it failed"
    repository.is_loading, repository.model.device = True, "cuda"
    described = client.get("/models/noop").get_json()[0]
    assert described["lastError"] == "Traceback: it failed"
    assert (described["deviceType"], described["workers"][0]["gpu"]) == ("gpu", True)
    assert described["workers"][0]["status"] == "UNLOADING"


def test_descriptions_are_of_a_version_or_of_all(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    client.post("/models?url=noop.mar")
    client.post("/models?url=noop_v2.mar")
    for path, versions in {"": ["1.0"], "/1.11": ["1.11"], "/all/": ["1.0", "1.11"]}.items():
        described = client.get(f"/models/noop{path}").get_json()
        assert [each["modelVersion"] for each in described] == versions
        assert described[0]["workers"] == []
    assert error_of(client.get("/models/X/all")) == (404, "ModelNotFoundException", "Model not found: X")
    message = "Model version: 9 does not exist for model: noop"
    assert error_of(client.get("/models/noop/9")) == (404, "ModelVersionNotFoundException", message)


def test_a_model_describes_itself_when_it_is_asked(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar")
    message = 'Model "noop" has no worker to serve describe request. Please use scale workers API to add workers.'
    refused = error_of(client.get("/models/noop?customized=true"))
    assert refused == (503, "ServiceUnavailableException", message)
    client.put("/models/noop?synchronous=true")
    own = client.get("/models/noop?customized=true").get_json()[0]["customizedMetadata"]
    assert own["parameters"] == {"body": [None, ""]}
    assert own["headers"]["describe"] == "True"
    assert "customizedMetadata" not in client.get("/models/noop?customized=false").get_json()[0]
    repository.model.behave = lambda request: answer_with(request, b"some text")
    assert client.get("/models/noop?customized=true").get_json()[0]["customizedMetadata"] == {}


def answer_with(request: HandlerRequest, body: bytes) -> HandlerResponse:
    return HandlerResponse(body, 200, "OK", [], None)


def test_models_are_listed_in_pages(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    assert client.get("/models").data == b'{\n  "models": []\n}\n'
    for name in ("b", "a", "c"):
        client.post(f"/models?url=noop.mar&model_name={name}")

    def page(query: str) -> tuple[str | None, list[str]]:
        answer = client.get(f"/models{query}").get_json()
        assert all(list(model) == ["modelName", "modelUrl"] for model in answer["models"])
        return answer.get("nextPageToken"), [model["modelName"] for model in answer["models"]]

    assert page("") == (None, ["a", "b", "c"])
    assert page("?limit=2") == ("2", ["a", "b"])
    assert page("?limit=2&next_page_token=2") == (None, ["c"])
    assert page("?limit=3") == ("3", ["a", "b", "c"])  # as TorchServe: one more page, which is empty
    assert page("?limit=0") == ("0", [])
    for query in ("?limit=101", "?limit=-1", "?limit=x", "?next_page_token=-5", "?next_page_token=x"):
        assert page(query) == (None, ["a", "b", "c"])
    assert page("?next_page_token=7") == (None, [])


def test_models_are_unregistered(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    client.post("/models?url=noop.mar")
    client.post("/models?url=noop_v2.mar")
    message = "Cannot remove default version for model noop"
    assert error_of(client.delete("/models/noop")) == (403, "InvalidModelVersionException", message)
    assert error_of(client.delete("/models/X")) == (404, "ModelNotFoundException", "Model not found: X")
    message = "Model version: 9 does not exist for model: noop"
    assert error_of(client.delete("/models/noop/9")) == (404, "ModelVersionNotFoundException", message)
    assert status_of(client.delete("/models/noop/1.11?anything=1")) == 'Model "noop" unregistered'
    assert status_of(client.delete("/models/noop")) == 'Model "noop" unregistered'
    assert client.get("/models").get_json() == {"models": []}


def test_a_worker_that_keeps_a_model_is_a_timeout(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar")
    repository.fails["unregister"] = WorkersFailed("1 of the workers did not follow.")
    message = "Timed out while cleaning resources: noop"
    assert error_of(client.delete("/models/noop")) == (408, "RequestTimeoutException", message)


def test_who_comes_second_is_told_what_the_first_has_changed(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar&initial_workers=1")
    gone, other = ModelNotFound("it is gone"), VersionNotFound("it is gone")
    repository.fails = {"register": VersionExists("it is there"), "unregister": gone, "set_default": other, "get": other}
    message = "Model version 1.11 is already registered for model noop"
    assert error_of(client.post("/models?url=noop_v2.mar")) == (409, "ConflictStatusException", message)
    assert len(repository.dropped) == 1
    assert error_of(client.delete("/models/noop"))[1:] == ("ModelNotFoundException", "Model not found: noop")
    repository.fails["unregister"] = other
    message = "Model version: 1.0 does not exist for model: noop"
    assert error_of(client.delete("/models/noop/1.0"))[1:] == ("ModelVersionNotFoundException", message)
    assert error_of(client.get("/models/noop?customized=true"))[1:] == ("ModelVersionNotFoundException", message)
    repository.fails["get"] = gone
    assert error_of(client.get("/models/noop?customized=true"))[1:] == ("ModelNotFoundException", "Model not found: noop")
    assert client.get("/models/noop").get_json()[0]["jobQueueStatus"]["pendingRequests"] == 0


def test_the_default_version_is_set(tmp_path: Path) -> None:
    client, repository = serve(tmp_path)
    client.post("/models?url=noop.mar")
    client.post("/models?url=noop_v2.mar")
    response = client.put("/models/noop/1.11/set-default/")
    assert status_of(response) == 'Default version successfully updated for model "noop" to "1.11"'
    assert repository.find("noop").version == "1.11"
    assert client.get("/models/noop/1.0/set-default").get_json()[0]["modelVersion"] == "1.0"
    assert error_of(client.put("/models/X/1/set-default")) == (404, "ModelNotFoundException", "Model not found: X")
    message = "Model version 3.3.3 does not exist for model noop"
    refused = error_of(client.put("/models/noop/3.3.3/set-default"))
    assert refused == (404, "ModelVersionNotFoundException", message)


def test_readiness_is_told_as_kserve_asks_for_it(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    client.post("/models?url=noop.mar")
    assert client.get("/v1/models/noop").get_json() == {"name": "noop", "ready": False}
    client.put("/models/noop?synchronous=true")
    assert client.get("/v1/models/noop:anything").get_json() == {"name": "noop", "ready": True}
    assert error_of(client.get("/v1/models/X"))[0] == 404
    assert error_of(client.put("/v1/models/noop")) == (405, "MethodNotAllowedException", NO_METHOD)


def test_models_come_and_go_only_where_that_is_allowed(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, "disable_token_authorization=true")
    expected = (405, "MethodNotAllowedException", NO_METHOD)
    assert error_of(client.post("/models?url=noop.mar")) == expected
    assert error_of(client.delete("/models/noop")) == expected
    assert client.get("/models").status_code == 200
    assert error_of(client.put("/models/noop"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/models/noop"), ("PUT", "/models"), ("DELETE", "/models"), ("GET", "/"), ("PUT", "/workflows")],
)
def test_other_methods_are_refused(tmp_path: Path, method: str, path: str) -> None:
    response = serve(tmp_path)[0].open(path, method=method)
    assert error_of(response) == (405, "MethodNotAllowedException", NO_METHOD)


def test_there_are_no_workflows(tmp_path: Path) -> None:
    client, _ = serve(tmp_path)
    assert client.get("/workflows").get_json() == {"workflows": []}
    message = "Registering new workflows is disabled."
    assert error_of(client.post("/workflows?url=x.war")) == (400, "BadRequestException", message)
    for method in ("GET", "DELETE"):
        refused = error_of(client.open("/workflows/x", method=method))
        assert refused == (404, "WorkflowNotFoundException", "Workflow not found: x")


def test_every_path_asks_for_the_management_key_and_the_api_key_renews_it(tmp_path: Path) -> None:
    client, _ = serve(tmp_path, "enable_model_api=true")
    file = tmp_path / "store" / "key_file.json"
    keys = json.loads(file.read_text())

    def bearer(name: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {keys[name]['key']}"}

    sentence = "failed. Token either incorrect, expired, or not provided correctly"
    expected = (400, "InvalidKeyException", f"Token Authorization {sentence}")
    for path in ("/models", "/models/noop/token", "/nowhere", "/models?x=/token", "/tokens"):
        assert error_of(client.get(path)) == expected
        assert error_of(client.get(path, headers=bearer("API"))) == expected
    assert client.get("/models", headers=bearer("management")).status_code == 200
    assert client.options("/").status_code == client.get("/api-description").status_code == 200
    expected = (400, "InvalidKeyException", f"Token Authentication {sentence}")
    assert error_of(client.get("/token?type=management")) == expected
    assert error_of(client.get("/token?type=management", headers=bearer("management"))) == expected
    for query in ("", "?type=API", "?type=x"):
        assert error_of(client.get(f"/token{query}", headers=bearer("API"))) == expected
    response = client.get("/token?type=management", headers=bearer("API"))
    assert (response.status_code, response.data.strip(), response.headers["Content-Type"]) == (200, b"", "application/json")
    assert client.get("/models", headers=bearer("management")).status_code == 400
    keys = json.loads(file.read_text())
    assert client.get("/models", headers=bearer("management")).status_code == 200


def test_there_is_no_token_api_where_no_key_is_asked_for(tmp_path: Path) -> None:
    assert error_of(serve(tmp_path)[0].get("/token?type=management"))[0] == 404
