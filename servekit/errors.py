"""Every error that servekit raises on purpose.

    ServekitError
    ├── StartupError              the server refuses to start
    │   ├── SettingError          an unknown or impossible setting
    │   └── ModelLoadError        a model folder that cannot be served
    │       └── ArchiveRefused    a model archive that cannot be unpacked, read or written
    └── RequestError              a request gets no prediction
        ├── InvalidInput          400  what was sent cannot be understood
        │   └── InputTooLarge     413  one input of the request would take too much to read
        ├── Unauthorized          401  no key was sent, or one that nobody has
        ├── Forbidden             403  the key that was sent may not do this
        ├── ForeignSite           403  a page of another site may have sent the request, and no key was needed
        ├── TooManyRequests       429  the key has made all the requests that it may make for now
        ├── ModelNotFound         404  no such model is loaded
        │   └── VersionNotFound   404  no such version of it is loaded
        ├── VersionExists         409  that version is registered already
        ├── DefaultVersionInUse   403  the default version cannot go while there are others
        ├── HandlerFailed         500  the model's own code gave no answer, or chose its status
        ├── PayloadTooLarge       413  the body or the batch is over a limit
        ├── UnsupportedMediaType  415  a content type that no one reads here
        ├── NotAcceptable         406  the client accepts no form that the answer can have
        ├── NotReady              503  nothing can be predicted yet
        │   └── ModelNotLoaded    503  the version is registered, and no worker holds it
        ├── WorkersFailed         500  a worker could not load what another could
        ├── Overloaded            503  too many rows wait already
        ├── OutOfMemory           503  try again when others are done
        ├── DeadlineExceeded      504  the request waited too long
        └── ClientLeft            499  nobody waits for the answer any more

A message is one sentence that says what to do. The message of a `RequestError` is sent to the client, so it holds no
path, no traceback and nothing of the payload; a `StartupError` is read by the operator and names the file.
"""

from http import HTTPStatus
from typing import cast


class ServekitError(Exception):
    """The base of the tree; catch it to catch all that servekit raises on purpose."""


class StartupError(ServekitError):
    """The server cannot start; the message names the file or setting and the remedy."""


class SettingError(StartupError):
    """A setting that does not exist or whose value cannot be used."""


class ModelLoadError(StartupError):
    """A model folder that is missing, damaged, or does not fit its network."""


class ArchiveRefused(ModelLoadError):
    """A model archive that cannot be unpacked, read or written; the message names the file, without its folder."""


class RequestError(ServekitError):
    """A request that gets no prediction; `status` is the HTTP status of the answer."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    retry_after: int | None = None  # seconds, sent as the Retry-After header

    @property
    def headers(self) -> list[tuple[str, str]]:
        """What the header of the answer says beside its status."""
        return [] if self.retry_after is None else [("Retry-After", str(self.retry_after))]


class Unauthorized(RequestError):
    """No key was sent, or one that nobody has; the message says how to send one."""

    status = HTTPStatus.UNAUTHORIZED

    @property
    def headers(self) -> list[tuple[str, str]]:
        """How to send a key (RFC 9110, section 11.6.1)."""
        return [("WWW-Authenticate", "Bearer")]


class Forbidden(RequestError):
    """The key that was sent may not do this."""

    status = HTTPStatus.FORBIDDEN


class ForeignSite(RequestError):
    """A page of another site may have sent the request, which needs no key where it comes from."""

    status = HTTPStatus.FORBIDDEN


class TooManyRequests(RequestError):
    """The key has made all the requests that it may make for now; whoever raises it sets `retry_after`."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    retry_after: int | None = 1


class InvalidInput(RequestError):
    """What was sent cannot be understood; the message says what would be."""

    status = HTTPStatus.BAD_REQUEST


class InputTooLarge(InvalidInput):
    """One input, such as an image, would take too much memory to read, whatever its place in the body."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class ModelNotFound(RequestError):
    """No such model is loaded."""

    status = HTTPStatus.NOT_FOUND


class VersionNotFound(ModelNotFound):
    """The model is there, but not that version of it."""


class VersionExists(RequestError):
    """That version of the model is registered already."""

    status = HTTPStatus.CONFLICT


class DefaultVersionInUse(RequestError):
    """The default version of a model cannot be removed while there are others."""

    status = HTTPStatus.FORBIDDEN


class HandlerFailed(RequestError):
    """The code of a model's archive gave no answer for a batch.

    The message is one that TorchServe's clients know ("Prediction failed"), or the handler's own; so is the status.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR

    def __init__(self, message: str, status: int = HTTPStatus.INTERNAL_SERVER_ERROR) -> None:
        super().__init__(message, status)
        # A handler may choose a number that HTTPStatus does not know, such as 599.
        self.status = cast(HTTPStatus, status)

    def __str__(self) -> str:
        return str(self.args[0])


class PayloadTooLarge(RequestError):
    """The body, or the number of files in it, is over the limit."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class UnsupportedMediaType(RequestError):
    """The content type is none of those that the route reads."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class NotAcceptable(RequestError):
    """The client accepts none of the content types that the answer can be written as."""

    status = HTTPStatus.NOT_ACCEPTABLE


class NotReady(RequestError):
    """No prediction can be made yet."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after: int | None = 1


class ModelNotLoaded(NotReady):
    """The version is registered, but no worker is to hold it."""


class WorkersFailed(RequestError):
    """A worker could not load, or not in time, what another one could; the message names it."""


class Overloaded(RequestError):
    """Too many rows wait already; the request was not looked at. Whoever raises it sets `retry_after`."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after = 1


class OutOfMemory(RequestError):
    """There was no memory for this request; the server goes on."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after = 1


class DeadlineExceeded(RequestError):
    """The request waited past its deadline and was not run."""

    status = HTTPStatus.GATEWAY_TIMEOUT


class ClientLeft(RequestError):
    """The client has gone, and what still waited of its request was not run; logs and metrics see the status."""

    status = cast(HTTPStatus, 499)  # nginx's; HTTP has none for an answer that is not sent
