import inspect
from http import HTTPStatus

import pytest

from servekit import errors

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_in_the_docstring_is_the_tree(cls: type) -> None:
    lines = [line for line in errors.__doc__.splitlines() if cls.__name__ in line.split() or f" {cls.__name__} " in line + " "]
    assert lines, f"{cls.__name__} is not drawn"
    assert issubclass(cls, errors.ServekitError)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if issubclass(cls, errors.RequestError)])
def test_every_request_error_has_a_status_for_clients(cls: type[errors.RequestError]) -> None:
    assert cls.status >= 400
    if cls is not errors.RequestError:
        assert f" {int(cls.status)}  " in errors.__doc__
    assert (cls.retry_after is not None) == (cls.status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS))


def test_the_front_door_offers_what_a_model_author_needs() -> None:
    import servekit

    assert servekit.__all__ == ["Handler", "InvalidInput", "Tensors"]
    assert servekit.InvalidInput is errors.InvalidInput
    assert inspect.isclass(servekit.Handler)
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        servekit.Nonsense  # noqa: B018
