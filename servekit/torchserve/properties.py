"""TorchServe's `config.properties`: every key that servekit acts on, typed; the others are named.

Standard library only: Gunicorn's master imports this.
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from servekit.config import Settings
from servekit.errors import SettingError
from servekit.torchserve import java

T = TypeVar("T")
ENVIRONMENT_PREFIX = "TS_"
ALL = "all"  # in place of a list of models: every archive of the model store
METRICS_MODES = ("log", "prometheus", "legacy")
# TorchServe's word, Log4j's and Python's, to Gunicorn's.
LOG_LEVELS = {
    **{level: level for level in ("debug", "info", "warning", "error", "critical")},
    **{"all": "debug", "trace": "debug", "warn": "warning", "fatal": "critical", "off": "critical"},
}
# What TorchServe knows and servekit has no use for; kept to tell these from keys that are misspelt.
UNSUPPORTED = frozenset(
    """
    METRICS_LOCATION async_logging certificate_file cpp_log_config cpu_launcher_args cpu_launcher_enable debug
    enable_grpc_ssl grpc_inference_address grpc_inference_max_connection_age_grace_ms
    grpc_inference_max_connection_age_ms grpc_inference_port grpc_management_address
    grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms grpc_management_port
    initial_distribution_port io_ratio ipex_enable ipex_gpu_enable keystore keystore_pass keystore_type
    log_config max_response_size metric_time_interval model_server_home netty_client_threads number_of_netty_threads
    plugins_path prefer_direct_buffer private_key_file system_metrics_cmd ts_header_key_sequence_end
    ts_header_key_sequence_id ts_header_key_sequence_start unregister_model_timeout use_native_io vmargs workflow_store
    """.split()
)


class Address(NamedTuple):
    """Where one of the APIs listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.bind}"

    @property
    def bind(self) -> str:
        """The address as Gunicorn's `bind` has it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NamedArchive(NamedTuple):
    """A model to load at start: `source` is a path or a URL; without a name the archive's own is taken."""

    name: str | None
    source: str

    def __str__(self) -> str:
        return f"{self.name}={self.source}" if self.name else self.source


class _Unreadable(ValueError):
    """A value that cannot be used; the message says what could be."""


def _key(default: T, read: Callable[[str], T]) -> T:
    """Return a field of `Properties` that `read` makes of its text; `read` raises _Unreadable."""
    metadata = {"read": read}
    field: Any = (
        dataclasses.field(default_factory=dict, metadata=metadata)
        if default == {}
        else dataclasses.field(default=default, metadata=metadata)
    )
    return field


