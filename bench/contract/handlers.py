"""Cases of what handlers return, how they fail, and how they are fed: batches, queues, envelopes, streams."""

from bench.contract.cases import BYTES, FORM, JSON, MULTIPART, TEXT, Group, Header, infer, manage, parts, scrape

ITEMS = ("str", "empty str", "bytes", "bytearray", "dict", "list", "empty dict", "int", "float", "nan", "bool", "none")
DRESSED = (
    "status 201 Created",
    "status 204 No Content",
    "status 299 Our Own",
    "status 304 Not Modified",
    "status 404 Not Here",
    "status 422 ",
    "status 507 Out of resources",
    "status 599 Our Own",
    "all status",
    "type text/plain",
    "type application/json; charset=utf-8",
    "header dummy=1",
    "header content-type=text/plain",
    "header Content-Type=text/html",
    "header x-request-id=mine",
    "header Content-Length=3",
    "header connection=close",
)
WRONG = (
    *("raise", "assert", "not a list", "a string", "a tuple", "none at all", "no item", "two items", "object", "set"),
    *("memory", "cuda", "prediction", "prediction plain", "prediction 400", "tensor list"),
)
Bodies = tuple[tuple[str, bytes, tuple[Header, ...]], ...]  # name, body, headers
LOADED = ("disable_token_authorization=true",)


def group_answers() -> Group:
    """Return each kind of thing that a handler may answer with."""
    path = "/predictions/answers"
    cases = [infer(f"item: {name}", "POST", path, name.encode(), TEXT) for name in ITEMS]
    cases += [infer(name, "POST", path, name.encode(), TEXT) for name in DRESSED]
    cases += [
        infer("item: dict, by a client that wants text", "POST", path, b"dict", TEXT, ("Accept", "text/plain")),
        infer("item: str, as a form", "POST", path, parts(("data", "", "", b"str")), MULTIPART),
        infer("item: dict, over HTTP/1.0", "GET", "", raw=_plain(path, b"dict", "1.0")),
        infer("item: dict, by HEAD", "HEAD", path),
    ]
    return Group("answers", tuple(cases), ("answers",), ("answers",), LOADED)


def group_failures() -> Group:
    """Return each way in which a handler may fail."""
    path = "/predictions/answers"
    cases = [infer(name, "POST", path, name.encode(), TEXT) for name in WRONG]
    cases += [
        infer("explanation that raises", "POST", "/explanations/answers", b"raise", TEXT),
        infer("version that raises", "POST", f"{path}/1.0", b"raise", TEXT),
        infer("bytes that are no text", "POST", path, b"\xff", BYTES),
        manage("describe after failures", "GET", "/models/answers"),
        infer("ping after failures", "GET", "/ping"),
        infer("goes on after failures", "POST", path, b"int", TEXT),
    ]
    return Group("failures", tuple(cases), ("answers",), ("answers",), LOADED)


def group_died() -> Group:
    """Return what becomes of a worker that ends, and of the requests after it."""
    path = "/predictions/answers"
    cases = [
        infer("worker that ends", "POST", path, b"exit", TEXT),
        infer("served again", "POST", path, b"int", TEXT, until="^7$"),
        infer("worker that leaves", "POST", path, b"system exit", TEXT),
        infer("served again after that", "POST", path, b"int", TEXT, until="^7$"),
        infer("ping after that", "GET", "/ping"),
    ]
    return Group("died", tuple(cases), ("answers",), ("answers",), LOADED)


def group_too_slow() -> Group:
    """Return what becomes of a request that takes longer than default_response_timeout."""
    path = "/predictions/answers"
    cases = [
        infer("slower than the limit", "POST", path, b"sleep", TEXT),
        infer("served again", "POST", path, b"int", TEXT, until="^7$"),
    ]
    return Group("too_slow", tuple(cases), ("answers",), ("answers",), (*LOADED, "default_response_timeout=1"))


def group_batches() -> Group:
    """Return requests that wait together, for a model whose archive asks for batches of four."""
    path = "/predictions/configured"
    cases = [
        infer("four together", "POST", path, None, TEXT, together=(b"x",) * 4),
        infer("one alone", "POST", path, b"x", TEXT),
        infer("two together", "POST", path, None, TEXT, together=(b"x",) * 2),
        infer("one of four is bad", "POST", path, None, BYTES, together=(b"x", b"x", b"x", b"raise")),
        manage("describe", "GET", "/models/configured"),
        manage("register with batches", "POST", "/models?url=count.mar&batch_size=3&max_batch_delay=1500&initial_workers=1"),
        infer("three together", "POST", "/predictions/count", None, TEXT, together=(b"x",) * 3),
        manage("describe what was registered", "GET", "/models/count"),
    ]
    config = (*LOADED, "enable_model_api=true")
    return Group("batches", tuple(cases), ("configured", "count"), ("configured",), config)


