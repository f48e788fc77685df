"""Where the microseconds of a request go, without sockets: `python -m bench.path` prints a table.

The application is called as a WSGI server calls it, in this process, on one core. Everything is warm, so a stage costs
less here than in a server, where the network pushes Python out of the processor's caches between two requests.
"""

import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.cases import CASES, Request, raw

ROUNDS = 7  # of which the fastest counts: whatever else runs on the machine only makes it slower
CALLS = 400  # in a round
_WHOLE = ("raw", "multipart", "form", "tensor", "binary tensor")
SHARED = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "5001",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost:5001",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
}


def main() -> None:
    """Load the model store as a worker does and print what each stage takes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)  # metrics as they are under Gunicorn
        from servekit.app import create_app

        app = create_app()
        print("| stage | µs |\n|---|---|")
        for name, stage in stages(app).items():
            print(f"| {name} | {microseconds(stage):.0f} |", flush=True)


def stages(app: Any) -> dict[str, Callable[[], Any]]:
    """Return what is measured: whole requests, then their parts."""
    from servekit import metrics
    from servekit.ext import repository_of
    from servekit.http1 import Limits, RequestParser
    from servekit.tensors import bytes_tensor

    model = repository_of(app).get("mnist")
    handler, engine = model._handler, model._batcher.engine
    tensors = {"image": bytes_tensor([raw().body])}
    inputs = handler.preprocess(tensors)
    outputs = engine(inputs)
    sent = raw().encode()
    parser = RequestParser(Limits(4094, 100, 8190, 2**20))

    def parse() -> None:
        parser.feed(sent)
        parser.requests.popleft()

    whole = {f"whole request: {case}": partial(call, app, CASES[case]()) for case in _WHOLE}
    return {
        **whole,
        "whole request: GET /health/live": partial(call, app, None),
        "HTTP parser": parse,
        "decode and preprocess": lambda: handler.preprocess(tensors),
        "Model.predict": lambda: model.predict(tensors, math.inf),
        "forward pass": lambda: engine(inputs),
        "postprocess": lambda: handler.postprocess(outputs),
        "metrics of a pass": lambda: model.meter.observe(1, 0.001, [0.001]),
        "metrics of a prediction": lambda: model.meter.observe_prediction(0.001, 0.001, 0.001),
        "metrics of a request": lambda: metrics.observe_request("POST", "/predict", "200", 0.001),
    }


def call(app: Any, request: Request | None) -> bytes:
    """Call `app` with `request`, or for its health, and return the body of the answer."""
    environ: dict[str, Any] = {**SHARED, "RAW_URI": "/", "PATH_INFO": "/health/live"}
    if request is None:
        environ |= {"REQUEST_METHOD": "GET", "wsgi.input": io.BytesIO()}
    else:
        environ |= {"PATH_INFO": request.path, "CONTENT_TYPE": request.content_type}
        environ |= {"CONTENT_LENGTH": str(len(request.body)), "wsgi.input": io.BytesIO(request.body)}
        environ |= {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in request.headers}
    pieces = app(environ, lambda status, headers, exc_info=None: None)
    answer = b"".join(pieces)
    if hasattr(pieces, "close"):
        pieces.close()
    return answer


def microseconds(stage: Callable[[], Any]) -> float:
    """Return the time of one call, in microseconds, of the fastest round."""
    fastest = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CALLS):
            stage()
        fastest = min(fastest, (time.perf_counter() - started) / CALLS)
    return fastest * 1e6


if __name__ == "__main__":
    main()