def _address(text: str) -> Address:
    if text.startswith("https:"):
        raise _Unreadable("an http address, and put a proxy that speaks TLS before it")
    wanted = "an address such as http://127.0.0.1:8080; unix sockets are not served"
    try:
        parts = urlsplit(text)
        port = 80 if parts.port is None else parts.port
    except ValueError:
        raise _Unreadable(wanted) from None
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise _Unreadable(wanted)
    return Address(parts.hostname, port)


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _Unreadable("true or false")
    return text.lower() == "true"


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < least:
            raise _Unreadable(f"a whole number from {least} on")
        return int(text)

    return read


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = -1
    if not (minutes > 0 and math.isfinite(minutes)):
        raise _Unreadable("a number of minutes above 0")
    return minutes


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _one_of(words: Mapping[str, str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text.lower() not in words:
            raise _Unreadable("one of: " + ", ".join(words))
        return words[text.lower()]

    return read


def _expressions(text: str) -> tuple[str, ...]:
    expressions = tuple(filter(None, map(str.strip, text.split(","))))
    for expression in expressions:
        try:
            re.compile(expression)
        except re.error as error:
            raise _Unreadable(f"regular expressions, separated by commas; {expression} is none: {error}") from None
    return expressions


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise _Unreadable(f"a regular expression; this is none: {error}") from None
    return text


def _archives(text: str) -> tuple[NamedArchive, ...]:
    """Read `a=a.mar,b.mar`; `all` in any case is one of that name, `none` and nothing are none."""
    if text.strip().lower() in ("", "none"):
        return ()
    if text.strip().lower() == ALL:
        return (NamedArchive(None, ALL),)
    archives = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, source = item.partition("=")
        if not equals or "/" in name:  # a path or a URL, which may hold an = of its own
            name, source = "", item
        if not source:
            raise _Unreadable("all, none, or a list such as a=a.mar,b.mar")
        archives.append(NamedArchive(name.strip() or None, source.strip()))
    return tuple(archives)


def _object(text: str) -> Mapping[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise _Unreadable(f"JSON; this is none: {error}") from None
    if not isinstance(content, dict):
        raise _Unreadable("a JSON object")
    return content


def _models(text: str) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    content = _object(text)
    for versions in content.values():
        if not isinstance(versions, dict) or not all(isinstance(options, dict) for options in versions.values()):
            raise _Unreadable('JSON such as {"noop": {"1.0": {"marName": "noop.mar", "minWorkers": 1}}}')
    return content


def _snapshot(text: str) -> Mapping[str, Any]:
    content = _object(text)
    _models(json.dumps(content.get("models", {})))
    return content


@dataclasses.dataclass(frozen=True)
class Properties:
    """TorchServe's settings: a field `job_queue_size` is the key `job_queue_size`; times are seconds, sizes bytes.

    Defaults are TorchServe's, but where a comment says why not.
    """

    inference_address: Address = _key(Address("127.0.0.1", 8080), _address)
    management_address: Address = _key(Address("127.0.0.1", 8081), _address)
    metrics_address: Address = _key(Address("127.0.0.1", 8082), _address)

    model_store: Path | None = _key(None, _path)
    load_models: tuple[NamedArchive, ...] = _key((), _archives)
    models: Mapping[str, Mapping[str, Mapping[str, Any]]] = _key({}, _models)  # name -> version -> what it is run with
    model_snapshot: Mapping[str, Any] = _key({}, _snapshot)  # its "models" are loaded at start as they are there
    default_workers_per_model: int = _key(0, _whole(0))  # 0: not given
    default_service_handler: str = _key("", str)
    service_envelope: str = _key("", str)
    install_py_dep_per_model: bool = _key(False, _switch)
    allowed_urls: tuple[str, ...] = _key(("file://.*|http(s)?://.*",), _expressions)  # each matches a whole URL
    use_env_allowed_urls: bool = _key(False, _switch)

    job_queue_size: int = _key(100, _whole(1))
    default_response_timeout: int = _key(120, _whole(1))
    default_startup_timeout: int = _key(120, _whole(1))
    max_request_size: int = _key(6553500, _whole(1))
    limit_max_image_pixels: bool = _key(True, _switch)
    decode_input_request: bool = _key(True, _switch)

    number_of_gpu: int | None = _key(None, _whole(0))  # None: as many as there are
    initial_worker_port: int = _key(9000, _whole(0))  # the first worker's id in a description

    # Its users found the page empty by default and asked for what is there.
    metrics_mode: str = _key("prometheus", _one_of({mode: mode for mode in METRICS_MODES}))
    metrics_config: Path | None = _key(None, _path)
    enable_metrics_api: bool = _key(True, _switch)
    model_metrics_auto_detect: bool = _key(False, _switch)
    disable_system_metrics: bool = _key(False, _switch)

    disable_token_authorization: bool = _key(False, _switch)
    token_expiration_min: float = _key(60.0, _minutes)
    enable_model_api: bool = _key(False, _switch)
    blacklist_env_vars: str = _key("", _expression)  # variables that the server is not to see
    cors_allowed_origin: str = _key("", str)
    cors_allowed_methods: str = _key("", str)
    cors_allowed_headers: str = _key("", str)
    enable_envvars_config: bool = _key(False, _switch)
    ts_open_inference_protocol: str = _key("", str)

    log_level: str = _key("info", _one_of(LOG_LEVELS))  # Gunicorn's word for it
    ignored: tuple[str, ...] = ()  # keys that are given and have no effect

    @classmethod
    def parse(
        cls, text: str, environ: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
    ) -> "Properties":
        """Read `text`, a `config.properties`; `flags`, texts by key, win over it, and `TS_*` of `environ` over both.

        Raises SettingError, one sentence that names the key and what would do.
        """
        environ = environ or {}
        given = {name: java.substitute(name, value, environ) for name, value in java.parse(text).items()}
        values = given | dict(flags or {}) | _from_environ(given, environ)
        if "TS_OPEN_INFERENCE_PROTOCOL" in environ:  # TorchServe reads this one whatever the file says
            values["ts_open_inference_protocol"] = environ["TS_OPEN_INFERENCE_PROTOCOL"]
        readers = {field.name: field.metadata["read"] for field in dataclasses.fields(cls) if field.metadata}
        typed = {name: _read(name, value, readers[name]) for name, value in values.items() if name in readers}
        return cls(**typed, ignored=tuple(sorted(values.keys() - readers.keys())))

    def to_text(self) -> str:
        """Return the text that `parse` reads as this, without what is ignored."""
        names = [field.name for field in dataclasses.fields(self) if field.metadata]
        given = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(_DEFAULTS, name)}
        return "\n".join(java.line_of(name, _written(value)) for name, value in given.items())

    @property
    def loads_all(self) -> bool:
        """Whether every archive of the model store is to be loaded at start."""
        return self.load_models == (NamedArchive(None, ALL),)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the server listens, each address once."""
        metrics = (self.metrics_address,) if self.enable_metrics_api else ()
        return tuple(dict.fromkeys((self.inference_address, self.management_address, *metrics)))

    @property
    def warning(self) -> str:
        """One sentence that names the keys that have no effect; "" if there are none."""
        if not self.ignored:
            return ""
        unsupported = [name for name in self.ignored if name in UNSUPPORTED]
        unknown = [name for name in self.ignored if name not in UNSUPPORTED]
        parts = [f"{', '.join(unsupported)} (not supported)"] if unsupported else []
        parts += [f"{', '.join(unknown)} (not known)"] if unknown else []
        return f"These settings have no effect: {'; '.join(parts)}."


def properties_of(settings: Settings) -> Properties:
    """Return the properties that `settings` hand on. Where only trusted models are served no package is installed.

    Where servekit's own keys are asked for, TorchServe's are not: a request has room for one. Raises SettingError.
    """
    properties = Properties.parse(settings.torchserve)
    if settings.has_keys:
        properties = dataclasses.replace(properties, disable_token_authorization=True)
    if settings.trusted_models_only:
        return dataclasses.replace(properties, install_py_dep_per_model=False)
    return properties


_DEFAULTS = Properties()


def _read(name: str, value: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(value.strip())
    except _Unreadable as wanted:
        raise SettingError(f"{name}={value} cannot be used; give {wanted}.") from None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and not isinstance(value, Address):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, Mapping) else str(value)


def _from_environ(given: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return what `TS_*` of `environ` say, if the file allows them to; for the URLs it needs its own permission."""
    if given.get("enable_envvars_config", "").strip().lower() != "true":
        return {}
    known = {field.name for field in dataclasses.fields(Properties) if field.metadata} | UNSUPPORTED
    known -= {"enable_envvars_config", "use_env_allowed_urls"}  # the file alone says what the environment may
    if given.get("use_env_allowed_urls", "").strip().lower() != "true":
        known -= {"allowed_urls"}
    variables = {name: ENVIRONMENT_PREFIX + name.upper() for name in known}
    return {name: environ[variable] for name, variable in variables.items() if variable in environ}
