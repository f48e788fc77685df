"""The requests that an OpenAPI document describes, made from it alone, as a newcomer would paste them together."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urljoin

from jsonschema import Draft202012Validator

from tests.server import multipart

# Method, path, body, headers -> status, content type, body.
Send = Callable[[str, str, bytes | None, dict[str, str]], tuple[int, str, bytes]]
METHODS = ("get", "post", "put", "patch", "delete")


@dataclasses.dataclass(frozen=True)
class Described:
    """A request of the document, and what it says of the answer: content type -> schema."""

    name: str
    method: str
    path: str
    body: bytes | None
    headers: dict[str, str]
    gives: Mapping[str, Any]


def described(document: dict[str, Any], send: Send) -> Iterator[Described]:
    """Give every request whose parts the document has: one for each example, and GETs that need nothing."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield from _of_operation(document, path, method, item[method], send)


def _of_operation(
    document: dict[str, Any], path: str, method: str, operation: dict[str, Any], send: Send
) -> Iterator[Described]:
    base = document["servers"][0]["url"].rstrip("/")
    gives = {kind: media["schema"] for kind, media in operation["responses"]["200"].get("content", {}).items()}
    parameters = operation["parameters"]
    content = operation.get("requestBody", {}).get("content", {})
    bodies = [(key, kind, media, each) for kind, media in content.items() for key, each in media.get("examples", {}).items()]
    if not bodies:
        keys = {key for parameter in parameters for key in parameter.get("examples", {})}
        needs = [parameter for parameter in parameters if parameter["required"]]
        keys = keys or ({""} if method == "get" and not needs else set())
        bodies = [(key, "", {}, None) for key in sorted(keys)]
    for key, kind, media, example in bodies:
        values = {each["name"]: each["examples"][key]["value"] for each in parameters if key in each.get("examples", {})}
        places = {each["name"]: each["in"] for each in parameters}
        address = path
        headers = {name: value for name, value in values.items() if places[name] == "header"}
        for name, value in values.items():
            address = address.replace(f"{{{name}}}", quote(value, safe=""))
        body, type_ = (None, "") if example is None else _body(kind, media, example, send)
        if type_:
            headers["Content-Type"] = type_
        yield Described(f"{method} {path} {key}", method.upper(), base + address, body, headers, gives)


def _body(kind: str, media: dict[str, Any], example: dict[str, Any], send: Send) -> tuple[bytes, str]:
    if "externalValue" in example:
        return fetch(example["externalValue"], send), kind
    value = example["value"]
    if kind == "application/x-www-form-urlencoded":
        return urlencode(value).encode(), kind
    if kind == "multipart/form-data":
        listed = [(name, each) for name, many in value.items() for each in (many if isinstance(many, list) else [many])]
        return multipart([(name, f"{number}.png", fetch(each, send)) for number, (name, each) in enumerate(listed)])
    return value.encode() if isinstance(value, str) else json.dumps(value).encode(), kind


def fetch(reference: str, send: Send) -> bytes:
    """Return the file that an example names, relative to the document."""
    status, _, content = send("GET", urljoin("/openapi.json", reference), None, {})
    assert status == 200, reference
    return content


def complaints(document: dict[str, Any], send: Send) -> list[str]:
    """Send every request of the document, and return what is wrong with the requests and their answers."""
    found, count = [], 0
    for each in described(document, send):
        count += 1
        status, kind, body = send(each.method, each.path, each.body, each.headers)
        if status != 200:
            found.append(f"{each.name}: {status} {body[:300]!r}")
        elif reason := _misfit(document, kind, body, each.gives):
            found.append(f"{each.name}: {reason}")
    assert count, "the document describes no request"
    return found


def _misfit(document: dict[str, Any], kind: str, body: bytes, gives: Mapping[str, Any]) -> str:
    """Say how an answer differs from what the document promises; "" if it does not."""
    if not gives:  # of an answer that nothing is said of
        return ""
    promised = [each for each in gives if kind.partition(";")[0] == each.partition(";")[0]]
    if not promised:
        return f"an answer of the type {kind} is not described, but {list(gives)}"
    if promised[0] != "application/json":
        return ""
    schema = {**gives[promised[0]], "components": document["components"]}
    return "; ".join(error.message[:200] for error in Draft202012Validator(schema).iter_errors(json.loads(body)))


def misfit_examples(document: dict[str, Any]) -> list[str]:
    """Return which JSON examples of requests do not fit the schemas beside them."""
    found = []
    for path, item in document["paths"].items():
        for operation in item.values():
            for kind, media in operation.get("requestBody", {}).get("content", {}).items():
                validator = Draft202012Validator({**media["schema"], "components": document["components"]})
                for key, example in media.get("examples", {}).items():
                    if "value" in example:
                        errors = validator.iter_errors(example["value"])
                        found += [f"{path} {kind} {key}: {error.message[:200]}" for error in errors]
    return found
