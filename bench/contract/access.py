"""Cases of who may do what: tokens, model control, origins, sizes, and the APIs that are off by default."""

from bench.contract.cases import BYTES, TEXT, Case, Group, Header, infer, manage, scrape

OFF = "disable_token_authorization=true"


def bearer(token: str, scheme: str = "Bearer") -> Header:
    """Return the header that carries `token`."""
    return ("Authorization", f"{scheme} {token}")


def group_tokens() -> Group:
    """Return requests with and without tokens to a server that wants them."""
    mine, theirs, api = bearer("<inference key>"), bearer("<management key>"), bearer("<API key>")
    path = "/predictions/echo"
    cases = [
        infer("ping without", "GET", "/ping"),
        infer("ping", "GET", "/ping", None, mine),
        infer("ping with a wrong one", "GET", "/ping", None, bearer("wrong")),
        infer("ping with the management key", "GET", "/ping", None, theirs),
        infer("ping with the API key", "GET", "/ping", None, api),
        infer("ping in lower case", "GET", "/ping", None, bearer("<inference key>", "bearer")),
        infer("ping with two spaces", "GET", "/ping", None, bearer(" <inference key>")),
        infer("ping with more behind it", "GET", "/ping", None, bearer("<inference key> x")),
        infer("ping with nothing behind it", "GET", "/ping", None, bearer("")),
        infer("ping with another scheme", "GET", "/ping", None, bearer("<inference key>", "Basic")),
        infer("ping with the key alone", "GET", "/ping", None, ("Authorization", "<inference key>")),
        infer("ping with a header in lower case", "GET", "/ping", None, ("authorization", "Bearer <inference key>")),
        infer("prediction without", "POST", path, b"x", TEXT),
        infer("prediction", "POST", path, b"x", TEXT, mine),
        infer("prediction with the token API in its query", "POST", f"{path}?y=/token", b"x", TEXT, mine),
        infer("unknown model without", "POST", "/predictions/none", b"x", TEXT),
        infer("nothing there without", "GET", "/nothing"),
        infer("nothing there", "GET", "/nothing", None, mine),
        infer("root without", "GET", "/"),
        infer("api-description without", "GET", "/api-description"),
        infer("options without", "OPTIONS", "/"),
        infer("options of a model without", "OPTIONS", path),
        scrape("metrics without", "/metrics"),
        manage("list without", "GET", "/models"),
        manage("list", "GET", "/models", None, theirs),
        manage("list with the inference key", "GET", "/models", None, mine),
        manage("list with the API key", "GET", "/models", None, api),
        manage("register without", "POST", "/models?url=echo.mar&model_name=x"),
        manage("register", "POST", "/models?url=echo.mar&model_name=x", None, theirs),
        manage("remove without", "DELETE", "/models/x"),
        manage("scale without", "PUT", "/models/x?min_worker=1"),
        manage("options of a model on management without", "OPTIONS", "/models/echo"),
        manage("token without", "GET", "/token?type=inference"),
        manage("token with the management key", "GET", "/token?type=inference", None, theirs),
        manage("token of no type", "GET", "/token", None, api),
        manage("token of an unknown type", "GET", "/token?type=none", None, api),
        manage("token of the API", "GET", "/token?type=API", None, api),
        manage("token posted", "POST", "/token?type=inference", None, api),
        infer("the first key after all that", "GET", "/ping", None, bearer("<first inference key>")),
        manage("new inference token", "GET", "/token?type=inference", None, api),
        infer("the key that was", "GET", "/ping", None, bearer("<first inference key>")),
        infer("the key that is", "GET", "/ping", None, mine),
        manage("new management token", "GET", "/token?type=management", None, api),
        manage("the management key that was", "GET", "/models", None, bearer("<first management key>")),
        manage("the management key that is", "GET", "/models", None, theirs),
        manage("the token API in a query", "GET", "/models?x=/token", None, theirs),
        infer("token on inference", "GET", "/token?type=inference", None, api),
        scrape("token on metrics", "/token?type=inference"),
    ]
    return Group("tokens", tuple(cases), ("echo",), ("echo",), ("enable_model_api=true",))


def group_expired() -> Group:
    """Return tokens that are over after a second."""
    mine, api = bearer("<inference key>"), bearer("<API key>")
    cases = [
        infer("expires", "GET", "/ping", None, mine, until="InvalidKey"),
        manage("new token", "GET", "/token?type=inference", None, api),
        infer("is new again", "GET", "/ping", None, mine),
    ]
    return Group("expired", tuple(cases), config=("token_expiration_min=0.03",))


