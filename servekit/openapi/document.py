"""From routes, docstrings, signatures and examples to the OpenAPI 3.1 document, put together by apispec."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from inspect import getdoc
from typing import Any

from apispec import APISpec
from werkzeug.routing import Rule

from servekit import __version__
from servekit.codecs.arrays import dump_json, load_json
from servekit.model import Model
from servekit.openapi import FORM, JSON, MULTIPART, Example
from servekit.openapi.contracts import ERROR, ERRORS, OF_DEFAULT, Bodies, bodies_of

log = logging.getLogger(__name__)

VERSION = "3.1.1"
MAX_EXAMPLE_BYTES = 2**16  # a larger one is no example; the document holds some for each contract and model
MAX_MODELS = 50  # that are described one by one, the first by name

ABOUT = (
    "Made from what this server serves now. Examples of one name belong together: those of the path, of the header and "
    "of the body make a request that works. Where the body of an example is a file, it is fetched from its "
    "`externalValue`; a form's file from the address that stands in its field."
)

Examine = Callable[[Model], Iterable[Example]]

_VARIABLE = re.compile(r"<(?:(\w+)(?:\(([^)]*)\))?:)?(\w+)>")  # of a path: <int:page>, <any(cold, warm):state>
_FIRST_SENTENCE = re.compile(r"(.+?)(?:[.](?=\s|$)|$)")
_MODEL_NAMES = {"name", "model", "model_name"}
_OWN_METHODS = {"HEAD", "OPTIONS"}  # Flask answers them everywhere
_REFUSES = "Refuse"  # how the docstrings of views begin that answer nothing else
_WITH_BODY = {"POST", "PUT", "PATCH"}
# Of views that are another package's.
_UNEXPLAINED = {"prometheus_metrics": "Give the metrics of all workers, as Prometheus reads them; `?name[]=` selects."}
_SCHEME = "key"  # the name of how a key is sent
_TEXTS = ("text/", "application/jsonl", "application/x-ndjson")


@dataclasses.dataclass(frozen=True)
class Group:
    """A contract: its routes, what it says of itself, and where its examples come from."""

    name: str
    about: str
    rules: list[Rule]
    examine: Examine | None = None


@dataclasses.dataclass(frozen=True)
class Document:
    """The document as JSON, and the files that its examples name: file name -> content and its type."""

    body: bytes
    files: Mapping[str, tuple[bytes, str]]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """The models that answer where an address names no version, the one where it names no model, and all names."""

    models: list[Model]
    default: Model | None
    names: list[str]


def make(
    groups: Iterable[Group],
    views: Mapping[str, Callable[..., Any]],
    loaded: Loaded,
    need_key: Collection[str] = (),
) -> Document:
    """Return the document of `groups`, whose routes lead to `views`; those called `need_key` ask for a key."""
    return _Maker(views, loaded, need_key).make(groups)


class _Maker:
    def __init__(self, views: Mapping[str, Callable[..., Any]], loaded: Loaded, need_key: Collection[str]) -> None:
        self._views, self._need_key = views, need_key
        self._loaded = loaded
        self._taken: set[tuple[str, str]] = set()  # of two routes with one address the first answers
        self._files: dict[str, tuple[bytes, str]] = {}
        self._identities: set[str] = set()
        self._spec = APISpec(
            "servekit", __version__, VERSION, info={"description": ABOUT}, servers=[{"url": "/"}]
        )
        if need_key:
            self._spec.components.security_scheme(_SCHEME, {"type": "http", "scheme": "bearer"})

    def make(self, groups: Iterable[Group]) -> Document:
        for group in groups:
            self._spec.tag({"name": group.name, "description": group.about})
            models = self._loaded.models[:MAX_MODELS]
            given = [(model, each) for model in models for each in _examples(group, model)]
            for rule in _ordered(group.rules):
                self._add(group.name, rule, [(model, each) for model, each in given if self._fits(model, each, rule)])
        body = json.dumps(self._spec.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Document(body.encode(), self._files)

    def _fits(self, model: Model, example: Example, rule: Rule) -> bool:
        is_for = not rule.endpoint.startswith(OF_DEFAULT) or self._loaded.default is model
        return is_for and example.endpoint == rule.endpoint and set(example.values) == rule.arguments

    def _add(self, tag: str, rule: Rule, given: list[tuple[Model, Example]]) -> None:
        path = _VARIABLE.sub(r"{\3}", rule.rule)
        examples = _named((model, each) for model, each in given if _is_small(each))
        signatures = list({model.name: model.signature for model, _ in given if model.signature}.values())
        operations = {}
        for method in _methods(rule, [each for _, each in given]):
            mine = {key: each for key, each in examples.items() if _method_of(each, rule) == method}
            operation = self._operation(tag, rule, method, mine, bodies_of(rule.endpoint, signatures))
            if (path, method) not in self._taken and not operation["summary"].startswith(_REFUSES):
                operations[method.lower()] = {**operation, "operationId": self._identity(rule, method)}
                self._taken.add((path, method))
        if operations:
            self._spec.path(path, operations=operations)

    def _operation(
        self, tag: str, rule: Rule, method: str, examples: Mapping[str, Example], bodies: Bodies
    ) -> dict[str, Any]:
        summary, text = _sentences(getdoc(self._views[rule.endpoint]) or _UNEXPLAINED.get(rule.endpoint, ""))
        operation: dict[str, Any] = {
            "tags": [tag],
            "summary": summary,
            "parameters": [*self._of_path(rule, examples), *_of_header(examples)],
        }
        if text:
            operation["description"] = text
        if rule.endpoint in self._need_key:
            operation["security"] = [{_SCHEME: []}]
        if method in _WITH_BODY and (content := self._content(bodies.takes, examples)):
            operation["requestBody"] = {"required": True, "content": content}
        answer: dict[str, Any] = {"description": "The answer."}
        if bodies.gives:
            answer["content"] = {kind: {"schema": schema} for kind, schema in bodies.gives.items()}
        operation["responses"] = {"200": answer, "default": self._error(rule.endpoint.rpartition(".")[0])}
        return operation

    def _of_path(self, rule: Rule, examples: Mapping[str, Example]) -> list[dict[str, Any]]:
        parameters = []
        for kind, choices, name in _VARIABLE.findall(rule.rule):
            schema: dict[str, Any] = {"type": "integer" if kind == "int" else "string"}
            text = f"The {name.replace('_', ' ')}."
            if kind == "any":
                schema["enum"] = re.findall(r"[^\s,'\"]+", choices)
            if name in _MODEL_NAMES:
                schema["enum"], text = self._loaded.names, "The name of a loaded model."
            parameter = {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
            if examples:
                parameter["examples"] = {key: {"value": each.values[name]} for key, each in examples.items()}
            parameters.append(parameter)
        return parameters

    def _content(self, takes: Mapping[str, Any], examples: Mapping[str, Example]) -> dict[str, Any]:
        content: dict[str, Any] = {kind: {"schema": schema} for kind, schema in takes.items()}
        for key, each in examples.items():
            media = content.setdefault(each.content_type, {"schema": {}})
            media.setdefault("examples", {})[key] = {"summary": f"{key}: {each.summary}".removesuffix(": ")} | self._literal(each)
        return content

    def _literal(self, example: Example) -> dict[str, Any]:
        """Return the body of `example` where it can stand in the document, else where it can be fetched."""
        if example.content_type in (FORM, MULTIPART):
            return {"value": {name: self._field(value) for name, value in example.body.items()}}
        if not isinstance(example.body, bytes):
            return {"value": load_json(dump_json(example.body))}
        if _is_json(example.content_type):
            return {"value": load_json(example.body)}
        if example.content_type.startswith(_TEXTS):
            return {"value": example.body.decode()}
        return {"externalValue": self._file(example.body, example.content_type)}

    def _field(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._field(each) for each in value]
        return self._file(value, "image/png") if isinstance(value, bytes) else value

    def _file(self, content: bytes, kind: str) -> str:
        ending = "png" if kind == "image/png" else "bin"
        name = f"{hashlib.sha256(content).hexdigest()[:12]}.{ending}"
        self._files[name] = (content, kind)
        return f"docs/{name}"

    def _error(self, blueprint: str) -> str:
        """Return the name of the form that the errors of a contract have, described once."""
        name = "".join(map(str.title, blueprint.split("_"))) + "Error" if blueprint in ERRORS else "Error"
        if name not in self._spec.components.schemas:
            self._spec.components.schema(name, dict(ERRORS.get(blueprint, ERROR)))
            content = {JSON: {"schema": name}}
            text = "The request was not answered; the status says whose fault it is, the sentence what to do."
            self._spec.components.response(name, {"description": text, "content": content})
        return name

    def _identity(self, rule: Rule, method: str) -> str:
        """Return what clients that are generated call the operation: one name each, the same in every document."""
        base = rule.endpoint.replace(".", "_")
        variables = [name for *_, name in _VARIABLE.findall(rule.rule)]
        longer = ["_".join([base, *variables[count:]]) for count in range(len(variables), -1, -1)]
        names = [*longer, f"{longer[-1]}_{method.lower()}", *(f"{longer[-1]}_{count}" for count in range(2, 100))]
        identity = next(name for name in names if name not in self._identities)
        self._identities.add(identity)
        return identity


def _examples(group: Group, model: Model) -> list[Example]:
    """Return what a contract gives for `model`; where that fails, the rest of the document is worth having."""
    try:
        return list(group.examine(model)) if group.examine else []
    except Exception:
        log.exception("There are no examples of %s for the model %s", group.name, model.name)
        return []


def _is_small(example: Example) -> bool:
    if example.body is None or example.content_type in (FORM, MULTIPART):
        return True
    content = example.body if isinstance(example.body, bytes) else dump_json(example.body)
    return len(content) <= MAX_EXAMPLE_BYTES


def _ordered(rules: list[Rule]) -> list[Rule]:
    """Return the routes in their order, of those to one view the one with the fewest variables first."""
    order = {endpoint: place for place, endpoint in enumerate(dict.fromkeys(rule.endpoint for rule in rules))}
    return sorted(rules, key=lambda rule: (order[rule.endpoint], len(rule.arguments)))


def _named(given: Iterable[tuple[Model, Example]]) -> dict[str, Example]:
    """Return the examples by names that tell them apart: mnist, mnist-2, linear."""
    named: dict[str, Example] = {}
    for model, example in given:
        base = key = re.sub(r"[^A-Za-z0-9._-]", "_", model.name)
        count = 1
        while key in named:
            count += 1
            key = f"{base}-{count}"
        named[key] = example
    return named


def _methods(rule: Rule, given: list[Example]) -> list[str]:
    """Return the methods worth describing: those of examples; none of a route that takes all in order to refuse them."""
    if given:
        return sorted({_method_of(each, rule) for each in given})
    methods = (rule.methods or set()) - _OWN_METHODS
    return [] if "PATCH" in methods else sorted(methods)


def _method_of(example: Example, rule: Rule) -> str:
    order = ("GET", "POST", "PUT", "DELETE") if example.body is None else ("POST", "PUT")
    return next(method for method in order if method in (rule.methods or ()))


def _of_header(examples: Mapping[str, Example]) -> list[dict[str, Any]]:
    headers = dict.fromkeys(name for each in examples.values() for name in each.headers)
    return [
        {
            "name": header,
            "in": "header",
            "required": False,
            "schema": {"type": "string"},
            "examples": {key: {"value": each.headers[header]} for key, each in examples.items() if header in each.headers},
        }
        for header in headers
    ]


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip()
    return kind == JSON or kind.endswith("+json")


def _sentences(text: str) -> tuple[str, str]:
    """Return the first sentence of a docstring, without its full stop, and the rest."""
    first, _, rest = text.partition("\n\n")
    line = " ".join(first.split())
    found = _FIRST_SENTENCE.match(line)
    summary = found[1] if found else ""
    left = line[len(summary) + 1 :].strip()
    return summary, "\n\n".join(part for part in (left, rest.strip()) if part)
