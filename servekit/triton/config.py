"""config.pbtxt as a plain value: every field that Triton knows, defaults included, as its /config route prints it."""

import dataclasses
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from servekit.errors import ModelLoadError
from servekit.triton.folders import CONFIG, MAX_CONFIG_BYTES

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format
except ImportError as error:  # pragma: no cover - it comes with ONNX Runtime
    raise ModelLoadError(f"{CONFIG} is read with protobuf; install servekit[triton].") from error

_SCHEMA = Path(__file__).parent / "model_config.binpb"  # model_config.proto, compiled
_PACKAGE = "inference"

# What servekit acts upon, by path; what is set and not here is named in a warning. A path stands for all below it.
_EFFECTIVE = frozenset(
    """
    name platform backend max_batch_size default_model_filename version_policy
    input.name input.data_type input.dims input.reshape output.name output.data_type output.dims output.reshape
    output.label_filename instance_group.name instance_group.kind instance_group.count instance_group.gpus
    instance_group.passive dynamic_batching.max_queue_delay_microseconds
    dynamic_batching.default_queue_policy.max_queue_size
    dynamic_batching.default_queue_policy.default_timeout_microseconds
    ensemble_scheduling.step.model_name ensemble_scheduling.step.model_version ensemble_scheduling.step.input_map
    ensemble_scheduling.step.output_map model_warmup
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A model's configuration: `values` with every default, and the paths of what is set and has no effect here."""

    values: dict[str, Any]
    without_effect: tuple[str, ...] = ()


def read_config(folder: Path, override: str = "") -> Config:
    """Read the config.pbtxt of a model folder, an empty one if there is none; `override` is JSON in its place.

    Raises ModelLoadError naming the file and what is wrong in it.
    """
    message = _message("ModelConfig")
    path = folder / CONFIG
    try:
        if override:
            value = json.loads(override)
            if not isinstance(value, dict):
                raise ValueError("it is no JSON object")
            json.dumps(value, ensure_ascii=False).encode()  # half a character, which protobuf fails on in its own way
            json_format.ParseDict(value, message)
        elif path.is_file():
            if path.stat().st_size > MAX_CONFIG_BYTES:
                raise ValueError(f"it is larger than {MAX_CONFIG_BYTES} bytes")
            if not path.resolve().is_relative_to(folder.resolve()):
                raise ValueError("it is a link out of the model's folder")
            text_format.Parse(path.read_text(encoding="utf-8"), message)
    except (text_format.ParseError, json_format.ParseError, ValueError, OSError, RecursionError) as error:
        what = "The config of the request" if override else str(path)
        reason = textwrap.shorten(str(error.strerror if isinstance(error, OSError) else error), 200)
        raise ModelLoadError(f"{what} cannot be read ({reason}); correct it.") from error
    return Config(_plain(message), tuple(dict.fromkeys(_without_effect(message))))


def blank(kind: str) -> dict[str, Any]:
    """Return an empty message of the schema, such as ModelInput, with every default."""
    return _plain(_message(kind))


@cache
def _pool() -> Any:
    """Return the schema, in a pool of its own: a client of Triton in the same process brings one of the same names."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_SCHEMA.read_bytes()).file:
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    return pool


def _message(kind: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{kind}"))()


def _plain(message: Any) -> dict[str, Any]:
    """Return `message` as JSON has it, in the names of the schema, numbers as numbers and enums by name.

    A message, or a member of a oneof, that is not set is left out.
    """
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if _is_map(field):
            values[field.name] = {str(key): _plain_value(field, each) for key, each in sorted(value.items())}
        elif hasattr(value, "extend"):
            values[field.name] = [_plain_value(field, each) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            values[field.name] = _plain_value(field, value)
    return values


def _plain_value(field: Any, value: Any) -> Any:
    if hasattr(value, "DESCRIPTOR"):
        return _plain(value)
    if field.enum_type is None:
        return value
    known = field.enum_type.values_by_number.get(value)
    return value if known is None else known.name


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _without_effect(message: Any, prefix: str = "") -> Iterator[str]:
    """Give the paths of what is set in `message` and does nothing here, each as short as it can be."""
    for field, value in message.ListFields():
        path = prefix + field.name
        if path in _EFFECTIVE:
            continue
        if not any(effective.startswith(f"{path}.") for effective in _EFFECTIVE):
            yield from (f"{path}[{key}]" for key in sorted(value)) if isinstance(value, Mapping) else (path,)
        else:
            for each in value if hasattr(value, "extend") else [value]:
                yield from _without_effect(each, f"{path}.")
