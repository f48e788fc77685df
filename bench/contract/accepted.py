"""The differences from TorchServe that are meant. Each is a row of the table in docs/torchserve.md, in the same words."""

from bench.contract.compare import NOTHING, Accepted

ANY = ".*"
FAILED_JSON = "broken|a list|empty|a query with the type of JSON"

ACCEPTED = (
    Accepted(
        "Every answer has `Date` and `Server`.",
        "HTTP asks for `Date`; Gunicorn sends both.",
        "header (date|server)",
        theirs=NOTHING,
    ),
    Accepted(
        "The status line of a prediction says `200 OK` and not just `200`.",
        "Some clients and proxies trip over an empty phrase.",
        "reason",
        theirs="",
    ),
    Accepted(
        "The phrase of a status is HTTP's present one.",
        "413 is `Content Too Large` since RFC 9110, and a proxy may change phrases anyway.",
        "reason",
        theirs=r"Request Entity Too Large|Server Error \(599\)",
    ),
    Accepted(
        "A prediction has a `Content-Type` where the handler sets none: JSON or text, by what it returned.",
        "Clients and browsers would have to guess.",
        "header content-type",
        theirs=NOTHING,
    ),
    Accepted(
        "A client that asks for `Connection: close`, or speaks HTTP/1.0, gets it.",
        "TorchServe answers `keep-alive` and keeps the connection open; old clients wait for its end.",
        "header connection",
        case=".*(close|HTTP/1.0).*",
    ),
    Accepted(
        "The client's own `x-request-id` is kept if it is well formed.",
        "One request can be followed through all logs.",
        "header x-request-id",
        case="ping with the client's own id",
        ours="mine",
    ),
    Accepted(
        "A request without `Host`, or with one that is malformed, is refused with 400.",
        "HTTP/1.1 demands it; TorchServe does not look.",
        ANY,
        case="ping without host",
    ),
    Accepted(
        "A body that is too big gets a JSON error with 413, and the connection ends.",
        "TorchServe sends no body, and the reason is what users asked for.",
        ANY,
        group="sizes",
        case="one over the limit|over the limit.*",
    ),
    Accepted(
        "An answer of more than `max_response_size` is sent, or is an error of its own; no worker is killed.",
        "TorchServe kills the worker with everything that waits for it.",
        ANY,
        group="sizes",
        case="an answer over the limit",
    ),
    Accepted(
        "A request that fails in a batch fails alone.",
        "A failed batch is run again one by one.",
        ANY,
        group="batches",
        case="one of four is bad",
    ),
    Accepted(
        "A full queue has a message of its own and `Retry-After`.",
        "TorchServe says that there is no worker, and nobody can tell one from the other.",
        "body message|header retry-after",
        group="queue",
    ),
    Accepted(
        "JSON that cannot be read is answered with 400 and a sentence.",
        "TorchServe shows a Java exception with 500.",
        ANY,
        group="register_by_json",
        case=FAILED_JSON,
    ),
    Accepted(
        "`max_batch_delay` is 100 ms where a JSON registration does not give it.",
        "TorchServe takes -10000.",
        "body maxBatchDelay",
        theirs="-10000",
        ours="100",
    ),
    Accepted(
        "`min_worker=-1` is answered with 400.",
        "TorchServe shows a Java exception with 500.",
        ANY,
        group="scale",
        case="negative",
    ),
    Accepted(
        "A model that cannot start is not registered.",
        "TorchServe keeps it without a worker, and registering it again is a conflict.",
        ANY,
        group="register",
        case="describe the broken one|broken again|predict the broken one|broken, waited for",
    ),
    Accepted(
        "A file outside the model store is not found.",
        "TorchServe tries to copy `/etc/passwd` and answers 500, and takes any folder of the machine for a model.",
        ANY,
        group="register",
        case="(file|folder) of the system",
    ),
    Accepted(
        "Only the path `/token` is the token API.",
        "TorchServe looks for the text anywhere in a request, also in its query.",
        ANY,
        group="tokens",
        case="the token API in a query",
    ),
    Accepted(
        "Metrics are served in every mode.",
        "`metrics_mode=log` is TorchServe's default, and its page is empty; Prometheus is what dashboards read.",
        ANY,
        group="metrics_log|tokens|cors|without_models",
        case="metrics|metrics without|post to metrics",
    ),
    Accepted(
        "Workflows cannot be registered: 400, `Registering new workflows is disabled.`",
        "TorchServe's own last version switched them off.",
        ANY,
        group="workflows|without_models",
        case=".*",
        theirs=".*",
        ours=".*(BadRequest|400|disabled).*",
    ),
)
