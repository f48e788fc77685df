"""Cases of the management port: register, scale, describe, list, set default, unregister."""

from bench.contract.cases import JSON, TEXT, Case, Group, infer, manage

ARCHIVES = ("version1", "version2", "version3", "echo", "described", "broken", "nameless", "no_manifest", "configured")
READY = '"READY"'
REFUSED = (
    ("no url", "/models"),
    ("no url but a name", "/models?model_name=x"),
    ("empty url", "/models?url="),
    ("not found", "/models?url=none.mar"),
    ("no archive", "/models?url=none"),
    ("relative", "/models?url=../version1.mar"),
    ("relative, encoded", "/models?url=..%2Fversion1.mar"),
    ("relative inside", "/models?url=a/../version1.mar"),
    ("file of the system", "/models?url=file:///etc/passwd"),
    ("folder of the system", "/models?url=/etc"),
    ("nobody there to download from", "/models?url=http://127.0.0.1:1/x.mar"),
    ("not a scheme", "/models?url=ftp://127.0.0.1/x.mar"),
    ("unknown runtime", "/models?url=version1.mar&runtime=ruby"),
    ("a handler that is not there", "/models?url=version1.mar&handler=none&initial_workers=1&startup_timeout=20"),
)


def group_register() -> Group:
    """Return every way to register a model, well and badly."""
    cases = [manage(name, "POST", path) for name, path in REFUSED]
    return Group("register", (*cases, *_versions(), *_parameters(), *_failing()), ARCHIVES)


def _versions() -> list[Case]:
    return [
        manage("describe after a handler that is not there", "GET", "/models/version", until=""),
        manage("remove it", "DELETE", "/models/version"),
        manage("register", "POST", "/models?url=version1.mar"),
        manage("register again", "POST", "/models?url=version1.mar"),
        manage("describe", "GET", "/models/version"),
        infer("predict without worker", "POST", "/predictions/version", b"x", TEXT),
        infer("predict a version without worker", "POST", "/predictions/version/1.0", b"x", TEXT),
        infer("explain without worker", "POST", "/explanations/version", b"x", TEXT),
        manage("describe itself without worker", "GET", "/models/version?customized=true"),
        manage("ready without worker", "GET", "/v1/models/version"),
        infer("ping without worker", "GET", "/ping"),
        manage("second version with worker", "POST", "/models?url=version2.mar&initial_workers=1&synchronous=true"),
        infer("predict the second version", "POST", "/predictions/version/2.0", b"x", TEXT),
        infer("predict the default version", "POST", "/predictions/version", b"x", TEXT),
        manage("third version, not waited for", "POST", "/models?url=version3.mar&initial_workers=1&synchronous=false"),
        infer("predict the third version", "POST", "/predictions/version/3.0-beta", b"x", TEXT, until="^3.0-beta$"),
        manage("describe all versions", "GET", "/models/version/all", until="(?s)READY.*READY"),
    ]


def _parameters() -> list[Case]:
    return [
        manage("another name", "POST", "/models?url=echo.mar&model_name=other&batch_size=8&max_batch_delay=5&response_timeout=7"),
        manage("describe the other name", "GET", "/models/other"),
        manage("junk for numbers", "POST", "/models?url=echo.mar&model_name=junk&batch_size=x&initial_workers=y&synchronous=z"),
        manage("describe the junk", "GET", "/models/junk"),
        manage("negative numbers", "POST", "/models?url=echo.mar&model_name=minus&batch_size=-1&initial_workers=-2"),
        manage("describe the negative", "GET", "/models/minus"),
        manage("archive without a name", "POST", "/models?url=nameless.mar"),
        manage("archive without a name, named", "POST", "/models?url=nameless.mar&model_name=named"),
        manage("archive without manifest", "POST", "/models?url=no_manifest.mar&model_name=bare&handler=echo.py"),
        manage("describe the archive without manifest", "GET", "/models/bare"),
        manage("odd name", "POST", "/models?url=echo.mar&model_name=a%20%2F%22b"),
        manage("archive with settings", "POST", "/models?url=configured.mar"),
        manage("describe the archive with settings", "GET", "/models/configured", until=READY),
    ]


