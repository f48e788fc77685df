"""What a client, a configuration or a snapshot asks for when it registers or scales a model; read as TorchServe does.

A number that is none counts as not given, and any word but "true" is false. Standard library only.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from servekit.torchserve.refusals import Refusal

RUNTIMES = ("python", "python3", "LSP")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")
_INTEGER_RANGE = range(-(2**31), 2**31)  # Java's int
# A name stands in paths, metrics and logs.
_NAME = re.compile(r"\w[\w.+-]{0,127}")


@dataclasses.dataclass(frozen=True)
class Registration:
    """A model to register; what is None was not given. Timeouts are seconds, the delay milliseconds."""

    url: str
    model_name: str | None = None
    handler: str | None = None
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    initial_workers: int | None = None
    max_workers: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    synchronous: bool = True

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Registration":
        """Read the parameters of `POST /models`, texts of a query or values of JSON; raise Refusal."""
        if values.get("url") is None:
            raise Refusal("BadRequestException", "Parameter url is required.")
        runtime = _text(values, "runtime")
        if runtime is not None and runtime not in RUNTIMES:
            raise Refusal("BadRequestException", f"Invalid RuntimeType value: {runtime}")
        for name in ("url", "handler"):
            if re.search("[\ud800-\udfff]", str(values.get(name))):  # JSON can write half a character, UTF-8 cannot
                raise Refusal("BadRequestException", f"Parameter {name} is not valid Unicode.")
        numbers = ("batch_size", "max_batch_delay", "initial_workers", "response_timeout", "startup_timeout")
        return cls(
            url=str(values["url"]),
            model_name=_text(values, "model_name"),
            handler=_text(values, "handler"),
            runtime=runtime,
            synchronous=parse_switch(values.get("synchronous"), True),
            **{name: parse_integer(values.get(name)) for name in numbers},
        )

    @classmethod
    def from_snapshot(cls, name: str, options: Mapping[str, Any]) -> "Registration":
        """Read what a snapshot or the key `models` says of a version of the model called `name`."""
        return cls(
            url=str(options.get("marName", "")),
            model_name=name,
            runtime=_text(options, "runtimeType"),
            batch_size=parse_integer(options.get("batchSize")),
            max_batch_delay=parse_integer(options.get("maxBatchDelay")),
            initial_workers=parse_integer(options.get("minWorkers")),
            max_workers=parse_integer(options.get("maxWorkers")),
            response_timeout=parse_integer(options.get("responseTimeout")),
            startup_timeout=parse_integer(options.get("startupTimeout")),
        )


@dataclasses.dataclass(frozen=True)
class Scale:
    """How many workers a model is to have."""

    workers: int
    max_workers: int
    synchronous: bool = False

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Scale":
        """Read the parameters of `PUT /models/{name}`; raise Refusal."""
        workers = _or(parse_integer(values.get("min_worker")), 1)
        most = _or(parse_integer(values.get("max_worker")), workers)
        if most < workers:
            raise Refusal("BadRequestException", "max_worker cannot be less than min_worker.")
        if workers < 0:  # TorchServe fails here, and its users' tests know the status
            raise Refusal("InternalServerException", "min_worker cannot be less than 0.")
        return cls(workers, most, parse_switch(values.get("synchronous"), False))


def parse_integer(value: Any) -> int | None:
    """Return the number that `value` is or spells, or None."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    if not _INTEGER.fullmatch(str(value)) or int(value) not in _INTEGER_RANGE:
        return None
    return int(value)


def parse_switch(value: Any, default: bool) -> bool:
    """Return whether `value` is or spells true; `default` if it was not given."""
    return default if value is None else str(value).lower() == "true"


def require_name(name: str, what: str) -> str:
    """Return `name`, of a model or a version; raise Refusal if it cannot stand in a path, a metric or a log."""
    if not _NAME.fullmatch(name):
        raise Refusal("BadRequestException", f"A {what} has letters, digits and . _ + - in it, and at most 128 of them.")
    return name


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return None if value is None or value == "" else str(value)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
