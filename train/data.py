"""The digits to learn from: MNIST's four files, from disk or a mirror, else the digits that scikit-learn carries."""

import dataclasses
import gzip
import hashlib
import http.client
import io
import struct
import tempfile
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from servekit.spec import sha256

# File -> SHA-256 of its content after decompression: mirrors compress the same content differently.
FILES = {
    "train-images-idx3-ubyte.gz": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte.gz": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
TIMEOUT_SECONDS = 5.0  # for a mirror to connect, and between two pieces of an answer
DOWNLOAD_SECONDS = 60.0  # for a whole file
MAX_CONTENT_BYTES = 64 * 2**20  # the largest file has 47 MB after decompression


class DataError(Exception):
    """A data file that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """Pictures `(n, 28, 28)` uint8, light on black, with labels `(n,)` int64, and where they come from."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    test_source: str
    source: str
    sha256: str  # of what was learnt from

    def first(self, rows: int) -> "Digits":
        """Return digits with at most `rows` pictures to learn from, for a short run."""
        return dataclasses.replace(self, train_images=self.train_images[:rows], train_labels=self.train_labels[:rows])


def load_mnist(folder: Path) -> Digits:
    """Read MNIST's four files from `folder`; raise FileNotFoundError or DataError."""
    contents = [_decompress(folder / name) for name in FILES]
    arrays = [parse_idx(content, name) for content, name in zip(contents, FILES, strict=True)]
    if [array.shape[1:] for array in arrays] != [(28, 28), (), (28, 28), ()]:
        raise DataError(f"The files in {folder} are not pictures of 28x28 pixels and their labels.")
    if len(arrays[0]) != len(arrays[1]) or len(arrays[2]) != len(arrays[3]):
        raise DataError(f"The files in {folder} do not hold a label for every picture.")
    train_images, train_labels, test_images, test_labels = arrays
    source = "MNIST" if [sha256(content) for content in contents] == list(FILES.values()) else "other IDX files"
    return Digits(
        train_images,
        train_labels.astype(np.int64),
        test_images,
        test_labels.astype(np.int64),
        test_source=source,
        source=source,
        sha256=sha256(b"".join(contents)),
    )


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Parse the IDX format of MNIST: two zero bytes, 8 for uint8, the number of axes, their sizes, the values.

    Source: the format's description at the foot of http://yann.lecun.com/exdb/mnist/. Raises DataError, which
    calls the file `name`.
    """
    if content[:3] != b"\0\0\x08" or len(content) < 4 or len(content) < 4 + 4 * content[3]:
        raise DataError(f"{name} is not in the IDX format with values of one byte.")
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{name} is longer or shorter than its header says.")
    return values.reshape(shape)


def download_mnist(folder: Path, mirrors: tuple[str, ...] = MIRRORS) -> None:
    """Fetch into `folder` the files that it lacks, each from the first mirror that gives the right content.

    Raises DataError when no mirror gives it, OSError when it cannot be written; a file appears whole or not at all.
    """
    for name, digest in FILES.items():
        if (folder / name).exists():
            continue
        compressed = _fetch(name, digest, mirrors)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".download-", delete=False) as file:
            file.write(compressed)
        Path(file.name).chmod(0o644)
        Path(file.name).rename(folder / name)


def load_embedded() -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """Return scikit-learn's 1797 digits, `(n, 8, 8)` between 0 and 16, their labels and the SHA-256 of both."""
    from sklearn.datasets import load_digits  # only where there is nothing better: it takes a second to import

    digits = load_digits()
    images = digits.images.astype(np.float32)
    labels = digits.target.astype(np.int64)
    return images, labels, hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def _decompress(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); remove it, or put back the whole file.") from error


def _fetch(name: str, digest: str, mirrors: tuple[str, ...]) -> bytes:
    failure: Exception = DataError("There is no mirror to download from.")
    for mirror in mirrors:
        try:
            url = mirror + name
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:  # nosec B310  # of MIRRORS, all https
                compressed = _read_in_time(response)
            with gzip.open(io.BytesIO(compressed)) as content:
                if sha256(content.read(MAX_CONTENT_BYTES)) == digest:
                    return compressed
            failure = DataError(f"{mirror} gave another {name} than MNIST's.")
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            failure = error
    raise DataError(f"{name} cannot be had: {failure}") from failure


def _read_in_time(response: http.client.HTTPResponse) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_SECONDS
    pieces: list[bytes] = []
    while (piece := response.read1(2**16)) and len(pieces) < MAX_CONTENT_BYTES // 2**16:
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError("the mirror is too slow")
    return b"".join(pieces)
