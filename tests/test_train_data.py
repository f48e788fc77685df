import gzip
import http.server
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from servekit.spec import sha256
from train import data
from train.data import FILES, DataError, download_mnist, load_embedded, load_mnist, parse_idx


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files in MNIST's form, with pictures of noise."""
    random = np.random.default_rng(0)
    for name, rows in zip(FILES, (20, 20, 10, 10), strict=True):
        shape = (rows, 28, 28) if "images" in name else (rows,)
        (tmp_path / name).write_bytes(gzip.compress(idx(random.integers(0, 10, shape))))
    return tmp_path


def test_idx_files_are_read(folder: Path) -> None:
    digits = load_mnist(folder)
    assert (digits.train_images.shape, digits.test_images.shape) == ((20, 28, 28), (10, 28, 28))
    assert (digits.train_labels.dtype, len(digits.test_labels)) == (np.int64, 10)
    assert digits.source == "other IDX files"
    contents = b"".join(gzip.decompress((folder / name).read_bytes()) for name in FILES)
    assert digits.sha256 == sha256(contents)


def test_a_missing_file_is_no_data_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_mnist(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"x" + content, lambda content: b""])
def test_a_damaged_file_is_named(folder: Path, damage: object) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.gz is (damaged|not in the IDX format)"):
        load_mnist(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\x08", b"\0\0\x09\1" + b"\0" * 8, b"\0\0\x08\1\0\0", b"\0\0\x08\1\0\0\0\5abc", b"\0\0\x08\1\0\0\0\1abc"],
)
def test_what_is_no_idx_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        parse_idx(content, "file")


def test_files_that_do_not_belong_together_are_refused(folder: Path) -> None:
    labels = folder / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(19))))
    with pytest.raises(DataError, match="label for every picture"):
        load_mnist(folder)
    labels.write_bytes(gzip.compress(idx(np.zeros((20, 28, 28)))))
    with pytest.raises(DataError, match="28x28 pixels"):
        load_mnist(folder)


@pytest.fixture
def mirror(folder: Path) -> Iterator[str]:
    """A web server on loopback that gives the files of `folder`."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files of `folder` the ones that a download is checked against."""
    sums = {name: sha256(gzip.decompress((folder / name).read_bytes())) for name in FILES}
    monkeypatch.setattr(data, "FILES", sums)


def test_missing_files_are_downloaded_from_the_first_mirror_that_works(mirror: str, known: None, tmp_path: Path) -> None:
    target = tmp_path / "new" / "mnist"
    download_mnist(target, ("http://127.0.0.1:9/", mirror))
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    assert load_mnist(target).source == "MNIST"
    download_mnist(target, ())  # nothing is missing, so no mirror is asked


def test_another_content_is_never_kept(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gave another train-images-idx3-ubyte.gz than MNIST's"):
        download_mnist(tmp_path / "new", (mirror,))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("content", [b"<html>a login page</html>", gzip.compress(b"x" * 1000)[:-9]])
def test_what_is_no_gzip_file_is_refused(mirror: str, folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz cannot be had: "):
        download_mnist(tmp_path / "new", (mirror,))


def test_without_a_mirror_nothing_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no mirror"):
        download_mnist(tmp_path, ())
    with pytest.raises(DataError, match="Connection refused"):
        download_mnist(tmp_path, ("http://127.0.0.1:9/",))


def test_a_mirror_that_drips_is_given_up(mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "DOWNLOAD_SECONDS", 0.0)
    with pytest.raises(DataError, match="the mirror is too slow"):
        download_mnist(tmp_path / "new", (mirror,))


def test_a_mirror_that_speaks_no_http_is_given_up(tmp_path: Path) -> None:
    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"garbage\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DataError, match="cannot be had"):
            download_mnist(tmp_path, (f"http://127.0.0.1:{listener.getsockname()[1]}/",))
        thread.join()


def test_the_embedded_digits_are_those_of_scikit_learn() -> None:
    images, labels, digest = load_embedded()
    assert (images.shape, images.dtype, labels.shape) == ((1797, 8, 8), np.float32, (1797,))
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).min() > 170
    assert digest == load_embedded()[2]
