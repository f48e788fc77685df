"""What is sent: the request of each case, as the bytes that go over the wire."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIGIT = Path(__file__).parent / "digit.png"  # a seven, 28x28
BATCH = 32
_BOUNDARY = "------------------------servekitbench"


@dataclasses.dataclass(frozen=True)
class Request:
    """A POST request: where it goes and what it carries."""

    path: str
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Return the request as it is sent, for a connection that is kept alive."""
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
        )
        more = "".join(f"{name}: {value}\r\n" for name, value in self.headers)
        return f"{head}{more}\r\n".encode() + self.body


def raw(path: str = "/predict") -> Request:
    """Return a request whose body is the PNG itself."""
    return Request(path, "image/png", DIGIT.read_bytes())


def multipart(path: str = "/predict") -> Request:
    """Return what `curl -F file=@digit.png` sends."""
    return Request(path, f"multipart/form-data; boundary={_BOUNDARY}", _parts("file", 1))


def form(path: str = "/predict") -> Request:
    """Return what `curl -d value=5` sends."""
    return Request(path, "application/x-www-form-urlencoded", b"value=5")


def batch(path: str = "/predict/batch") -> Request:
    """Return a form with BATCH files."""
    return Request(path, f"multipart/form-data; boundary={_BOUNDARY}", _parts("files", BATCH))


def tensor(path: str = "/v2/models/mnist/infer") -> Request:
    """Return the decoded digit as one JSON tensor of the Open Inference Protocol (V2)."""
    data = [round(float(value), 4) for value in _pixels().ravel()]
    return Request(path, "application/json", json.dumps({"inputs": [{**_IMAGE, "data": data}]}).encode())


def binary_tensor(path: str = "/v2/models/mnist/infer") -> Request:
    """Return the decoded digit as one binary tensor of the same protocol; the answer is binary, too."""
    pixels = _pixels().astype("<f4").tobytes()
    image = {**_IMAGE, "parameters": {"binary_data_size": len(pixels)}}
    head = json.dumps({"inputs": [image], "parameters": {"binary_data_output": True}}).encode()
    length = ("Inference-Header-Content-Length", str(len(head)))
    return Request(path, "application/octet-stream", head + pixels, (length,))


CASES = {
    "raw": raw, "multipart": multipart, "form": form, "batch": batch, "tensor": tensor, "binary tensor": binary_tensor,
}  # fmt: skip
_IMAGE = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32"}


def _pixels() -> NDArray[np.float32]:
    return np.asarray(Image.open(io.BytesIO(DIGIT.read_bytes())).convert("L"), np.float32) / np.float32(255)


def _parts(field: str, count: int) -> bytes:
    content = DIGIT.read_bytes()
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="digit.png"\r\n'
    part = head.encode() + b"Content-Type: image/png\r\n\r\n" + content + b"\r\n"
    return part * count + f"--{_BOUNDARY}--\r\n".encode()
