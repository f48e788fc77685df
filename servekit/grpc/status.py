"""Which status of gRPC a call ends with."""

import json

from grpc import StatusCode

from servekit.grpc.connections import Answer

NO_ANSWER = "the inference server does not answer"
UNREADABLE = "the inference server gave an answer that cannot be read"

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    405: StatusCode.UNIMPLEMENTED,
    408: StatusCode.DEADLINE_EXCEEDED,
    409: StatusCode.ALREADY_EXISTS,
    413: StatusCode.RESOURCE_EXHAUSTED,
    414: StatusCode.INVALID_ARGUMENT,
    415: StatusCode.INVALID_ARGUMENT,
    422: StatusCode.INVALID_ARGUMENT,
    429: StatusCode.RESOURCE_EXHAUSTED,
    431: StatusCode.INVALID_ARGUMENT,
    499: StatusCode.CANCELLED,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
    507: StatusCode.RESOURCE_EXHAUSTED,
}


class Refused(Exception):
    """Ends a call with `code` and a sentence for the client."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def require_ok(answer: Answer) -> None:
    """Raise Refused, with the code for its status and its own words, if `answer` is not 200."""
    if answer.status != 200:
        raise Refused(_CODES.get(answer.status, StatusCode.INTERNAL), _error_of(answer))


def _error_of(answer: Answer) -> str:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):  # not one of servekit's, which a proxy may have sent
        error = None
    return error if isinstance(error, str) else f"the inference server answered with HTTP status {answer.status}"