def _failing() -> list[Case]:
    return [
        manage("broken, waited for", "POST", "/models?url=broken.mar&initial_workers=1&startup_timeout=20", seconds=90),
        manage("describe the broken one", "GET", "/models/broken"),
        manage("broken again", "POST", "/models?url=broken.mar&initial_workers=1&startup_timeout=20", seconds=90),
        infer("predict the broken one", "POST", "/predictions/broken", b"x", TEXT, seconds=10),
        infer("ping beside a broken one", "GET", "/ping"),
        manage("put to models", "PUT", "/models"),
        manage("delete of models", "DELETE", "/models"),
        manage("patch of models", "PATCH", "/models"),
        manage("post to a model", "POST", "/models/version"),
        manage("patch of a model", "PATCH", "/models/version"),
        manage("head of a model", "HEAD", "/models/version"),
    ]


def group_register_by_json() -> Group:
    """Return registrations whose parameters come as JSON."""
    bodies = [
        ("all members", b'{"url": "echo.mar", "model_name": "a", "batch_size": 4, "max_batch_delay": 50, "initial_workers": 1}'),
        ("url only", b'{"url": "echo.mar", "model_name": "b"}'),
        ("numbers as text", b'{"url": "echo.mar", "model_name": "c", "batch_size": "4", "max_batch_delay": 5}'),
        ("unknown member", b'{"url": "echo.mar", "model_name": "d", "what": 1, "max_batch_delay": 5}'),
        ("no url", b'{"model_name": "e"}'),
        ("broken", b'{"url": '),
        ("a list", b"[]"),
        ("empty", b""),
    ]
    cases = []
    for name, body in bodies:
        cases.append(manage(name, "POST", "/models", body, JSON))
        if name in ("all members", "url only", "numbers as text", "unknown member"):
            cases.append(manage(f"describe {name}", "GET", f"/models/{body.decode().split('model_name')[1][4]}"))
    cases += [
        manage("not called JSON", "POST", "/models", b'{"url": "echo.mar", "model_name": "f"}', TEXT),
        manage("JSON with a charset", "POST", "/models", b'{"url": "echo.mar", "model_name": "g"}', _CHARSET),
        manage("beside a query", "POST", "/models?model_name=h", b'{"url": "echo.mar"}', JSON),
        manage("a query with the type of JSON", "POST", "/models?url=echo.mar&model_name=i", None, JSON),
        manage("a form", "POST", "/models", b"url=echo.mar&model_name=j", _FORM),
        manage("list", "GET", "/models"),
    ]
    return Group("register_by_json", tuple(cases), ("echo",))


def group_scale() -> Group:
    """Return every way to change the number of workers."""
    queries = [
        ("to two, waited for", "?min_worker=2&synchronous=true"),
        ("a version, waited for", "/1.0?min_worker=1&synchronous=true"),
        ("without numbers, waited for", "?synchronous=true"),
        ("less than the least", "?min_worker=3&max_worker=2"),
        ("negative", "?min_worker=-1"),
        ("negative at most", "?max_worker=-1"),
        ("junk", "?min_worker=x&synchronous=true"),
        ("junk at most", "?min_worker=1&max_worker=x&synchronous=true"),
        ("other parameters", "?min_worker=1&timeout=x&number_gpu=y&what=z&synchronous=true"),
        ("in capitals", "?min_worker=1&synchronous=TRUE"),
        ("unknown version", "/9.9?min_worker=1"),
        ("at most four", "?min_worker=1&max_worker=4&synchronous=true"),
    ]
    cases: list[Case] = []
    for name, query in queries:
        cases.append(manage(name, "PUT", f"/models/version{query}"))
    cases += [
        manage("describe", "GET", "/models/version"),
        manage("unknown model", "PUT", "/models/none?min_worker=1"),
        manage("with a body", "PUT", "/models/version?min_worker=1", b'{"min_worker": 2}', JSON),
        manage("to two, not waited for", "PUT", "/models/version?min_worker=2"),
        manage("describe two", "GET", "/models/version", until="(?s)READY.*READY"),
        manage("to none, waited for", "PUT", "/models/version?min_worker=0&synchronous=true"),
        manage("describe none", "GET", "/models/version", until=r'"workers": \[\]'),
        infer("predict without worker", "POST", "/predictions/version", b"x", TEXT),
        infer("ping without worker", "GET", "/ping"),
        manage("to none with one at most", "PUT", "/models/version?min_worker=0&max_worker=1&synchronous=true"),
        manage("back to one, waited for", "PUT", "/models/version?min_worker=1&synchronous=true"),
        infer("predict again", "POST", "/predictions/version", b"x", TEXT),
        manage("one that cannot start", "PUT", "/models/broken?min_worker=1&synchronous=true", seconds=90),
    ]
    first = manage("register the broken one", "POST", "/models?url=broken.mar&startup_timeout=20&initial_workers=0")
    return Group("scale", (first, *cases), ("version1", "broken"), ("version1",))


