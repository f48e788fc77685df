"""Unpack model archives, zip files and tar files in gzip, safely.

Nothing that an archive says of its names and sizes is believed: names are checked, and what is written is counted.
"""

import contextlib
import gzip
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from servekit.errors import ArchiveRefused

MANIFEST = Path("MAR-INF", "MANIFEST.json")
MAX_NAME, MAX_PART, MAX_DEPTH = 1000, 255, 32  # of a path: characters, bytes of one part (the kernel's), folders

_CHUNK = 32768
_MAX_DIRECTORY = 4 << 20  # bytes of the directory of a zip file: 10,000 files with long names
_END = struct.Struct("<10xH10x")  # of a zip file, before its comment
_GZIP = b"\x1f\x8b"
_UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, ArithmeticError, RuntimeError),  # of parsers that trust their input
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error),
)


class Limits(NamedTuple):
    """What an archive may unpack to."""

    entries: int = 10_000  # files and folders
    size: int = 256 << 30  # bytes, all together
    ratio: int = 100  # of `size` to the size of the archive: weights shrink by a third, text by a factor of ten
    free: int = 256 << 20  # bytes that no ratio is asked of: small weights may be zeros

    def allowed(self, packed: int) -> int:
        """Return how many bytes a file of `packed` bytes may unpack to."""
        return min(self.size, max(self.free, self.ratio * packed))


_LIMITS = Limits()


def unpack(source: Path, folder: Path, limits: Limits = _LIMITS) -> None:
    """Unpack the archive `source` into `folder`, which is new and whose parent exists.

    All is written beside `folder` first, and for its owner only. Raise ArchiveRefused, and leave nothing behind, for a
    file that is damaged, that would write outside its folder or one file twice, that holds links or devices, or that
    unpacks to more than `limits`.
    """
    with reasons(f"{source.name} cannot be unpacked"):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            content = temporary / "content"
            with io.FileIO(source) as file:
                _extract(file, _Target(content, limits, limits.allowed(os.fstat(file.fileno()).st_size)))
            if os.path.lexists(folder):
                raise ValueError("its folder exists already")
            _top(content).rename(folder)
        finally:
            shutil.rmtree(temporary)


@contextlib.contextmanager
def reasons(what: str) -> Iterator[None]:
    """Turn whatever the reading of a hostile file raises into ArchiveRefused: `what`, and the reason."""
    try:
        yield
    except _UNREADABLE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "it is damaged"
        raise ArchiveRefused(f"{what}: {reason.rstrip('.')}.") from error


def parts_of(name: str) -> tuple[str, ...]:
    """Return the parts of a path inside an archive, none for the archive itself; raise ValueError if it leads out."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if not name.isprintable():  # control characters, and bytes that are no UTF-8
        raise ValueError("it holds or names a file with unprintable characters in its name")
    if len(name) > MAX_NAME or len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_PART for part in parts):
        raise ValueError("it holds or names a file whose name is too long")
    if name.startswith("/") or "\\" in name or ".." in parts or re.match("[A-Za-z]:", name):
        raise ValueError(f"{name} leads out of the archive")
    return parts


class _Target:
    """The folder that an archive is unpacked into: each path is written once, and all of them within the limits."""

    def __init__(self, root: Path, limits: Limits, allowed: int) -> None:
        self._root = root
        self._limits = limits
        self._allowed = allowed  # bytes
        self._written = 0
        self._named: set[tuple[str, ...]] = set()
        self._folders: set[tuple[str, ...]] = set()
        self._make_folder(())

    def add_folder(self, name: str) -> None:
        """Make a folder that the archive names."""
        self._make_folder(self._claim(name))

    def add_file(self, name: str, size: int, content: IO[bytes]) -> None:
        """Write a file; raise ValueError if it has not the `size` that the archive says."""
        self.check(self._written + size)
        parts = self._claim(name)
        if parts in self._folders:
            raise ValueError(f"{name} is a file and a folder")
        self._make_folder(parts[:-1])
        before = self._written
        descriptor = os.open(self._root.joinpath(*parts), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            while chunk := content.read(_CHUNK):
                self._written += len(chunk)
                self.check(self._written)
                file.write(chunk)
        if self._written - before != size:
            raise ValueError(f"{name} is damaged")

    def check(self, size: int, entries: int = 0) -> None:
        """Raise ValueError if `size` bytes, or so many files and folders, are more than may be unpacked."""
        if entries > self._limits.entries:
            raise ValueError(f"it holds more than {self._limits.entries} files and folders")
        if size > self._allowed:
            raise ValueError(f"it unpacks to more than {self._allowed} bytes, too many for its size")

    def _claim(self, name: str) -> tuple[str, ...]:
        parts = parts_of(name)
        if parts in self._named:
            raise ValueError(f"it holds {name} twice")
        self._named.add(parts)
        self.check(self._written, len(self._named) + len(self._folders))
        return parts

    def _make_folder(self, parts: tuple[str, ...]) -> None:
        if parts in self._folders:
            return
        if parts:
            self._make_folder(parts[:-1])
        try:
            self._root.joinpath(*parts).mkdir(mode=0o700)
        except FileExistsError:
            raise ValueError(f"{'/'.join(parts)} is a file and a folder") from None
        self._folders.add(parts)


class _Bounded(io.BufferedReader):
    """A file whose parser cannot be made to read more than `most` bytes at once; `last` is what it read last."""

    def __init__(self, raw: io.RawIOBase, most: int) -> None:
        super().__init__(raw, 2 * _CHUNK)  # more than a chunk: a step back is still in the buffer
        self._most = most
        self.last = b""

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes; raise ValueError if no honest file asks for as many."""
        if size is not None and size > self._most:
            raise ValueError("it is damaged, or made to fill the memory")
        self.last = super().read(size)
        return self.last


