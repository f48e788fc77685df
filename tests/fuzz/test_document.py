"""What the OpenAPI document says of the server holds for requests that schemathesis makes from it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure
from schemathesis.specs.openapi.checks import positive_data_acceptance

from servekit.app import create_app
from servekit.config import Settings
from servekit.platforms import AZURE, MLFLOW, NONE, SAGEMAKER, VERTEX

# No schema can say which text is a picture, or that lists are even: what fits one may be refused all the same.
UNCHECKED = [not_a_server_error, positive_data_acceptance]
# What Triton answers where it is not told to be managed, too.
REFUSED = {"/repository/": 503, "/v2/logging": 501, "/trace/setting": 501}


def operations_on(platform: str, store: Path) -> dict[str, Any]:
    """Return what the document of a server on `platform` describes, by method and path."""
    app = create_app(Settings(model_store=store, platform=platform, default_model="mnist"))
    found = schemathesis.openapi.from_wsgi("/openapi.json", app).get_all_operations()
    return {operation.label: operation for operation in (each.ok() for each in found)}


@pytest.fixture(scope="module")
def usual(store: Path) -> dict[str, Any]:
    return operations_on(NONE, store)


def complaints(operation: Any, mode: GenerationMode) -> Iterator[str]:
    """Give what is wrong with the answers to requests for `operation`: as it is described, or not (`mode`)."""
    found: dict[str, str] = {}

    @settings(max_examples=max(2, settings().max_examples // 20), suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        answer = case.call()
        status = next((status for path, status in REFUSED.items() if path in case.path), 200)
        if answer.status_code >= 500 and answer.status_code != status:
            found["ServerError"] = f"{answer.status_code} for {case.as_curl_command()[:1000]}"
        try:
            case.validate_response(answer, excluded_checks=UNCHECKED)
        except (Failure, BaseExceptionGroup) as failure:
            for each in getattr(failure, "exceptions", [failure]):
                found[type(each).__name__] = f"{each}: {case.as_curl_command()[:1000]}"

    try:
        ask()
    except Unsatisfiable:  # nothing can be wrong with a request that has no parameters
        return
    yield from (f"{operation.label}, {mode.value}, {name}: {text}" for name, text in found.items())


def require_true(operations: Iterable[Any]) -> None:
    """Fail with all complaints about `operations`."""
    found = [text for each in operations for mode in GenerationMode for text in complaints(each, mode)]
    assert not found, "\n".join(found)


def test_the_document_is_true(usual: dict[str, Any]) -> None:
    assert len(usual) > 40
    require_true(usual.values())


@pytest.mark.parametrize("platform", [SAGEMAKER, VERTEX, AZURE, MLFLOW])
def test_what_it_says_of_a_platform_is_true(store: Path, usual: dict[str, Any], platform: str) -> None:
    found = operations_on(platform, store)
    assert found.keys() - usual.keys()
    require_true(found[label] for label in found.keys() - usual.keys())
