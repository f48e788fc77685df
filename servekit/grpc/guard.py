"""Turns strangers away before their messages are read, where this process has been started with the server's keys."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from servekit.grpc.connections import Connections, Unreachable
from servekit.grpc.service import HEALTH, INFERENCE, passed_on, safely
from servekit.grpc.status import Refused, require_ok

_OPEN = (f"/{HEALTH}/Check", f"/{HEALTH}/Watch", f"/{INFERENCE}/ServerLive", f"/{INFERENCE}/ServerReady")


class Guard(grpc.aio.ServerInterceptor):
    """Asks whoever `knows`, given the value of `authorization`, does not know for a key that the server knows.

    So the refusal is the server's own, which counts it; and a key that only the server has been told of is good here, too.
    """

    def __init__(self, knows: Callable[[str], bool], connections: Connections) -> None:
        self._knows, self._connections = knows, connections

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """Return what answers `call`, none of whose messages has been read yet."""
        passed = passed_on(call.invocation_metadata)
        if call.method not in _OPEN and not self._knows(passed.get("authorization", "")):
            try:
                require_ok(await self._connections.request("GET", "/v2", passed))
            except Refused as refused:
                return _turning_away(refused)
            except (Unreachable, ValueError):
                pass  # the call says so itself
        return await continuation(call)


def _turning_away(refused: Refused) -> Any:
    async def turn_away(messages: Any, context: Any) -> None:
        raise refused

    return grpc.stream_stream_rpc_method_handler(safely(turn_away))  # of all kinds the one that is not given a message first