class _Counted(io.RawIOBase):
    """The content of a gzip stream, read forward only and within the limits of `target`."""

    def __init__(self, stream: gzip.GzipFile, target: _Target) -> None:
        self._stream = stream
        self._target = target
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        self._position += len(data)
        self._target.check(self._position)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go forward by reading, and stop at the end."""
        if whence == os.SEEK_SET:
            if offset < self._position:
                raise ValueError("it is damaged")
            while self._position < offset and self.read(min(_CHUNK, offset - self._position)):
                pass
        return self._position


def _extract(file: io.FileIO, target: _Target) -> None:
    magic = file.read(len(_GZIP))
    file.seek(0)
    if magic == _GZIP:
        with gzip.GzipFile(fileobj=file) as stream, _Bounded(_Counted(stream, target), _CHUNK) as tape:
            _extract_tar(tape, target)
    else:
        with _Bounded(file, _MAX_DIRECTORY) as bounded:
            _extract_zip(bounded, target)


def _extract_zip(file: _Bounded, target: _Target) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if min(len(entries), 0xFFFF) != _counted(file, archive):
            raise ValueError("it is damaged")
        target.check(sum(entry.file_size for entry in entries), len(entries))  # before any is written
        for entry in entries:
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError("it holds a link or a device")
            if entry.flag_bits & 0x41:  # encrypted, strongly encrypted
                raise ValueError("it is encrypted")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is compressed in another way than a zip file usually is")
            if entry.is_dir():
                target.add_folder(entry.orig_filename)
            else:
                with archive.open(entry) as content:
                    target.add_file(entry.orig_filename, entry.file_size, content)


def _counted(file: _Bounded, archive: zipfile.ZipFile) -> int:
    """Return how many entries a zip file says it has, in two bytes; of a damaged directory zipfile reads fewer."""
    file.seek(-_END.size - len(archive.comment), os.SEEK_END)
    return int(_END.unpack(file.read(_END.size))[0])


def _extract_tar(tape: _Bounded, target: _Target) -> None:
    with tarfile.open(fileobj=tape, mode="r:") as archive:
        for entry in archive:
            if entry.size < 0 or entry.issparse() or not (entry.isreg() or entry.isdir()):
                raise ValueError("it holds a link, a device, or a file with holes")
            content = archive.extractfile(entry)
            if content is None:
                target.add_folder(entry.name)
            else:
                target.add_file(entry.name, entry.size, content)
        if tape.last != bytes(tarfile.BLOCKSIZE):  # tarfile takes a damaged header for the end
            raise ValueError("it is damaged or not complete")
        while tape.read(_CHUNK):  # the sum of the gzip stream is at its end
            pass


def _top(folder: Path) -> Path:
    """Return the folder that holds MAR-INF: `folder`, or the only one in it, as in the archiver's tar files."""
    children = list(folder.iterdir())
    if len(children) == 1 and (children[0] / MANIFEST.parent).is_dir():
        return children[0]
    return folder
