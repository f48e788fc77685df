"""Hostile requests, and what they leave behind where they succeed."""

import io
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import png

JSON, FORM, MULTIPART = "application/json", "application/x-www-form-urlencoded", "multipart/form-data"
NPY = "application/x-npy"
V2_INPUT = {"name": "value", "shape": [1, 1], "datatype": "FP32"}


class Canary:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def pickled(path: Path) -> bytes:
    """Return a pickle that writes the file `path`."""
    return pickle.dumps(Canary(path))


def object_npy(path: Path) -> bytes:
    """Return an .npy of one object, which is pickled in it."""
    stream = io.BytesIO()
    np.save(stream, np.array([Canary(path)], object), allow_pickle=True)
    return stream.getvalue()


def object_npz(path: Path) -> bytes:
    """Return an .npz with that in it."""
    stream = io.BytesIO()
    np.savez(stream, x=np.array([Canary(path)], object))
    return stream.getvalue()


def npy(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """Return an .npy whose header is `header`."""
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header.encode("latin-1") + content


def zipped(**files: bytes) -> bytes:
    """Return a zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return stream.getvalue()


def form(*parts: tuple[str, bytes], boundary: str = "x") -> tuple[bytes, str]:
    """Return body and content type of a form in parts: the rest of the line Content-Disposition, and the content."""
    start = f"--{boundary}\r\nContent-Disposition: form-data; "
    written = [f"{start}{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts]
    return b"".join([*written, f"--{boundary}--\r\n".encode()]), f"{MULTIPART}; boundary={boundary}"


def v2(**members: Any) -> bytes:
    """Return a request of the Open Inference Protocol for the model `linear`; `members` are those of its input."""
    return json.dumps({"inputs": [V2_INPUT | members]}).encode()


# Bodies that mean nothing, or something else, at any address: body, content type, headers.
Bad = tuple[bytes, str | None, Mapping[str, str]]


def bad_bodies() -> Iterator[Bad]:
    """Give one of each kind."""
    texts = ("{", "[]", "{}", '"x"', "null", "1e999", '{"value": NaN}', '{"value": {"a": 1}}', '{"url": "x.mar"}')
    rows = ('{"instances": [[[1, 2], [3]]]}', '{"inputs": {"a": 1}}', '{"examples": [{"x": []}]}', '{"data": 1}')
    yield b"", None, {}
    yield b"\xff\xfe", JSON, {}
    yield from ((text.encode(), JSON, {}) for text in (*texts, *rows))
    yield v2(data=["a"]), JSON, {}
    yield v2(shape=[2**40, 2**40], data=[1]), JSON, {}
    yield v2(parameters={"shared_memory_region": "psm_4711", "shared_memory_byte_size": 4}), JSON, {}
    yield b"value=abc", FORM, {}
    yield b"\xff=%zz&&", FORM, {}
    yield b"--x\r\n", f"{MULTIPART}; boundary=x", {}
    yield b"abc", MULTIPART, {}
    yield *form(('name="file"; filename="a.png"', b"abc")), {}
    yield b"\x89PNG\r\n\x1a\n", "image/png", {}
    yield b"\x93NUMPY", NPY, {}
    yield b"a,b\n", "text/csv", {}
    yield b"{}\n\n", "application/jsonlines", {}
    yield b"{}", JSON, {"Content-Encoding": "gzip"}
    yield b"{}", JSON, {"Content-Encoding": "br", "Accept": "x/y"}
    yield b"{}", JSON, {"Inference-Header-Content-Length": "-1"}
    yield b"{}", JSON, {"X-Amzn-SageMaker-Target-Model": "none-such", "X-Amzn-SageMaker-Custom-Attributes": "\x7f"}


def digit() -> bytes:
    """Return a small PNG."""
    return png(np.zeros((28, 28), np.uint8))
