"""TorchServe's APIs through the whole application: real archives, the real repository, a port for each API."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from servekit.app import create_app
from servekit.config import Settings
from tests.fakes_torchserve import error_of

INFERENCE, MANAGEMENT, METRICS = (f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082))
HANDLER = """
import os
import time

class Doubler:
    def initialize(self, context):
        name = context.manifest["model"]["modelName"]
        if name == "broken":
            raise ValueError("it is broken")
        while name == "endless" and not os.path.exists("go"):
            time.sleep(0.01)

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return [{"about": "It doubles."}]
        return [{"doubled": 2 * float(row["body"])} for row in data]
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with three archives."""
    store = tmp_path_factory.mktemp("store")
    for name in ("doubler", "broken", "endless"):
        folder = store / name
        (folder / "MAR-INF").mkdir(parents=True)
        (folder / f"{name}_handler.py").write_text(HANDLER)
        manifest = {"model": {"modelName": name, "modelVersion": "1.0", "handler": f"{name}_handler.py"}}
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    return store


@pytest.fixture(scope="module")
def client(store: Path) -> FlaskClient:
    """A client of the application; each test leaves no model registered."""
    properties = f"model_store={store}\ndisable_token_authorization=true\nenable_model_api=true"
    return create_app(Settings(model_store=store, torchserve=properties)).test_client()


def predict(client: FlaskClient, text: str) -> Any:
    return client.post("/predictions/doubler", INFERENCE, data=text, content_type="text/plain")


def test_a_model_lives_from_its_registration_to_its_end(client: FlaskClient) -> None:
    assert client.get("/ping", INFERENCE).get_json() == {"status": "Healthy"}
    assert error_of(predict(client, "2"))[0] == 404
    response = client.post("/models?url=doubler&initial_workers=1&batch_size=4", MANAGEMENT)
    assert response.get_json() == {"status": 'Model "doubler" Version: 1.0 registered with 1 initial workers'}
    assert json.loads(predict(client, "2").data) == {"doubled": 4}
    described = client.get("/models/doubler?customized=true", MANAGEMENT).get_json()[0]
    assert (described["batchSize"], described["workers"][0]["status"]) == (4, "READY")
    assert described["customizedMetadata"] == {"about": "It doubles."}
    assert client.put("/models/doubler?min_worker=0&synchronous=true", MANAGEMENT).status_code == 200
    assert error_of(predict(client, "2"))[:2] == (503, "ServiceUnavailableException")
    assert client.delete("/models/doubler", MANAGEMENT).status_code == 200
    assert client.get("/models", MANAGEMENT).get_json() == {"models": []}


def test_the_last_traceback_of_a_handler_is_in_its_description(client: FlaskClient) -> None:
    client.post("/models?url=doubler&initial_workers=1", MANAGEMENT)
    assert error_of(predict(client, "no number")) == (503, "InternalServerException", "Prediction failed")
    last = client.get("/models/doubler", MANAGEMENT).get_json()[0]["lastError"]
    assert "doubler_handler.py" in last and "could not convert string to float" in last
    assert json.loads(predict(client, "2").data) == {"doubled": 4}
    client.delete("/models/doubler", MANAGEMENT)


def test_a_model_that_cannot_be_loaded_changes_nothing(client: FlaskClient) -> None:
    response = client.post("/models?url=broken&initial_workers=1", MANAGEMENT)
    assert error_of(response)[::2] == (500, "Failed to start workers for model broken version: 1.0")
    assert client.get("/models", MANAGEMENT).get_json() == {"models": []}
    assert client.post("/models?url=broken", MANAGEMENT).status_code == 200
    response = client.put("/models/broken?synchronous=true", MANAGEMENT)
    assert error_of(response)[::2] == (500, "Failed to start workers for model broken version: null")
    assert client.get("/models/broken", MANAGEMENT).get_json()[0]["minWorkers"] == 0
    client.delete("/models/broken", MANAGEMENT)


def test_a_model_that_does_not_load_in_time_holds_up_no_other(client: FlaskClient, store: Path) -> None:
    response = client.post("/models?url=endless&initial_workers=1&startup_timeout=1", MANAGEMENT)
    assert error_of(response)[::2] == (500, "Failed to start workers for model endless version: 1.0")
    assert client.post("/models?url=doubler&initial_workers=1", MANAGEMENT).status_code == 200
    client.delete("/models/doubler", MANAGEMENT)
    (store / "endless" / "go").touch()
    for loading in [thread for thread in threading.enumerate() if thread.name == "servekit-load"]:
        loading.join(10)
        assert not loading.is_alive()


def test_each_address_answers_its_own_routes_only(client: FlaskClient) -> None:
    for path, owner in {"/ping": INFERENCE, "/models": MANAGEMENT, "/metrics": METRICS}.items():
        for address in (INFERENCE, MANAGEMENT, METRICS):
            assert client.get(path, address).status_code == (200 if address == owner else 404)
    for address in (INFERENCE, MANAGEMENT, METRICS):
        assert error_of(client.get("/predict", address))[1] == "ResourceNotFoundException"
        assert client.options("/", address).status_code == 200
    assert client.get("/explanations/doubler", "http://127.0.0.1:5001").get_json().keys() == {"error"}
