"""The model store on disk: its version folders, and what their `model.json` may say; reading, checking, writing it.

A version folder holds `model.json` and the files that it names, and is never edited once written. The file says what
the server needs (handler, network, inputs, outputs) and, for people, the names of the classes and how the model came to
be (`training`).
"""

import dataclasses
import hashlib
import importlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servekit.config import unknown_name
from servekit.errors import ModelLoadError

log = logging.getLogger(__name__)

FILE_NAME = "model.json"
MAX_BYTES = 2**24  # of a model.json: what it says of a hundred thousand classes
STATE_FOLDER = ".servekit"  # in a model store; see servekit/state.py
WEIGHTS = "model.pth"
ONNX = "model.onnx"
TRITON_CONFIG = "config.pbtxt"  # of a model folder of Triton's layout; see servekit/triton
RETRAIN = "train the model again, or put back the folder as it was written"

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
_DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "bfloat16", "float32", "float64", "bytes"),
)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The name, dtype and shape of one input or output; axis 0 of `shape` is -1: any number of rows.

    A size of -1 on another axis may differ from request to request.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Any) -> "TensorSpec":
        """Check and convert one entry of `inputs` or `outputs`; raise ValueError with what is wrong."""
        if not isinstance(value, dict) or set(value) != {"name", "dtype", "shape"}:
            raise ValueError("each input and output needs exactly name, dtype and shape")
        name, dtype, shape = value["name"], value["dtype"], value["shape"]
        if not isinstance(name, str) or not name:
            raise ValueError("the name of an input or output must be a word")
        if dtype not in _DTYPES:
            raise ValueError(f"the dtype of {name} must be one of: {', '.join(_DTYPES)}")
        if not isinstance(shape, list) or not all(type(size) is int for size in shape) or shape[:1] != [-1]:
            raise ValueError(f"the shape of {name} must be a list of numbers that begins with -1, the rows")
        if not all(size > 0 or size == -1 for size in shape[1:]):
            raise ValueError(f"the sizes of {name} after the rows must be above 0, or -1 where they may differ")
        return cls(name, dtype, tuple(shape))


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """What `model.json` says. `handler` and `network` are references of the form `package.module:Class`.

    A model without a network answers with what its handler makes of a request.
    """

    handler: str
    network: str = ""
    _: dataclasses.KW_ONLY
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: Mapping[str, str]  # file name -> SHA-256 of its content, in hex
    labels: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keyword arguments of the handler
    max_batch_rows: int = 64  # rows of one forward pass: larger ones cost memory and gain little
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Any) -> "ModelSpec":
        """Check and convert the content of a model.json; raise ValueError with what is wrong."""
        if not isinstance(value, dict):
            raise ValueError("it must hold one JSON object")
        value = dict(value)
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name in value:
            if name not in known:
                raise ValueError(unknown_name("member", name, known))
        required = [name for name, field in known.items() if _is_required(field)]
        if missing := [name for name in required if name not in value]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        _check_members(value)
        value["inputs"] = tuple(map(TensorSpec.from_json, value["inputs"]))
        value["outputs"] = tuple(map(TensorSpec.from_json, value["outputs"]))
        return cls(**{**value, "labels": tuple(value.get("labels", ()))})

    def to_json(self) -> dict[str, Any]:
        """Return the object that `from_json` reads."""
        return dataclasses.asdict(self)


def scan(store: Path, warns: bool = True) -> dict[str, list[int]]:
    """Return the versions that `store` holds, by model name, in order; what is no model is passed over.

    A folder whose name begins with a dot is a version that is still being written. A link is followed within the store,
    and not out of it.
    """
    versions: dict[str, list[int]] = {}
    root = os.path.realpath(store)
    for folder in sorted(store.glob("*/*")):
        name, version = folder.parent.name, folder.name
        if name == STATE_FOLDER or version.startswith(".") or not folder.is_dir():
            continue
        if not _is_below(root, folder):
            if warns:
                log.warning("Passed over %s: it is a link out of the model store; put the folder itself there.", folder)
        elif _NAME.fullmatch(name) and _VERSION.fullmatch(version):
            versions.setdefault(name, []).append(int(version))
        elif warns and not (folder.parent / TRITON_CONFIG).exists():  # there other folders hold what the config names
            log.warning("Passed over %s: a version folder is <name>/<number>, such as mnist/1.", folder)
    return {name: sorted(found) for name, found in versions.items()}


def read_spec(folder: Path) -> ModelSpec:
    """Read `model.json` of a version folder; raise ModelLoadError naming the file and the remedy."""
    path = _own_file(folder, FILE_NAME)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES} bytes")
        return ModelSpec.from_json(json.loads(content.decode()))
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; {RETRAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} cannot be used: {error}; {RETRAIN}.") from error


def write_spec(folder: Path, spec: ModelSpec) -> None:
    """Write `spec` as `model.json` into a version folder that is being made."""
    text = json.dumps(spec.to_json(), indent=2, ensure_ascii=False)
    (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read_file(folder: Path, spec: ModelSpec, name: str) -> bytes:
    """Return the content of a file that the spec names, after checking its SHA-256; raise ModelLoadError.

    The bytes that were checked are the bytes returned: nothing is read twice.
    """
    if name not in spec.files:
        raise ModelLoadError(f"{folder / FILE_NAME} names no {name} under files; {RETRAIN}.")
    path = _own_file(folder, name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read ({error.strerror}); {RETRAIN}.") from error
    if sha256(content) != spec.files[name]:
        raise ModelLoadError(f"{path} is not the file that model.json describes (SHA-256 differs); {RETRAIN}.")
    return content


def resolve(reference: str) -> Any:
    """Import what `package.module:Class` names; it raises what the import raises, which may be anything."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hex."""
    return hashlib.sha256(content).hexdigest()


def _is_below(root: str, path: Path) -> bool:
    """Return True if `path`, its links followed, lies below `root`, which has none."""
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def _own_file(folder: Path, name: str) -> Path:
    """Return the file `name` of a version folder; raise ModelLoadError for a link out of the model's folder, or no file.

    Who opens a pipe waits for ever, and a device has no end. Versions of a model may share a file by a link.
    """
    path = folder / name
    if not _is_below(os.path.realpath(folder.parent), path):
        raise ModelLoadError(f"{path} is a link out of the model's folder; put the file itself there.")
    if path.exists() and not path.is_file():
        raise ModelLoadError(f"{path} is no file; {RETRAIN}.")
    return path


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _check_members(value: dict[str, Any]) -> None:
    for name in ("handler", "network"):
        reference = value.get(name, "")
        if not isinstance(reference, str) or not (_REFERENCE.fullmatch(reference) or (name == "network" and not reference)):
            raise ValueError(f"{name} must have the form package.module:Class")
    for name in ("inputs", "outputs"):
        if not isinstance(value[name], list) or not value[name]:
            raise ValueError(f"{name} must be a list of at least one tensor")
    for name in ("files", "options", "training"):
        if not isinstance(value.get(name, {}), dict):
            raise ValueError(f"{name} must be an object")
    for name, digest in value["files"].items():
        if Path(name).name != name or not isinstance(digest, str):
            raise ValueError("files must map names without a folder to SHA-256 sums")
    if not isinstance(value.get("labels", []), list) or not all(type(label) is str for label in value.get("labels", [])):
        raise ValueError("labels must be a list of words")
    if type(value.get("max_batch_rows", 1)) is not int or value.get("max_batch_rows", 1) < 1:
        raise ValueError("max_batch_rows must be a number above 0")
