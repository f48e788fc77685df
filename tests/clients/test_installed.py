"""That every client which the project promises to answer is there to ask."""

from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "azureml_inference_server_http",
        "boto3",
        "google.cloud.aiplatform_v1",
        "httpx",
        "kserve",
        "open_inference",
        "tritonclient.grpc",
        "tritonclient.http",
    ],
)
def test_a_client_can_be_imported(module: str, apart: Callable[..., Any]) -> None:
    # kserve and tritonclient.grpc only where the other one is not
    assert (apart(imported, module) if module == "kserve" else imported(module)) == module


def imported(module: str) -> str:
    """Import `module` and return its name."""
    return import_module(module).__name__


def test_every_package_is_the_pinned_one() -> None:
    lines = (Path(__file__).parent / "requirements.txt").read_text().splitlines()
    for name, version in (line.split("==") for line in lines if not line.startswith("#")):
        assert metadata.version(name) == version, name


def test_the_project_itself_is_not_installed_here() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("servekit")