def group_model_control_off() -> Group:
    """Return the management of a server that allows no change of its models, which is the default."""
    cases = [
        manage("register", "POST", "/models?url=echo.mar&model_name=x"),
        manage("register without url", "POST", "/models"),
        manage("remove", "DELETE", "/models/echo"),
        manage("remove a version", "DELETE", "/models/echo/1.0"),
        manage("remove an unknown model", "DELETE", "/models/none"),
        manage("list", "GET", "/models"),
        manage("describe", "GET", "/models/echo"),
        manage("scale", "PUT", "/models/echo?min_worker=1&synchronous=true"),
        manage("set default", "PUT", "/models/echo/1.0/set-default"),
        infer("predict", "POST", "/predictions/echo", b"x", TEXT),
    ]
    return Group("model_control_off", tuple(cases), ("echo",), ("echo",), (OFF,))


def group_allowed_urls() -> Group:
    """Return registrations from where the server may not fetch."""
    urls = [
        ("another host", "http://127.0.0.1:1/x.mar"),
        ("the allowed host, which is not there", "http://localhost:1/x.mar"),
        ("the allowed host before an at", "http://localhost:1@127.0.0.1:1/x.mar"),
        ("the allowed host, relative", "http://localhost:1/../x.mar"),
        ("a file", "file:///etc/passwd"),
        ("the model store", "echo.mar"),
    ]
    cases = [manage(name, "POST", f"/models?url={url}") for name, url in urls]
    config = (OFF, "enable_model_api=true", "allowed_urls=http://localhost:1/.*")
    return Group("allowed_urls", tuple(cases), ("echo",), config=config)


def group_cors() -> Group:
    """Return requests from a page of an allowed origin, and of another."""
    origin, other = ("Origin", "https://example.com"), ("Origin", "https://example.org")
    asks = (("Access-Control-Request-Method", "POST"), ("Access-Control-Request-Headers", "content-type"))
    cases = []
    for role in ("inference", "management", "metrics"):
        cases.append(Case(f"options of {role}", role, "OPTIONS", "/", (origin, *asks)))
    cases += [
        infer("ping", "GET", "/ping", None, origin),
        infer("ping of another origin", "GET", "/ping", None, other),
        infer("ping without origin", "GET", "/ping"),
        infer("options of a prediction", "OPTIONS", "/predictions/echo", None, origin, *asks),
        infer("prediction", "POST", "/predictions/echo", b"x", TEXT, origin),
        infer("error", "POST", "/predictions/none", b"x", TEXT, origin),
        scrape("metrics", "/metrics"),
    ]
    config = (OFF, "cors_allowed_origin=https://example.com", "cors_allowed_methods=GET, POST, PUT, OPTIONS")
    return Group("cors", tuple(cases), ("echo",), ("echo",), (*config, "cors_allowed_headers=X-Custom"))


def group_sizes() -> Group:
    """Return requests and answers over and under the limits of two thousand bytes."""
    path, many = "/predictions/answers", b"x" * 3000
    chunks = b"bb8\r\n" + many + b"\r\n0\r\n\r\n"
    cases = [
        infer("at the limit", "POST", path, b"x" * 2000, TEXT),
        infer("one over the limit", "POST", path, b"x" * 2001, TEXT),
        infer("over the limit", "POST", path, many, BYTES),
        infer("over the limit, asking first", "POST", path, many, BYTES, ("Expect", "100-continue")),
        infer("over the limit in chunks", "POST", path, chunks, BYTES, ("Transfer-Encoding", "chunked")),
        infer("over the limit and of an unknown model", "POST", "/predictions/none", many, BYTES),
        manage("over the limit on management", "POST", "/models", many, BYTES),
        infer("an answer over the limit", "POST", path, b"large", TEXT, seconds=10),
        infer("afterwards", "POST", path, b"int", TEXT, until="^7$"),
    ]
    config = (OFF, "max_request_size=2000", "max_response_size=2000")
    return Group("sizes", tuple(cases), ("answers",), ("answers",), config)


def group_open_inference() -> Group:
    """Return the routes of the Open Inference Protocol, which are off by default."""
    paths = ("/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready", "/v2/models/echo", "/v2/health")
    cases = [infer(f"GET {path}", "GET", path) for path in paths]
    cases += [
        infer("POST /v2", "POST", "/v2", b"{}"),
        infer("of a version", "GET", "/v2/models/echo/versions/1.0/ready"),
        infer("infer of a version", "POST", "/v2/models/echo/versions/1.0/infer", b"{}"),
        infer("infer", "POST", "/v2/models/echo/infer", b"{}"),
    ]
    variables = (("TS_OPEN_INFERENCE_PROTOCOL", "oip"),)
    return Group("open_inference", tuple(cases), ("echo",), ("echo",), (OFF,), variables)


def group_workflows() -> Group:
    """Return what is asked of the workflow API."""
    cases = [
        manage("list", "GET", "/workflows"),
        manage("register", "POST", "/workflows?url=none.war"),
        manage("register without url", "POST", "/workflows"),
        manage("describe", "GET", "/workflows/none"),
        manage("remove", "DELETE", "/workflows/none"),
        manage("put", "PUT", "/workflows/none"),
        infer("predict", "POST", "/wfpredict/none", b"x", TEXT),
        infer("predict alone", "POST", "/wfpredict", b"x", TEXT),
    ]
    return Group("workflows", tuple(cases))
