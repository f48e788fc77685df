"""Damaged archives, manifests and configs of Triton: unpacked or refused, and nothing is written outside their folder."""

import contextlib
import gzip
import io
import json
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from servekit.archive import read_manifest, read_model_config
from servekit.errors import ArchiveRefused, ModelLoadError
from servekit.triton import meaning
from servekit.triton.config import read_config
from servekit.unpacking import Limits, parts_of, unpack
from tests.fuzz.made import JSON, bounded, damaged
from tests.triton_models import SIMPLE, write

LIMITS = Limits(entries=20, size=100_000, ratio=100, free=50_000)
NAMES = (
    "model.py",
    "a/b.txt",
    "MAR-INF/MANIFEST.json",
    "../x",
    "/etc/x",
    "a/../../x",
    "a//b.txt",
    "./model.py",
    "C:x",
    "a\\b",
    "é",
    "x" * 300,
    "a",
)
MANIFEST = {"model": {"modelName": "m", "handler": "h.py", "configFile": "c.yaml"}, "runtime": "python"}


class Zeros(bytes):
    """Many bytes that are named in few words where a test fails."""

    def __repr__(self) -> str:
        return "ZEROS"


ZEROS = Zeros(60_000)


def zipped(files: list[tuple[str, bytes]]) -> bytes:
    """Return a zip file of `files`, some of which may have the same name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            entry = zipfile.ZipInfo(name)
            with warnings.catch_warnings(action="ignore"), archive.open(entry, "w") as file:  # two of the same name
                file.write(content)
    return stream.getvalue()


def tarred(files: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a tar file in gzip; all entries but the first are of `kind`."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for number, (name, content) in enumerate(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.linkname = len(content), "../../target"
            entry.type = kind if number else tarfile.REGTYPE
            entry.size *= entry.isreg()
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(stream.getvalue(), mtime=0)


def unpacked(content: bytes) -> None:
    """Unpack `content` and read what it says; fail if that leaves anything outside of its folder."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary, "root")
        root.mkdir()
        source = root / "a.mar"
        source.write_bytes(content)
        with contextlib.suppress(ArchiveRefused):
            bounded(unpack, source, root / "folder", LIMITS)
            written = [path for path in (root / "folder").rglob("*") if path.is_file()]
            assert sum(path.stat().st_size for path in written) <= LIMITS.size and len(written) <= LIMITS.entries
            assert not any(path.is_symlink() for path in (root / "folder").rglob("*"))
            read_model_config(root / "folder", read_manifest(root / "folder"))
        assert {path.name for path in root.iterdir()} <= {"a.mar", "folder"}
        assert {path.name for path in Path(temporary).iterdir()} == {"root"}


FILES = st.lists(st.tuples(st.sampled_from(NAMES), st.binary(max_size=20) | st.sampled_from((ZEROS,))), max_size=5)
KINDS = st.sampled_from(
    (
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    )
)
WHOLE = [
    ("model.py", b"x = 1\n"),
    ("MAR-INF/MANIFEST.json", json.dumps(MANIFEST).encode()),
    ("h.py", b""),
    ("c.yaml", b"a: 1\n"),
]


@given(FILES, KINDS, st.booleans())
def test_an_archive_of_any_names_stays_in_its_folder(files: list[tuple[str, bytes]], kind: bytes, is_zip: bool) -> None:
    unpacked(zipped(files) if is_zip else tarred(files, kind))


@given(damaged((zipped(WHOLE), tarred(WHOLE)), (b"\0", b"\xff" * 4, b"PK\1\2", b"PK\5\6", b"\x1f\x8b", b"../../x")))
def test_no_damaged_archive_does_harm(content: bytes) -> None:
    unpacked(content)


@given(
    damaged(
        (gzip.decompress(tarred(WHOLE)),),
        (b"../../x", b"2", b"1", b"\0" * 8, b"7777777", b"\x80" + b"\xff" * 11, b"ustar"),
        most=3,
    )
)
def test_no_damaged_tar_in_a_whole_gzip_does_harm(content: bytes) -> None:
    unpacked(gzip.compress(content, 1, mtime=0))


@given(st.text(max_size=20) | st.lists(st.sampled_from(("..", ".", "", "a", "/", "\\", "C:", "\0", "\u2025"))).map("/".join))
def test_parts_of_a_path_never_lead_out(name: str) -> None:
    with contextlib.suppress(ValueError):
        parts = parts_of(name)
        assert not {"", ".", ".."} & set(parts) and not any("/" in part or "\0" in part for part in parts)


MEMBERS = st.sampled_from(
    ("model", "modelName", "modelVersion", "handler", "serializedFile", "requirementsFile", "configFile", "runtime")
)
VALUES = JSON | st.sampled_from(("../x", "/etc/passwd", "a/../../b", "m.py:handle", "c.yaml", "\ud800", "x" * 2000))
YAML = (
    b"a: 1\nb: [1, {c: d}]\n",
    b"a: &a [1]\nb: *a\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"a: 2026-11-21\n",
    b"? [1]\n: 2\n",
)


@given(
    st.dictionaries(MEMBERS, VALUES),
    JSON,
    damaged(YAML, (b"&a ", b"*a", b"!!python/name:os.system", b"<<: *a\n", b"- ", b": ", b"\t", b"\0")),
)
def test_no_manifest_and_no_config_does_harm(model: dict[str, object], runtime: object, config: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "MAR-INF").mkdir()
        (folder / "c.yaml").write_bytes(config)
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps({"model": model, "runtime": runtime}))
        with contextlib.suppress(ArchiveRefused):
            manifest = bounded(read_manifest, folder)
            for file in (manifest.serialized_file, manifest.model_file, manifest.requirements_file, manifest.config_file):
                assert file is None or (folder / file).resolve().is_relative_to(folder.resolve())
            json.dumps(bounded(read_model_config, folder, manifest), default=str)


WORDS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"-1",
    b"1e400",
    b'"',
    b"TYPE_FP64",
    b"max_batch_size: -1\n",
    b"99999999999999999999",
    b"dims: [ -1 ]",
)
MORE = (
    b"ensemble_scheduling { step { model_name: 'x' } }\n",
    b"version_policy: { specific { versions: [1, 9] }}\n",
    b"model_warmup { name: 'w' }\n",
)


@given(damaged((SIMPLE.encode(),), (*WORDS, *MORE)))
def test_no_config_of_triton_does_harm(config: bytes) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(Path(temporary), "simple")
        (folder / "config.pbtxt").write_bytes(config)
        try:
            values = bounded(read_config, folder).values
        except ModelLoadError:
            return
        json.dumps(values)
        try:
            completed = meaning.completed(values, "simple", meaning.backend_of(values, folder / "1"))
            meaning.check(completed, "simple")
            meaning.signature_of(completed, folder)
            meaning.queue_of(completed)
            meaning.reshapes_of(completed)
        except (ValueError, ModelLoadError) as error:
            assert str(error)


@given(
    damaged(
        (b'{"max_batch_size": 8, "input": [{"name": "x", "dims": ["-1"]}]}', b'{"parameters": {"a": {"string_value": "b"}}}')
    )
)
def test_no_config_of_a_request_to_load_does_harm(config: bytes) -> None:
    with contextlib.suppress(ModelLoadError):
        bounded(read_config, Path("/nowhere"), config.decode("utf-8", "replace") or "{}")
