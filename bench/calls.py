"""gRPC V2 beside binary V2 requests over HTTP: calls a second of one digit as 1x28x28 FP32, 1 and 16 in flight.

Both servers must run: `servekit serve` and `servekit grpc`; then `python -m bench.calls [SECONDS]`.
"""

import asyncio
import json
import multiprocessing
import sys
import time
from collections.abc import Awaitable, Callable

import grpc

from servekit.grpc.connections import Connections
from servekit.grpc.messages import message

HTTP, GRPC = ("127.0.0.1", 5001), "127.0.0.1:8001"
IN_FLIGHT = (1, 16)
PER_PROCESS = 4  # calls in flight of one client process: a client in Python needs more than the server
PIXELS = bytes(4 * 28 * 28)
Call = Callable[[], Awaitable[object]]


def main() -> None:
    """Print calls a second of each kind, three rounds in turn."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    for in_flight in IN_FLIGHT:
        for _ in range(3):
            rates = {kind: _rate(kind, in_flight, seconds) for kind in ("http", "grpc")}
            print(f"{in_flight} in flight: " + ", ".join(f"{kind} {rate:.0f}/s" for kind, rate in rates.items()), flush=True)


def _rate(kind: str, in_flight: int, seconds: float) -> float:
    each = min(in_flight, PER_PROCESS)
    with multiprocessing.get_context("spawn").Pool(in_flight // each) as pool:
        counts = pool.starmap(_count, [(kind, each, seconds)] * (in_flight // each))
    return sum(counts) / seconds


def _count(kind: str, in_flight: int, seconds: float) -> int:
    return asyncio.run(_run(kind, in_flight, seconds))


async def _run(kind: str, in_flight: int, seconds: float) -> int:
    if kind == "http":
        return await _calls(_http_call(), in_flight, seconds)
    async with grpc.aio.insecure_channel(GRPC) as channel:
        return await _calls(_grpc_call(channel), in_flight, seconds)


async def _calls(call: Call, in_flight: int, seconds: float) -> int:
    await call()
    count, end = 0, time.perf_counter() + seconds

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await call()
            count += 1

    await asyncio.gather(*(client() for _ in range(in_flight)))
    return count


def _http_call() -> Call:
    tensor = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32"}
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [tensor | {"parameters": {"binary_data_size": len(PIXELS)}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connections = Connections(*HTTP)
    return lambda: connections.request("POST", "/v2/models/mnist/infer", headers, [head, PIXELS])


def _grpc_call(channel: grpc.aio.Channel) -> Call:
    request = message("inference.ModelInferRequest")(model_name="mnist", raw_input_contents=[PIXELS])
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 28, 28])
    answer = message("inference.ModelInferResponse")
    infer = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer", type(request).SerializeToString, answer.FromString
    )
    return lambda: infer(request)


if __name__ == "__main__":
    main()
