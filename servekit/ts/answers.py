"""What a handler returned for one row, as bytes and content type."""

import io
import json
import sys
from typing import Any


def to_bytes(item: Any) -> bytes:
    """Return what the client gets for `item`; raise TypeError if it cannot be written.

    Bytes as they are, text as UTF-8, tensors as `torch.save` writes them, all else as JSON.
    """
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, str):
        return item.encode()
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(item, torch.Tensor):
        file = io.BytesIO()
        torch.save(item, file)
        return file.getvalue()
    try:
        return json.dumps(item, indent=2).encode()
    except (ValueError, RecursionError) as error:  # what contains itself, or is too deep
        raise TypeError(str(error)) from error


def content_type_of(item: Any) -> str:
    """Return the content type of what `to_bytes` makes of `item`, for handlers that set none."""
    if isinstance(item, str):
        return "text/plain; charset=utf-8"
    if item is None or isinstance(item, dict | list | tuple | int | float):
        return "application/json"
    return "application/octet-stream"
