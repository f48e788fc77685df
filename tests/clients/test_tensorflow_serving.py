"""TensorFlow Serving's documented ways to ask, and KServe's own client for V1."""

import asyncio
import base64
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "tensorflow-serving.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
ADDRESS = "http://localhost:5001"


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["urllib", "kserve"])
def test_a_documented_client_reads_the_digit(
    serve: Callable[..., Any], digit: bytes, digit_class: int, tmp_path: Path, snippet: str
) -> None:
    (tmp_path / "digit.png").write_bytes(digit)
    assert ADDRESS in snippet
    code = snippet.replace(ADDRESS, serve().url)
    # In a process of its own: kserve and tritonclient.grpc cannot be imported into one.
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.stdout == f"{digit_class}\n", ended.stderr


def test_curl_is_answered_as_it_is_documented(serve: Callable[..., Any]) -> None:
    line = re.search(r"^curl .*$", PAGE.read_text(), re.MULTILINE)[0].replace(ADDRESS, serve().url)
    ended = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert [round(value) for value in json.loads(ended.stdout)["predictions"]] == [1, 3, 9]


def ask_with_kserve(url: str, picture: str) -> dict[str, Any]:
    """Return what KServe's client makes of each of its calls."""
    import httpx
    from kserve import InferenceRESTClient, RESTConfig

    async def ask() -> dict[str, Any]:
        async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
            found = {
                "is_server_live": await client.is_server_live(url),
                "is_model_ready": await client.is_model_ready(url, "mnist"),
                "infer": await client.infer(url, {"instances": [{"b64": picture}] * 2}, model_name="mnist"),
            }
            for name, call in {
                "unknown model": client.infer(url, {"instances": [1]}, model_name="half"),
                "unknown model ready": client.is_model_ready(url, "half"),
                "bad input": client.infer(url, {"instances": ["text"]}, model_name="mnist"),
                "explain": client.explain(url, "mnist", {"instances": [{"b64": picture}]}),
            }.items():
                try:
                    await call
                except httpx.HTTPStatusError as error:
                    found[name] = (error.response.status_code, str(error))
        return found

    return asyncio.run(ask())


def test_kserves_client_is_answered(
    serve: Callable[..., Any], apart: Callable[..., Any], digit: bytes, digit_class: int
) -> None:
    found = apart(ask_with_kserve, serve().url, base64.b64encode(digit).decode())
    assert found["is_server_live"] is True and found["is_model_ready"] is True
    assert [row["predicted_class"] for row in found["infer"]["predictions"]] == [digit_class] * 2
    for name, status, text in (
        ("unknown model", 404, "Servable not found for request: Latest(half)"),
        ("unknown model ready", 404, "Could not find any versions of model half"),
        ("bad input", 400, "The input image cannot be read"),
        ("explain", 501, "Could not find explainer_host"),
    ):
        assert found[name][0] == status and text in found[name][1]


def test_pythons_own_client_sees_the_status_of_an_error(serve: Callable[..., Any]) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{serve().url}/v1/models/half:predict", b'{"instances": [1.0]}')
    with caught.value as error:
        assert error.code == 404
        assert json.load(error) == {"error": "Servable not found for request: Latest(half)"}
