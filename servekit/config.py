"""Every setting of servekit: defaults here, then `SERVEKIT_*` variables.

Standard library only: `gunicorn.conf.py` reads this module in the master process, which loads nothing that starts
threads.
"""

import ctypes
import dataclasses
import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from servekit.cgroup import core_quotas
from servekit.errors import SettingError
from servekit.platforms import AUTO, NONE, PLATFORMS, SAGEMAKER, platform_of

PREFIX = "SERVEKIT_"
MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # the Prometheus client's variable: the folder that workers share
ARRIVED = "servekit.arrived"  # environ key of WSGI: when a request arrived, a time of the monotonic clock
CROWDED = "servekit.crowded"  # environ key: there, if more requests wait before this one than can be answered in time
LOG_FORMATS = ("text", "json")
ENGINES = ("auto", "onnx", "torch")
MIN_KEY_LENGTH = 16  # characters: a shorter key can be guessed
KEYS = ("inference_key", "management_key")  # settings that hold one
RATE = re.compile(r"[1-9][0-9]{0,8}/(second|minute|hour|day)")
_KEY = re.compile(rf"[!-~]{{{MIN_KEY_LENGTH},}}")  # what a header can hold
_SEALED = re.compile(r"sha256:[0-9a-f]{64}")
_ROOT = Path("/")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one server; a field `model_store` is the variable `SERVEKIT_MODEL_STORE`."""

    model_store: Path = Path("model_store")  # <name>/<version>/ folders, written by train/
    data_dir: Path = Path("data/mnist")  # where train/ looks for MNIST's four files
    poll_seconds: float = 0.0  # between two looks at the store for new versions; 0: only at the start and on SIGHUP
    max_workers: int = 16  # to which requests may raise their number: each costs memory
    default_model: str = ""  # answers where an address names no model; empty: the only one, if there is only one
    management: bool = False  # let requests load and unload models: whoever can send one can change what is served
    multi_model: bool = False  # start with no model: SageMaker's multi-model endpoint loads and unloads them by requests
    default_accept: str = "application/json"  # what /invocations answers where the client does not say
    platform: str = "auto"  # the cloud whose contract is served: by its environment variables, or its name, or "none"
    trusted_models_only: bool = False  # refuse model files that can run code when they are loaded
    keys: str = ""  # a JSON file of keys, one for each client; empty: those of the next two settings, if there are any
    inference_key: str = dataclasses.field(default="", repr=False)  # lets its holder ask for predictions
    management_key: str = dataclasses.field(default="", repr=False)  # lets its holder do everything
    rate_limit: str = ""  # of each key that has none of its own, such as 100/second; empty: none
    allow_anonymous: bool = False  # let everyone who reaches the server in, whatever its address
    torchserve: str = ""  # TorchServe's properties, a line each, as `servekit torchserve` hands them on; empty: off
    engine: str = "auto"  # "onnx", "torch", or auto: ONNX where its package and the model's file are there
    max_body_bytes: int = 25 * 2**20  # 25 MiB: a thousand scanned digits, and a bound on what a client holds
    deadline_seconds: float = 30.0  # a request that has waited this long gets 504: its client has given up
    max_waiting: int = 4000  # rows in one worker; above it 503 at once, which serves a client better than 504 late
    long_pass_seconds: float = 0.002  # a model this slow computes beside the event loop, which goes on meanwhile
    header_seconds: float = 10.0  # for the head of a request to arrive
    body_seconds: float = 30.0  # for its body; 25 MiB at 7 Mbit/s
    write_seconds: float = 30.0  # for the client to take its answer
    slow_seconds: float = 1.0  # a request that takes longer gets a line in the log that says where the time went
    tracing: bool = False  # send spans of requests by OpenTelemetry; its own OTEL_* variables say where to
    log_format: str = "text"  # "json" for one object a line, as log collectors want it

    def __post_init__(self) -> None:
        _require(self.engine in ENGINES, "engine", "one of: " + ", ".join(ENGINES))
        _require(self.platform in PLATFORMS, "platform", "one of: " + ", ".join(PLATFORMS))
        _require(not self.multi_model or self.platform == SAGEMAKER, "multi_model", "false unless the platform is sagemaker")
        _require(0 <= self.poll_seconds < math.inf, "poll_seconds", "a number of seconds, or 0")
        _require(self.max_workers > 0, "max_workers", "a number above 0")
        _require(self.max_body_bytes > 0, "max_body_bytes", "a number of bytes above 0")
        _require(self.max_waiting > 0, "max_waiting", "a number of rows above 0")
        for name in ("deadline_seconds", "long_pass_seconds", "header_seconds", "body_seconds", "write_seconds", "slow_seconds"):
            seconds = getattr(self, name)
            _require(seconds > 0 and math.isfinite(seconds), name, "a number of seconds above 0")
        _require(self.log_format in LOG_FORMATS, "log_format", "one of: " + ", ".join(LOG_FORMATS))
        for name in KEYS:
            if getattr(self, name):
                object.__setattr__(self, name, sealed(getattr(self, name), f"{PREFIX}{name.upper()}"))
        _require(not self.rate_limit or RATE.fullmatch(self.rate_limit), "rate_limit", "a rate such as 100/second or 5000/hour")
        _require(not self.rate_limit or self.has_keys, "rate_limit", "left unset where there are no keys: each has its own count")

    @property
    def has_keys(self) -> bool:
        """Whether requests are asked for a key."""
        return bool(self.keys or self.inference_key or self.management_key)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read `SERVEKIT_*` from `environ`.

        The platform becomes the one that is recognised, and its folder the model store if none is named. Raises
        SettingError for an unknown variable, naming the nearest one, and for a value that cannot be read.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for variable in sorted(environ):
            if not variable.startswith(PREFIX):
                continue
            name = variable.removeprefix(PREFIX).lower()
            if name not in fields:
                raise SettingError(unknown_name("setting", variable, (PREFIX + field.upper() for field in fields), PREFIX))
            values[name] = _read(name, type(fields[name].default), environ[variable])
        choice = values.get("platform", AUTO)
        platform = platform_of(environ, choice)
        stores = {} if platform.models is None else {"model_store": platform.models}
        name = choice if platform.name == NONE else platform.name
        return cls(**{**stores, **platform.settings, **values, "platform": name})


def sealed(key: str, where: str) -> str:
    """Return `sha256:` and the digest of `key`, by which it is known; one that is sealed already comes back as it is.

    Raises SettingError, which names `where` the key stands and nothing of it, for one that is short or cannot be sent.
    """
    if _SEALED.fullmatch(key):
        return key
    if not _KEY.fullmatch(key):
        raise SettingError(
            f"{where} must have at least {MIN_KEY_LENGTH} visible characters of ASCII; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one."
        )
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def seal_keys(environ: MutableMapping[str, str]) -> None:
    """Put digests in the place of the keys in `environ`, so that the code of models does not find them there."""
    for variable in (f"{PREFIX}{name.upper()}" for name in KEYS):
        if _KEY.fullmatch(environ.get(variable, "")):
            if environ is os.environ:
                _blot(variable)
            environ[variable] = sealed(environ[variable], variable)


def _blot(variable: str) -> None:
    """Overwrite the value of a variable where the process got it: /proc/<pid>/environ shows that place for ever."""
    getenv = ctypes.CDLL(None).getenv
    getenv.argtypes, getenv.restype = [ctypes.c_char_p], ctypes.c_void_p
    if place := getenv(variable.encode()):
        ctypes.memset(place, ord("*"), len(ctypes.string_at(place)))


def unknown_name(kind: str, name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the sentence for a `kind` of thing that does not exist: it names the nearest one, or all of them.

    All begin with `prefix`, which therefore says nothing about nearness.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name.removeprefix(prefix), [each.removeprefix(prefix) for each in known], n=1)
    hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "there are: " + ", ".join(known)
    return f"Unknown {kind} {name}; {hint}"


def usable_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may really use: its affinity, cut by the quota of its control group.

    `root` is where /proc and /sys are looked for. At least 1; a quota of 1.5 cores counts as 2, so that none is idle.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *core_quotas(root)]))


def visible_gpus(environ: Mapping[str, str], root: Path = _ROOT) -> int:
    """Return how many of NVIDIA's GPUs a process with `environ` sees, without loading a library; `root` holds /dev."""
    there = len([path for path in (root / "dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    return there if chosen is None else min(there, len([name for name in chosen.split(",") if name.strip()]))


def _require(condition: object, name: str, wanted: str) -> None:
    if not condition:
        raise SettingError(f"{PREFIX}{name.upper()} must be {wanted}.")


def _read(name: str, kind: type, text: str) -> Any:
    _require(text.strip() != "", name, "given a value or left unset")
    if issubclass(kind, Path):
        return Path(text)
    if kind is bool:
        _require(text in ("true", "false"), name, "true or false")
        return text == "true"
    try:
        return float(text) if kind is float else int(text) if kind is int else text
    except ValueError:
        raise SettingError(f"{PREFIX}{name.upper()} must be a number.") from None
