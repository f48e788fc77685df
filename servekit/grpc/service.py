"""The methods of `inference.GRPCInferenceService` and `grpc.health.v1.Health`, each by requests of V2's HTTP interface."""

import asyncio
import base64
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from grpc import StatusCode

from servekit.grpc.connections import VALUE, Answer, Connections, Unreachable
from servekit.grpc.infer import NO_SHARED_MEMORY, final, plain_values, request_of, response_of
from servekit.grpc.messages import message, methods
from servekit.grpc.paths import change_path, index_path, model_path
from servekit.grpc.status import NO_ANSWER, UNREADABLE, Refused, require_ok

INFERENCE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
WATCH_SECONDS = 1.0
LARGE_BYTES = 2**18  # of a message: from here on reading it takes tens of milliseconds
_PASSED_ON = ("authorization", "x-request-id", "traceparent", "tracestate")  # metadata of a call that become headers of its request
_REQUEST_ID = "x-request-id"
_MAX_DETAILS = 4000  # characters of a status; what is in a header may not be longer than the client's limit, 8 KiB

_StreamResponse = message("inference.ModelStreamInferResponse")
_Health = message("grpc.health.v1.HealthCheckResponse")

_DAMAGED = object()

log = logging.getLogger(__name__)


class Service:
    """Answers calls by asking the server behind `connections`; typed contents of a call may become `limit` bytes."""

    def __init__(self, connections: Connections, limit: int) -> None:
        self._connections, self._limit = connections, limit
        self._draining: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def handlers(self) -> list[Any]:
        """Return what gRPC's server routes by: a handler of each method."""
        found = []
        for service in (INFERENCE, HEALTH):
            table = {}
            for name, request, response, reads, writes in methods(service):
                make = _KIND_OF_HANDLER[reads, writes]
                table[name] = make(safely(getattr(self, name)), _parser(request), response.SerializeToString)
            found.append(grpc.method_handlers_generic_handler(service, table))
        return found

    def drain(self) -> None:
        """Be not ready from now on, and end each stream after the request that it is at."""
        if not self._draining.done():
            self._draining.set_result(None)

    async def ServerLive(self, call: Any, context: Any) -> Any:
        """Say whether the server answers."""
        return message("inference.ServerLiveResponse")(live=await self._is_well("/v2/health/live", context))

    async def ServerReady(self, call: Any, context: Any) -> Any:
        """Say whether the server has its models loaded."""
        return message("inference.ServerReadyResponse")(ready=await self._is_well("/v2/health/ready", context))

    async def ModelReady(self, call: Any, context: Any) -> Any:
        """Say whether a model, or a version of it, can be asked; False for one that there is not."""
        path = model_path(call.name, call.version, "ready")
        return message("inference.ModelReadyResponse")(ready=await self._is_well(path, context))

    async def ServerMetadata(self, call: Any, context: Any) -> Any:
        """Return the server's name, version and extensions."""
        return _read(await self._get("/v2", context), "inference.ServerMetadataResponse")

    async def ModelMetadata(self, call: Any, context: Any) -> Any:
        """Return the inputs and outputs of a model."""
        answer = await self._get(model_path(call.name, call.version), context)
        return _read(answer, "inference.ModelMetadataResponse")

    async def ModelConfig(self, call: Any, context: Any) -> Any:
        """Return the configuration of a model."""
        answer = await self._get(model_path(call.name, call.version, "config"), context)
        return _read(answer, "inference.ModelConfigResponse", "config")

    async def ModelStatistics(self, call: Any, context: Any) -> Any:
        """Return the statistics of a model, or of all."""
        path = model_path(call.name, call.version, "stats") if call.name else "/v2/models/stats"
        return _read(await self._get(path, context), "inference.ModelStatisticsResponse")

    async def RepositoryIndex(self, call: Any, context: Any) -> Any:
        """List the models of the repository."""
        answer = await self._post(index_path(call.repository_name), {"ready": call.ready}, context)
        return _read(answer, "inference.RepositoryIndexResponse", "models")

    async def RepositoryModelLoad(self, call: Any, context: Any) -> Any:
        """Load a model, if the server lets requests do so."""
        path = change_path(call.repository_name, call.model_name, "load")
        await self._post(path, _parameters(call.parameters), context)
        return message("inference.RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, call: Any, context: Any) -> Any:
        """Unload a model, if the server lets requests do so."""
        path = change_path(call.repository_name, call.model_name, "unload")
        await self._post(path, _parameters(call.parameters), context)
        return message("inference.RepositoryModelUnloadResponse")()

    async def ModelInfer(self, call: Any, context: Any) -> Any:
        """Return what a model makes of the tensors of `call`."""
        path = model_path(call.model_name, call.model_version, "infer")
        seconds = context.time_remaining()
        if call.ByteSize() > LARGE_BYTES:  # others are served meanwhile
            headers, body = await asyncio.to_thread(request_of, call, seconds, self._limit)
        else:
            headers, body = request_of(call, seconds, self._limit)
        answer = await self._ask("POST", path, context, headers, body)
        require_ok(answer)
        return response_of(answer)

    async def ModelStreamInfer(self, context: Any) -> None:
        """Answer each request of a stream in its turn; one that fails has its error in its answer, and the stream goes on.

        Each answer is marked as the last one to its request: no model here gives several.
        """
        while (call := await self._next(context)) is not None:
            try:
                await context.write(_StreamResponse(infer_response=final(await self.ModelInfer(call, context))))
            except (Refused, Unreachable) as error:
                words = error.message if isinstance(error, Refused) else NO_ANSWER
                await context.write(_StreamResponse(error_message=words, infer_response={"id": call.id}))

    async def Check(self, call: Any, context: Any) -> Any:
        """Answer the health check of orchestrators and load balancers: SERVING if the server is ready."""
        if call.service not in ("", INFERENCE):
            raise Refused(StatusCode.NOT_FOUND, "there is no service of that name")
        return await self._health(context)

    async def Watch(self, call: Any, context: Any) -> None:
        """Tell the health now and whenever it changes, looking once a second, until the server drains."""
        told = None
        while not context.cancelled():
            health = await self._health(context) if call.service in ("", INFERENCE) else _Health(status="SERVICE_UNKNOWN")
            if health != told:
                await context.write(health)
                told = health
            if self._draining.done():
                return
            await asyncio.wait([self._draining], timeout=WATCH_SECONDS)

    async def SystemSharedMemoryStatus(self, call: Any, context: Any) -> Any:
        """List the regions of shared memory, of which there are none."""
        return message("inference.SystemSharedMemoryStatusResponse")()

    async def CudaSharedMemoryStatus(self, call: Any, context: Any) -> Any:
        """List the regions of a GPU's shared memory, of which there are none."""
        return message("inference.CudaSharedMemoryStatusResponse")()

    async def SystemSharedMemoryUnregister(self, call: Any, context: Any) -> Any:
        """Do nothing, with success, as clients ask for before they begin: no region is registered."""
        return message("inference.SystemSharedMemoryUnregisterResponse")()

    async def CudaSharedMemoryUnregister(self, call: Any, context: Any) -> Any:
        """Do nothing, with success: no region is registered."""
        return message("inference.CudaSharedMemoryUnregisterResponse")()

    async def SystemSharedMemoryRegister(self, call: Any, context: Any) -> Any:
        """Refuse."""
        raise Refused(StatusCode.UNIMPLEMENTED, NO_SHARED_MEMORY)

    CudaSharedMemoryRegister = SystemSharedMemoryRegister

    async def TraceSetting(self, call: Any, context: Any) -> Any:
        """Show what is traced; the server refuses to change it."""
        path = model_path(call.model_name, last="trace/setting") if call.model_name else "/v2/trace/setting"
        if call.settings:
            await self._post(path, {name: list(each.value) for name, each in call.settings.items()}, context)
        return _settings(await self._get(path, context), "inference.TraceSettingResponse", _as_trace)

    async def LogSettings(self, call: Any, context: Any) -> Any:
        """Show how the server logs; it refuses to change that."""
        if call.settings:
            await self._post("/v2/logging", plain_values(call.settings), context)
        return _settings(await self._get("/v2/logging", context), "inference.LogSettingsResponse", _as_log)

    async def _next(self, context: Any) -> Any:
        """Return the next request of a stream; None at its end, and when the server drains."""
        reading = asyncio.ensure_future(context.read())
        try:
            await asyncio.wait([reading, self._draining], return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if not reading.done():
            return None
        call = reading.result()
        return None if call is grpc.aio.EOF else _require_whole(call)

    async def _health(self, context: Any) -> Any:
        is_ready = await self._is_well("/v2/health/ready", context)
        return _Health(status="SERVING" if is_ready else "NOT_SERVING")

    async def _is_well(self, path: str, context: Any) -> bool:
        """Return True if the server answers 200 there; raises Refused if it does not let the client ask."""
        if self._draining.done():
            return False
        try:
            answer = await self._ask("GET", path, context)
        except Unreachable:
            return False
        if answer.status in (401, 403):
            require_ok(answer)
        return answer.status == 200

    async def _get(self, path: str, context: Any) -> Answer:
        answer = await self._ask("GET", path, context)
        require_ok(answer)
        return answer

    async def _post(self, path: str, value: Any, context: Any) -> Answer:
        answer = await self._ask("POST", path, context, {"Content-Type": "application/json"}, [json.dumps(value).encode()])
        require_ok(answer)
        return answer

    async def _ask(
        self, method: str, path: str, context: Any, headers: Mapping[str, str] | None = None, body: Sequence[bytes] = ()
    ) -> Answer:
        """Send one request with what the call's metadata pass on; return the answer, whose id goes back with the call."""
        passed = passed_on(context.invocation_metadata())
        answer = await self._connections.request(method, path, passed | dict(headers or {}), body)
        identity = answer.headers.get(_REQUEST_ID.encode(), b"").decode("latin-1")
        if identity and VALUE.fullmatch(identity):
            context.set_trailing_metadata(((_REQUEST_ID, identity),))
        return answer


def passed_on(metadata: Any) -> dict[str, str]:
    """Return what of a call's metadata the server is given as the header of a request."""
    return {name: value for name, value in metadata or () if name in _PASSED_ON}


# (the request streams, the answer streams) -> what makes gRPC's handler; a handler of both reads and writes by itself
_KIND_OF_HANDLER = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def _parser(kind: Any) -> Callable[[bytes], Any]:
    """Return what reads a message of `kind`; what is none becomes _DAMAGED, as gRPC would tell the client of an exception."""

    def parse(content: bytes) -> Any:
        try:
            return kind.FromString(content)
        except DecodeError:
            return _DAMAGED

    return parse


def _require_whole(call: Any) -> Any:
    """Return `call`; raise Refused if its message could not be read."""
    if call is _DAMAGED:
        raise Refused(StatusCode.INVALID_ARGUMENT, "the message of the call is damaged")
    return call


def safely(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Let `method` end its call with the right status, whatever happens; a bug tells the client nothing of itself."""

    async def answer(call: Any, context: Any) -> Any:
        try:
            return await (method(context) if method.__name__ == "ModelStreamInfer" else method(_require_whole(call), context))
        except Refused as refused:
            code, words = refused.code, refused.message
            if code is StatusCode.INTERNAL and refused.__cause__ is not None:
                log.error(words, exc_info=refused.__cause__)
        except Unreachable:
            code, words = StatusCode.UNAVAILABLE, NO_ANSWER
        except Exception:
            log.exception("a call failed")
            code, words = StatusCode.INTERNAL, "the call failed; the log of the gRPC server has the reason"
        await context.abort(code, words[:_MAX_DETAILS])

    return answer


def _read(answer: Answer, name: str, field: str = "") -> Any:
    """Return the message `name` from an answer in JSON, which is the value of its `field` if one is named."""
    try:
        value = json.loads(answer.body)
        return json_format.ParseDict({field: value} if field else value, message(name)(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise Refused(StatusCode.INTERNAL, UNREADABLE) from error


def _settings(answer: Answer, name: str, value_of: Callable[[Any], Any]) -> Any:
    """Return the message `name` from settings in JSON, each made a SettingValue by `value_of`."""
    try:
        values = {key: value_of(value) for key, value in json.loads(answer.body).items()}
        return json_format.ParseDict({"settings": values}, message(name)())
    except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
        raise Refused(StatusCode.INTERNAL, UNREADABLE) from error


def _as_trace(value: Any) -> Any:
    return {"value": value if isinstance(value, list) else [value]}


def _as_log(value: Any) -> Any:
    kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
    return {kind: value}


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a map of ModelRepositoryParameter as the body of a request: bytes in base64, as the HTTP interface has them."""
    plain = {
        name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
        for name, value in plain_values(parameters).items()
    }
    return {"parameters": plain} if plain else {}
