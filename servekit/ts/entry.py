"""From the handler that an archive names to the function that answers its requests."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from servekit.imports import Modules
from servekit.ts.torch_handler.request_envelope.base import BaseEnvelope
from servekit.ts.utils.util import list_classes_from_module

BUILT_IN = ("base_handler", "image_classifier", "image_segmenter", "object_detector", "text_classifier")
_ELSEWHERE = {"dali_image_classifier": "nvidia-dali", "trt_llm_handler": "tensorrt_llm", "vllm_handler": "vllm"}
_ENVELOPES = ("body", "json", "kserve", "kservev2")


@dataclass
class Entry:
    """A handler: `initialize(context)` once, then `handle(data, context)` for every batch."""

    initialize: Callable[[Any], Any]
    handle: Callable[[Any, Any], Any]
    owner: Any = None  # the object whose methods they are, if it is a class


def find_entry(modules: Modules, handler: str, trusted_only: bool = False) -> Entry:
    """Return the entry point of `handler`: "service.py", "service:function", "pkg/x.py:function", a built-in name.

    A function goes before a class. Raise ImportError if there is no such module, ValueError if it has neither a
    function nor exactly one class with `initialize` and `handle`, and what the module itself raises.
    """
    path, _, name = handler.partition(":")
    module = _module(modules, path.removesuffix(".py").strip("/"), trusted_only)
    function = getattr(module, name or "handle", None)
    if callable(function):
        return Entry(lambda context: function(None, context), function)
    classes = [cls for cls in list_classes_from_module(module) if hasattr(cls, "initialize") and hasattr(cls, "handle")]
    if len(classes) != 1:
        raise ValueError(f"Expected only one class in custom service code or a function entry point {classes}")
    owner: Any = classes[0]()
    # looked up anew for each batch: initialize may put another function in its place
    return Entry(owner.initialize, lambda data, context: owner.handle(data, context), owner)


def _module(modules: Modules, name: str, trusted_only: bool) -> ModuleType:
    dotted = name.replace("/", ".")
    for candidate in (dotted, dotted.rpartition(".")[2]):  # an archive is flat, whatever folder the file came from
        if modules.has(candidate):
            if trusted_only:
                raise PermissionError(f"the handler {name} is code of the archive, which this server refuses to run")
            return modules.load(candidate)
    if name in BUILT_IN:
        return importlib.import_module(f"servekit.ts.torch_handler.{name}")
    if name in _ELSEWHERE:
        raise ImportError(f"the handler {name} needs the package {_ELSEWHERE[name]}, for which there is none here")
    raise ImportError(f"the archive has no module {name}, and the handlers built in are {', '.join(BUILT_IN)}")


def envelope(name: str, handle: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return `handle` behind the service envelope `name`; raise ValueError if there is none."""
    if name not in _ENVELOPES:
        raise ValueError(f"there is no service envelope {name!r}; there are {', '.join(_ENVELOPES)}")
    module = importlib.import_module(f"servekit.ts.torch_handler.request_envelope.{name}")
    (cls,) = list_classes_from_module(module, BaseEnvelope)
    made: BaseEnvelope = cls(handle)
    return made.handle
