"""Sending parts of an answer before it is complete, and classes by their names."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from servekit.ts.answers import to_bytes
from servekit.ts.context import Context


def send_intermediate_predict_response(
    ret: Sequence[Any], req_id_map: Mapping[int, str], message: str, code: int, context: Context
) -> None:
    """Send `ret[i]` to the client of row i, as the next part of its answer; what the handler returns is the last one."""
    for index in req_id_map:
        if context.send_part is not None:
            context.send_part(index, to_bytes(ret[index]))


def import_class(class_name: str, module_prefix: str | None = None) -> Any:
    """Return the class that `class_name` ("module.Class") names; raise ImportError if there is none."""
    module_name, _, name = class_name.rpartition(".")
    path = ".".join(part for part in (module_prefix, module_name) if part)
    found = getattr(importlib.import_module(path), name, None) if path and name else None
    if found is None:
        raise ImportError(f"There is no class {class_name!r} in {path or 'any module'}.")
    return found