def group_versions() -> Group:
    """Return the choice of the default version, and the removal of versions and models."""
    cases = [
        manage("register 1.0", "POST", "/models?url=version1.mar&initial_workers=1"),
        manage("register 2.0", "POST", "/models?url=version2.mar&initial_workers=1"),
        infer("the first is the default", "POST", "/predictions/version", b"x", TEXT),
        manage("describe a version", "GET", "/models/version/2.0"),
        manage("describe an unknown version", "GET", "/models/version/9.9"),
        manage("describe an unknown model", "GET", "/models/none"),
        manage("describe all of an unknown model", "GET", "/models/none/all"),
        manage("describe with more", "GET", "/models/version/2.0/more"),
        manage("describe with a slash", "GET", "/models/version/"),
        manage("set default", "PUT", "/models/version/2.0/set-default"),
        infer("the new default", "POST", "/predictions/version", b"x", TEXT),
        manage("set the same default", "PUT", "/models/version/2.0/set-default"),
        manage("set an unknown default", "PUT", "/models/version/9.9/set-default"),
        manage("set the default of an unknown model", "PUT", "/models/none/1.0/set-default"),
        manage("set default by GET", "GET", "/models/version/2.0/set-default"),
        manage("set default without version", "PUT", "/models/version/set-default"),
        manage("something else of a version", "PUT", "/models/version/2.0/other"),
        manage("list", "GET", "/models"),
        manage("remove the default of two", "DELETE", "/models/version/2.0"),
        manage("remove the default of two without saying so", "DELETE", "/models/version"),
        manage("remove an unknown version", "DELETE", "/models/version/9.9"),
        manage("remove an unknown model", "DELETE", "/models/none"),
        manage("remove a version", "DELETE", "/models/version/1.0?timeout=x"),
        infer("predict what is removed", "POST", "/predictions/version/1.0", b"x", TEXT),
        manage("remove the last version", "DELETE", "/models/version"),
        infer("predict what is gone", "POST", "/predictions/version", b"x", TEXT),
        manage("remove it again", "DELETE", "/models/version"),
        manage("list none", "GET", "/models"),
        manage("register anew", "POST", "/models?url=version1.mar"),
        manage("remove all versions", "DELETE", "/models/version/all"),
    ]
    return Group("versions", tuple(cases), ("version1", "version2"))


def group_list() -> Group:
    """Return the list of five models in every size of page."""
    names = ("b", "a", "D", "c", "e")
    cases = [manage(f"register {name}", "POST", f"/models?url=echo.mar&model_name={name}") for name in names]
    queries = (
        *("", "limit=2", "limit=2&next_page_token=2", "limit=2&next_page_token=4", "limit=5", "limit=4", "limit=6"),
        *("limit=0", "limit=-1", "limit=101", "limit=100", "limit=x", "limit=", "next_page_token=3", "next_page_token=5"),
        *("next_page_token=99", "next_page_token=-1", "next_page_token=x", "limit=1&next_page_token=4", "limit=2.0"),
    )
    cases += [manage(f"list {query}", "GET", f"/models?{query}" if query else "/models") for query in queries]
    cases += [manage("list with a slash", "GET", "/models/"), manage("head of the list", "HEAD", "/models")]
    return Group("list", tuple(cases), ("echo",))


def group_describe_itself() -> Group:
    """Return models that are asked to describe themselves."""
    cases = [
        manage("describes itself", "GET", "/models/described?customized=true"),
        manage("describes its version", "GET", "/models/described/1.0?customized=true"),
        manage("describes all its versions", "GET", "/models/described/all?customized=true"),
        manage("is not asked to", "GET", "/models/described?customized=false"),
        manage("is asked otherwise", "GET", "/models/described?customized=1"),
        manage("cannot", "GET", "/models/count?customized=true"),
        manage("answers with a list of one", "GET", "/models/version?customized=true"),
    ]
    loaded = ("described", "count", "version1")
    return Group("describe_itself", tuple(cases), loaded, loaded)


_CHARSET = ("Content-Type", "application/json; charset=utf-8")
_FORM = ("Content-Type", "application/x-www-form-urlencoded")
