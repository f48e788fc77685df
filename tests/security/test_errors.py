"""CVE-2025-23319, CVE-2025-23320, CVE-2025-23334 (Triton): an error's text told clients the name of internal memory.

Every address of every contract is asked what it cannot answer, and no answer tells of the inside of the server. Nor do
the answers that describe it.
"""

import re

import pytest
from werkzeug.test import TestResponse

from tests.security.apps import ALL, Address, Apps
from tests.security.hostile import JSON, bad_bodies, v2
from tests.security.watch import Watch

INSIDE = re.compile(
    rb"Traceback|File \\?\"|\w\.py\b|line \d+, in |/(tmp|home|root|usr|work|var|etc|proc|dev|shm|opt)\b|site-packages"
    rb"|(servekit|werkzeug|onnxruntime|torch|orjson|numpy)\.(?!save)[a-z]|object at |<class|Errno|[a-z](Error|Exception):"
    rb"|0x[0-9a-f]{6}|psm_"
)
DESCRIPTIONS = {
    "none": ["/metrics", "/health", "/v1/models", "/v1/models/linear", "/v1/models/mnist/metadata", "/v2", "/v2/models"]
    + ["/v2/models/mnist", "/v2/models/linear/config", "/v2/models/stats", "/openapi.json", "/docs"],
    "sagemaker": ["/ping", "/execution-parameters"],
    "mlflow": ["/version"],
    "vertex": ["/health"],
    "azure": ["/", "/swagger.json", "/swagger.json?version=3"],
    "inference": ["/ping", "/api-description"],
    "management": ["/models", "/models/linear", "/models/linear/all", "/models/linear?customized=true", "/api-description"],
    "metrics": ["/metrics"],
}


TAKES_AWAY = {"open_inference.unload_model", "torchserve_management.unregister", "sagemaker_multi_model.unload_model"}


def inside_of(answer: TestResponse) -> str:
    """Return what an answer tells of the inside of the server; "" if nothing."""
    text = answer.data + "".join(map(str, answer.headers.items())).encode()
    found = INSIDE.search(text)
    return "" if found is None else repr(text[max(0, found.start() - 80) : found.end() + 80])


def asked(apps: Apps, address: Address) -> list[str]:
    """Ask an address all that is wrong; return what its answers tell, or that it failed."""
    told = []
    path = address.path.replace("linear", "none-such") if address.endpoint in TAKES_AWAY else address.path
    for body, kind, headers in bad_bodies() if address.method in ("POST", "PUT") else [(b"", None, {})]:
        answer = apps.ask(address.app, address.method, path, body, kind, headers)
        if answer.status_code == 500 or (found := inside_of(answer)):
            told.append(f"{address} {body[:80]!r}: {answer.status_code} {found}")
    return told


@pytest.mark.parametrize("name", ALL)
def test_cve_2025_23320_no_answer_tells_of_the_inside(apps: Apps, name: str) -> None:
    addresses = [each for each in apps.addresses() if each.app == name and each.method not in ("HEAD", "OPTIONS")]
    assert addresses
    told = [line for address in addresses for line in asked(apps, address)]
    assert not told, "\n".join(told)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_what_describes_the_server_shows_no_folder(apps: Apps, name: str) -> None:
    for path in DESCRIPTIONS[name]:
        answer = apps.ask(name, "GET", path)
        text = answer.get_data(as_text=True)
        assert answer.status_code == 200, path
        assert str(apps.root) not in text and "Traceback" not in text, path
        assert not re.search(r"[\"'=](/tmp|/home|/root|/var|/work)/", text), path


def test_cve_2025_23334_a_handler_that_fails_shows_its_files_by_name_only(apps: Apps, watched: Watch) -> None:
    for _ in range(2):
        assert apps.ask("inference", "POST", "/predictions/linear", b"fail", "text/plain").status_code == 503
    described = apps.ask("management", "GET", "/models/linear")
    assert 'File "echo_handler.py", line' in described.json[0]["lastError"]  # type: ignore[index]
    assert str(apps.root) not in described.get_data(as_text=True)


@pytest.mark.parametrize("region", ["psm_4711", "../../dev/shm/x", "/dev/shm/triton_python_backend", "\u0000"])
def test_cve_2025_23319_no_region_of_shared_memory_is_taken_or_told_back(apps: Apps, region: str) -> None:
    by_input = v2(parameters={"shared_memory_region": region, "shared_memory_byte_size": 4})
    by_output = v2(data=[1.0])[:-1] + b', "outputs": [{"name": "prediction", "parameters": {"shared_memory_region": "x"}}]}'
    for body in (by_input, by_output):
        answer = apps.ask("none", "POST", "/v2/models/linear/infer", body, JSON)
        assert answer.status_code == 400 and answer.json["error"].startswith("Shared memory is not served")  # type: ignore[index]
    for kind in ("systemsharedmemory", "cudasharedmemory"):
        key = '{"key": "/psm_4711", "offset": 0, "byte_size": 64, "raw_handle": {"b64": "gASVCg=="}, "device_id": 0}'
        answer = apps.ask("none", "POST", f"/v2/{kind}/region/r/register", key, JSON)
        assert answer.status_code == 501 and "4711" not in answer.get_data(as_text=True)
        assert apps.ask("none", "GET", f"/v2/{kind}/status").json == []