def group_queue() -> Group:
    """Return more requests than the queue of a model takes."""
    path = "/predictions/queue"
    cases = [infer("four with room for two", "POST", path, None, TEXT, together=(b"sleep",) * 4, stagger=0.3)]
    cases += [manage("describe", "GET", "/models/queue"), infer("afterwards", "POST", path, b"int", TEXT)]
    return Group("queue", tuple(cases), ("queue",), ("queue",), LOADED)


def group_stream() -> Group:
    """Return answers in pieces."""
    path = "/predictions/stream"
    cases = [
        infer("pieces", "POST", path, b"x", TEXT),
        infer("pieces with a type", "POST", path, b"type", BYTES),
        infer("pieces over HTTP/1.0", "GET", "", raw=_plain(path, b"x", "1.0"), seconds=5),
    ]
    return Group("stream", tuple(cases), ("stream",), ("stream",), LOADED)


def group_base_handler() -> Group:
    """Return numbers through a network that the base handler loads from its state dict."""
    path = "/predictions/linear"
    cases = [
        infer("a number", "POST", path, b"5.0", TEXT),
        infer("no number", "POST", path, b"five", TEXT),
        infer("a field of a form", "POST", path, b"data=5.0", FORM),
        infer("a field of a multipart form", "POST", path, parts(("data", "", "", b"2.5")), MULTIPART),
        infer("a file", "POST", path, parts(("data", "n.txt", "text/plain", b"2.5")), MULTIPART),
        manage("describe itself", "GET", "/models/linear?customized=true"),
    ]
    return Group("base_handler", tuple(cases), ("linear",), ("linear",), LOADED)


def groups_envelopes() -> tuple[Group, ...]:
    """Return a group for each service envelope."""
    encoded = b'{"instances": [{"b64": "aGk="}, {"b64": "eW91"}]}'
    v2 = b'{"id": "7", "inputs": [{"name": "input-0", "shape": [2], "datatype": "INT64", "data": [1, 2]}]}'
    number = b'{"name": "a", "shape": [1], "datatype": "FP32", "data": [1.5]}'
    text = b'{"name": "b", "shape": [1], "datatype": "BYTES", "data": ["x"]}'
    two = b'{"inputs": [' + number + b", " + text + b"]}"
    instances = ("numbers", b'{"instances": [1, 2]}', (JSON,))
    objects = ("objects", b'{"instances": [{"a": 1}]}', (JSON,))
    bad: Bodies = (("none", b"{}", (JSON,)), ("text", b"hi", (TEXT,)))
    bodies: dict[str, Bodies] = {
        "body": (("text", b"hi", (TEXT,)), ("json", b'{"a": 1}', (JSON,)), ("empty", b"", ())),
        "json": (instances, ("encoded", encoded, (JSON,)), *bad),
        "kserve": (instances, objects, *bad),
        "kservev2": (("tensor", v2, (JSON,)), ("two tensors", two, (JSON,)), *bad),
    }
    return tuple(_envelope(name, sent) for name, sent in bodies.items())


def _envelope(name: str, bodies: Bodies) -> Group:
    routes = {"kserve": "/v1/models/enveloped:predict", "kservev2": "/v2/models/enveloped/infer"}
    path = routes.get(name, "/predictions/enveloped")
    cases = [infer(each, "POST", path, body, *headers) for each, body, headers in bodies]
    _, body, headers = bodies[0]
    cases.append(infer("by the other route", "POST", "/predictions/enveloped", body, *headers))
    config = (*LOADED, f"service_envelope={name}")
    return Group(f"envelope_{name}", tuple(cases), ("enveloped",), ("enveloped",), config)


def group_metrics() -> Group:
    """Return the metrics of a server that has answered some requests."""
    path = "/predictions/answers"
    cases = [
        scrape("before any request", "/metrics"),
        infer("one", "POST", path, b"int", TEXT),
        infer("one of a version", "POST", f"{path}/1.0", b"int", TEXT),
        infer("one that fails", "POST", path, b"raise", TEXT),
        infer("one of an unknown model", "POST", "/predictions/none", b"x", TEXT),
        scrape("afterwards", "/metrics"),
        scrape("of a name", "/metrics?name[]=ts_inference_requests_total"),
        scrape("of an encoded name", "/metrics?name%5B%5D=Requests2XX"),
        scrape("of two names", "/metrics?name[]=Requests2XX&name[]=QueueTime"),
        scrape("of an unknown name", "/metrics?name[]=none"),
        scrape("of an empty name", "/metrics?name[]="),
        scrape("with a slash", "/metrics/"),
        scrape("by HEAD", "/metrics", "HEAD"),
    ]
    return Group("metrics", tuple(cases), ("answers",), ("answers",), (*LOADED, "metrics_mode=prometheus"))


def groups_other_metrics() -> tuple[Group, ...]:
    """Return the metrics in TorchServe's other modes."""
    cases = (infer("one", "POST", "/predictions/answers", b"int", TEXT), scrape("metrics", "/metrics"))
    return tuple(
        Group(f"metrics_{mode}", cases, ("answers",), ("answers",), (*LOADED, f"metrics_mode={mode}"))
        for mode in ("log", "legacy")
    )


def _plain(path: str, body: bytes, version: str) -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
