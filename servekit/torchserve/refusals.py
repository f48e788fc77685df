"""What a client of TorchServe's APIs is refused with: the kind of error, by TorchServe's name, and its sentence."""

from collections.abc import Mapping
from http import HTTPStatus

from servekit.errors import RequestError

STATUSES: Mapping[str, HTTPStatus] = {
    "BadRequestException": HTTPStatus.BAD_REQUEST,
    "DownloadArchiveException": HTTPStatus.BAD_REQUEST,
    "InvalidKeyException": HTTPStatus.BAD_REQUEST,
    "InvalidModelException": HTTPStatus.BAD_REQUEST,
    "ModelException": HTTPStatus.BAD_REQUEST,
    "InvalidModelVersionException": HTTPStatus.FORBIDDEN,
    "ModelNotFoundException": HTTPStatus.NOT_FOUND,
    "ModelVersionNotFoundException": HTTPStatus.NOT_FOUND,
    "ResourceNotFoundException": HTTPStatus.NOT_FOUND,
    "WorkflowNotFoundException": HTTPStatus.NOT_FOUND,
    "MethodNotAllowedException": HTTPStatus.METHOD_NOT_ALLOWED,
    "RequestTimeoutException": HTTPStatus.REQUEST_TIMEOUT,
    "ConflictStatusException": HTTPStatus.CONFLICT,
    "PayloadTooLargeException": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "InternalServerException": HTTPStatus.INTERNAL_SERVER_ERROR,
    "ServiceUnavailableException": HTTPStatus.SERVICE_UNAVAILABLE,
    "OutOfMemoryError": HTTPStatus.INSUFFICIENT_STORAGE,
}
NO_RESOURCE = "Requested resource is not found, please refer to API document."
NO_METHOD = "Requested method is not allowed, please refer to API document."


class Refusal(RequestError):
    """A request that is answered with an error of `kind`, a key of `STATUSES`, which decides the status."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.status = STATUSES[kind]

    def __str__(self) -> str:
        return str(self.args[1])


def no_model(name: str) -> Refusal:
    """Return the answer for a model that is not registered."""
    return Refusal("ModelNotFoundException", f"Model not found: {name}")


def no_version(name: str, version: str) -> Refusal:
    """Return the answer for a version that is not registered, of a model that is."""
    return Refusal("ModelVersionNotFoundException", f"Model version: {version} does not exist for model: {name}")


def no_resource() -> Refusal:
    """Return the answer for a path that leads nowhere."""
    return Refusal("ResourceNotFoundException", NO_RESOURCE)


def no_method() -> Refusal:
    """Return the answer for a method that a path does not take."""
    return Refusal("MethodNotAllowedException", NO_METHOD)
