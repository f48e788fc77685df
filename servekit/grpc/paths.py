"""The paths of V2's HTTP interface for names that a client has chosen."""

from urllib.parse import quote

from grpc import StatusCode

from servekit.grpc.status import Refused

MAX_NAME = 1000  # characters of a model's name or version


def model_path(name: str, version: str = "", last: str = "") -> str:
    """Return the path of a model, or of its `version`, and of what is `last` in it.

    Raises Refused for a name that cannot be one. A server reads `%2F` in a path as `/`, so a slash in a name could lead
    to another address, and so could a name of dots.
    """
    if not name:
        raise Refused(StatusCode.INVALID_ARGUMENT, "the request names no model")
    if not _is_segment(name):
        raise Refused(StatusCode.NOT_FOUND, f"Request for unknown model: '{name[:MAX_NAME]}' is not found")
    if version and not _is_segment(version):
        shown = version[:MAX_NAME]
        raise Refused(StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' version {shown} is not found")
    path = f"/v2/models/{quote(name, safe='')}"
    if version:
        path += f"/versions/{quote(version, safe='')}"
    return f"{path}/{last}" if last else path


def index_path(repository: str) -> str:
    """Return the path of the index of the repository of that name, or of the only one; raises Refused."""
    return f"{_repository(repository)}/index"


def change_path(repository: str, model: str, verb: str) -> str:
    """Return the path that loads or unloads `model`, by `verb` ("load" or "unload"); raises Refused."""
    return _repository(repository) + model_path(model, last=verb).removeprefix("/v2")


def _repository(name: str) -> str:
    if name and not _is_segment(name):
        raise Refused(StatusCode.NOT_FOUND, "there is no repository of that name")
    return f"/v2/repository/{quote(name, safe='')}" if name else "/v2/repository"


def _is_segment(name: str) -> bool:
    return "/" not in name and name.strip(".") != "" and len(name) <= MAX_NAME
