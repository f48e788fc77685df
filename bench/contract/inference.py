"""Cases of the inference port: bodies, routes, what handlers return, and how they fail."""

from bench.contract.cases import BYTES, FORM, JSON, MULTIPART, TEXT, Case, Group, infer, manage, parts, scrape

PNG = b"\x89PNG\r\n\x1a\n\x00\xff"
CHUNKED = ("Transfer-Encoding", "chunked")


def group_without_models() -> Group:
    """Return what is asked of a server that holds no model."""
    cases = [infer(f"{method} /ping", method, "/ping") for method in ("GET", "POST", "PUT", "DELETE", "HEAD", "PATCH")]
    cases += [
        infer("ping with a trailing slash", "GET", "/ping/"),
        infer("ping with more", "GET", "/ping/more"),
        infer("ping with a query", "GET", "/ping?x=1"),
        infer("ping with the client's own id", "GET", "/ping", None, ("x-request-id", "mine")),
        infer("ping that wants to close", "GET", "/ping", None, ("Connection", "close")),
        infer("ping of HTTP/1.0", "GET", "", raw=b"GET /ping HTTP/1.0\r\nHost: x\r\n\r\n"),
        infer("ping of HTTP/1.0 kept alive", "GET", "", raw=b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
        infer("ping without host", "GET", "", raw=b"GET /ping HTTP/1.1\r\n\r\n"),
        infer("a malformed request line", "GET", "", raw=b"nonsense\r\n\r\n", seconds=5),
        infer("a malformed header", "GET", "", raw=b"GET /ping HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n", seconds=5),
        infer("root", "GET", "/"),
        infer("post to root", "POST", "/", b"x", TEXT),
        infer("nothing there", "GET", "/nothing"),
        infer("nothing there, posted", "POST", "/nothing/at/all", b"x", TEXT),
        infer("a management route", "GET", "/models"),
        infer("a metrics route", "GET", "/metrics"),
        infer("predictions alone", "POST", "/predictions", b"x", TEXT),
        infer("predictions alone with a slash", "POST", "/predictions/", b"x", TEXT),
        infer("explanations alone", "POST", "/explanations", b"x", TEXT),
        infer("prediction of an unknown model", "POST", "/predictions/none", b"x", TEXT),
        infer("prediction of an unknown model by GET", "GET", "/predictions/none"),
        infer("prediction of an unknown model and version", "POST", "/predictions/none/1.0", b"x", TEXT),
        infer("explanation of an unknown model", "POST", "/explanations/none", b"x", TEXT),
        infer("v1 of an unknown model", "POST", "/v1/models/none:predict", b"{}", JSON),
        infer("v2 of an unknown model", "POST", "/v2/models/none/infer", b"{}", JSON),
        infer("v2 without its protocol", "GET", "/v2"),
        infer("v2 health without its protocol", "GET", "/v2/health/live"),
        infer("invocations without a model", "POST", "/invocations", b"x", TEXT),
        infer("invoke of an unknown model", "POST", "/models/none/invoke", b"x", TEXT),
        infer("legacy predict of an unknown model", "POST", "/none/predict", b"x", TEXT),
        infer("workflow prediction", "POST", "/wfpredict/none", b"x", TEXT),
        infer("options of a prediction of an unknown model", "OPTIONS", "/predictions/none"),
        infer("options of nothing there", "OPTIONS", "/nothing"),
        infer("path with an encoded slash", "POST", "/predictions/no%2Fne", b"x", TEXT),
        infer("path with an encoded quote and letter", "POST", "/predictions/%22%C3%A4", b"x", TEXT),
        infer("double slash", "POST", "//predictions//none", b"x", TEXT),
        manage("root of management", "GET", "/"),
        manage("nothing there on management", "GET", "/nothing"),
        manage("ping on management", "GET", "/ping"),
        manage("prediction on management", "POST", "/predictions/none", b"x", TEXT),
        scrape("root of metrics", "/"),
        scrape("nothing there on metrics", "/nothing"),
        scrape("post to metrics", "/metrics", "POST"),
        scrape("models on metrics", "/models"),
        scrape("ping on metrics", "/ping"),
    ]
    return Group("without_models", tuple(cases))


def group_api_description() -> Group:
    """Return what tells the routes of the server, and of one model."""
    cases = []
    for port in ("inference", "management", "metrics"):
        cases += [
            Case(f"api-description of {port}", port, "GET", "/api-description"),
            Case(f"options of {port}", port, "OPTIONS", "/"),
            Case(f"posted api-description of {port}", port, "POST", "/api-description"),
        ]
    cases += [
        infer("options of a prediction", "OPTIONS", "/predictions/echo"),
        infer("options of a prediction of a version", "OPTIONS", "/predictions/echo/1.0"),
        infer("options of ping", "OPTIONS", "/ping"),
        manage("options of a model", "OPTIONS", "/models/echo"),
        manage("options of an unknown model", "OPTIONS", "/models/none"),
        manage("options of models", "OPTIONS", "/models"),
    ]
    return Group("api_description", tuple(cases), ("echo",), ("echo",))


BODIES = (
    ("text", b"5.0", (TEXT,)),
    ("text with a charset", "\u00e4".encode(), (("Content-Type", "text/plain; charset=utf-8"),)),
    ("text in latin-1", "\u00e4".encode("latin-1"), (("Content-Type", "text/plain; charset=latin-1"),)),
    ("html", b"<p>", (("Content-Type", "text/html"),)),
    ("text in capitals", b"5.0", (("Content-Type", "TEXT/PLAIN"),)),
    ("json object", b'{"a": [1, 2.5, null]}', (JSON,)),
    ("json number", b"5.0", (JSON,)),
    ("json list", b"[1, 2]", (JSON,)),
    ("json with a charset", b'{"a": 1}', (("Content-Type", "application/json; charset=utf-8"),)),
    ("json in capitals", b'{"a": 1}', (("Content-Type", "Application/JSON"),)),
    ("json of a kind", b'{"a": 1}', (("Content-Type", "application/vnd.x+json"),)),
    ("broken json", b'{"a": ', (JSON,)),
    ("empty json", b"", (JSON,)),
    ("bytes", PNG, (BYTES,)),
    ("image", PNG, (("Content-Type", "image/png"),)),
    ("no content type", b"5.0", ()),
    ("empty content type", b"5.0", (("Content-Type", ""),)),
    ("malformed content type", b"5.0", (("Content-Type", ";;;"),)),
    ("empty", b"", ()),
    ("empty text", b"", (TEXT,)),
    ("own headers", b"5.0", (TEXT, ("X-Custom", "one"), ("Authorization", "Bearer none"))),
    ("header twice", b"5.0", (TEXT, ("X-Custom", "one"), ("X-Custom", "two"))),
    ("chunked", b"3\r\n5.0\r\n1\r\n1\r\n0\r\n\r\n", (TEXT, CHUNKED)),
    ("expecting to go on", b"5.0", (TEXT, ("Expect", "100-continue"))),
    ("expecting something else", b"5.0", (TEXT, ("Expect", "the unexpected"))),
    ("compressed", b"\x1f\x8b", (BYTES, ("Content-Encoding", "gzip"))),
    ("form", b"data=5.0&other=a%20b+c", (FORM,)),
    ("form as curl -d sends it", b"5.0", (FORM,)),
    ("form of json as curl -d sends it", b'{"a": 1}', (FORM,)),
    ("form with a field twice", b"data=1&data=2", (FORM,)),
    ("form with an empty field", b"data=&other", (FORM,)),
    ("empty form", b"", (FORM,)),
    ("form in utf-8", b"data=%C3%A4", (("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"),)),
)
FORMS = (
    ("text field", (("data", "", "", b"5.0"),)),
    ("text field with a type", (("data", "", "application/json", b'{"a": 1}'),)),
    ("file", (("data", "a.png", "image/png", PNG),)),
    ("text file", (("data", "a.txt", "text/plain", "\u00e4".encode()),)),
    ("json file", (("data", "a.json", "application/json", b"[1]"),)),
    ("file without a type", (("data", "a.bin", "", b"5.0"),)),
    ("empty file", (("data", "a.bin", "application/octet-stream", b""),)),
    ("two fields", (("data", "a.txt", "text/plain", b"1"), ("target", "", "", b"0"))),
    ("field twice", (("data", "a.txt", "text/plain", b"1"), ("data", "b.txt", "text/plain", b"2"))),
    ("field called body", (("body", "a.txt", "text/plain", b"1"),)),
    ("no field", ()),
)


def group_bodies() -> Group:
    """Return every form of body, to a handler that answers with what it saw."""
    path = "/predictions/echo"
    cases = [infer(name, "POST", path, body, *headers) for name, body, headers in BODIES]
    cases += [infer(f"multipart, {name}", "POST", path, parts(*fields), MULTIPART) for name, fields in FORMS]
    cases += [
        infer("multipart that is none", "POST", path, b"nonsense", MULTIPART),
        infer("multipart without boundary", "POST", path, b"x", ("Content-Type", "multipart/form-data")),
        infer("multipart that breaks off", "POST", path, parts(("data", "a", "", b"1"))[:-9], MULTIPART),
        infer("get without body", "GET", path),
        infer("get with a query", "GET", f"{path}?data=5.0"),
        infer("post without body", "POST", path),
        infer("post with a query and a body", "POST", f"{path}?data=1&extra=2", b"5.0", TEXT),
        infer("put", "PUT", path, b"5.0", TEXT),
        infer("put as curl -T sends it", "PUT", path, b"5.0", ("Expect", "100-continue")),
        infer("delete", "DELETE", path),
        infer("patch", "PATCH", path, b"5.0", TEXT),
        infer("head", "HEAD", path),
        infer("all headers", "POST", "/predictions/headers", b"5.0", TEXT, ("X-Custom", "One"), ("x-lower", "two")),
    ]
    return Group("bodies", tuple(cases), ("echo", "headers"), ("echo", "headers"))


def group_not_decoded() -> Group:
    """Return the bodies that are decoded otherwise, with decode_input_request off."""
    path = "/predictions/echo"
    cases = [
        infer("text", "POST", path, b"5.0", TEXT),
        infer("json", "POST", path, b'{"a": 1}', JSON),
        infer("form", "POST", path, b"data=5.0", FORM),
        infer("multipart text file", "POST", path, parts(("data", "a.txt", "text/plain", b"1")), MULTIPART),
    ]
    config = ("disable_token_authorization=true", "decode_input_request=false")
    return Group("not_decoded", tuple(cases), ("echo",), ("echo",), config)


def group_routes() -> Group:
    """Return every route that leads to a prediction or an explanation."""
    numbers = b'{"instances": [1]}'
    cases = [
        infer("ping with models", "GET", "/ping"),
        infer("version", "POST", "/predictions/echo/1.0", b"x", TEXT),
        infer("version with a slash", "POST", "/predictions/echo/1.0/", b"x", TEXT),
        infer("unknown version", "POST", "/predictions/echo/1.3.1", b"x", TEXT),
        infer("unknown version explained", "POST", "/explanations/echo/1.3.1", b"x", TEXT),
        infer("extra path", "POST", "/predictions/echo/1.0/v1/chat/completions", b"x", TEXT),
        infer("extra path with a query", "POST", "/predictions/echo/1.0/a?b=c", b"x", TEXT),
        infer("trailing slash", "POST", "/predictions/echo/", b"x", TEXT),
        infer("explanation", "POST", "/explanations/echo", b"x", TEXT),
        infer("explanation by GET", "GET", "/explanations/echo"),
        infer("explanation of a version", "POST", "/explanations/echo/1.0", b"x", TEXT),
        infer("explanation with extra path", "POST", "/explanations/echo/1.0/a/b", b"x", TEXT),
        infer("v1 predict", "POST", "/v1/models/echo:predict", numbers, JSON),
        infer("v1 explain", "POST", "/v1/models/echo:explain", numbers, JSON),
        infer("v1 of something else", "POST", "/v1/models/echo:other", numbers, JSON),
        infer("v1 without verb", "GET", "/v1/models/echo"),
        infer("v1 predict by GET", "GET", "/v1/models/echo:predict"),
        infer("v2 infer", "POST", "/v2/models/echo/infer", numbers, JSON),
        infer("v2 explain", "POST", "/v2/models/echo/explain", numbers, JSON),
        infer("v2 of something else", "POST", "/v2/models/echo/other", numbers, JSON),
        infer("v2 infer of a version", "POST", "/v2/models/echo/versions/1.0/infer", numbers, JSON),
        infer("invocations", "POST", "/invocations", b"x", TEXT),
        infer("invocations by name", "POST", "/invocations?model_name=echo&extra=1", b"x", TEXT),
        infer("invocations by a form field", "POST", "/invocations", b"model_name=echo&extra=1", FORM),
        infer("invocations by an unknown name", "POST", "/invocations?model_name=none", b"x", TEXT),
        infer("invoke", "POST", "/models/echo/invoke", b"x", TEXT),
        infer("invoke with a query", "POST", "/models/echo/invoke?extra=1", b"x", TEXT),
        infer("invoke by GET", "GET", "/models/echo/invoke"),
        infer("legacy predict", "POST", "/echo/predict", b"x", TEXT),
        infer("legacy predict with a query", "POST", "/echo/predict?extra=1", b"x", TEXT),
        infer("legacy predict of a version", "POST", "/echo/1.0/predict", b"x", TEXT),
        infer("legacy predict by GET", "GET", "/echo/predict?data=1"),
        infer("described explains", "POST", "/explanations/described", b"3", TEXT),
        infer("described predicts", "POST", "/predictions/described", b"3", TEXT),
        manage("v1 of a model on management", "GET", "/v1/models/echo"),
        manage("v1 of an unknown model on management", "GET", "/v1/models/none"),
        manage("v1 posted on management", "POST", "/v1/models/echo"),
        manage("v1 with a verb on management", "GET", "/v1/models/echo:predict"),
    ]
    return Group("routes", tuple(cases), ("echo", "described"), ("echo", "described"))
