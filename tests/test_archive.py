import gzip
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from servekit.archive import Manifest, install_requirements, is_archive, read_manifest, read_model_config, unpack
from servekit.errors import ArchiveRefused
from servekit.unpacking import Limits

ROOT = Path(__file__).parent.parent
MANIFEST = json.dumps(
    {
        "createdOn": "21/11/2026 15:48:52",
        "runtime": "python",
        "model": {
            "modelName": "simple_linear",
            "serializedFile": "model.pth",
            "handler": "model_handler.py:handle",
            "modelFile": "linear.py",
            "modelVersion": "1.0",
            "requirementsFile": "requirements.txt",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
)
FILES = {"MAR-INF/MANIFEST.json": MANIFEST.encode(), "model.pth": bytes(range(256)) * 500, "sub/labels.txt": b"cat\n"}
SMALL = Limits(entries=20, size=1 << 20, ratio=10, free=20_000)


def write_zip(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes], root: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(root + name)
            entry.size, entry.mode = len(content), 0o4777
            archive.addfile(entry, io.BytesIO(content))
    return path


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(source: Path, limits: Limits = SMALL) -> str:
    """Unpack what must be refused; return the reason, after a look at everything around it."""
    parent = source.parent / "models"
    for folder in (parent / "abc", parent / "abc-evil"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kept").write_text("kept")
    before = sorted(source.parent.rglob("*"))
    with pytest.raises(ArchiveRefused) as caught:
        unpack(source, parent / "new", limits)
    assert sorted(source.parent.rglob("*")) == before
    assert {path.read_text() for path in parent.rglob("kept")} == {"kept"}
    message = str(caught.value)
    assert message.startswith(f"{source.name} cannot be unpacked: ") and message.endswith(".")
    assert "\n" not in message and str(source.parent) not in message
    return message


@pytest.mark.parametrize("name", ["m.mar", "m.model", "m.zip"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_a_zip_is_unpacked(tmp_path: Path, name: str, compression: int) -> None:
    source = write_zip(tmp_path / name, FILES, compression)
    assert is_archive(source)
    unpack(source, tmp_path / "model")
    assert content_of(tmp_path / "model") == FILES
    assert sorted(os.listdir(tmp_path)) == sorted([name, "model"])


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz"])
@pytest.mark.parametrize("root", ["", "m/", "./"])
def test_a_tar_is_unpacked_without_its_root_folder(tmp_path: Path, name: str, root: str) -> None:
    source = write_tar(tmp_path / name, FILES, root)
    assert is_archive(source)
    unpack(source, tmp_path / "model")
    assert content_of(tmp_path / "model") == FILES


def test_a_tar_of_the_usual_tools_is_unpacked(tmp_path: Path) -> None:
    lie = tmp_path / "lie"
    for name, content in (FILES | {"a" * 120 + "/" + "ä" * 100: b"long"}).items():
        path = lie / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for option in ("--format=gnu", "--format=pax"):
        subprocess.run(["tar", "czf", tmp_path / "m.tar.gz", option, "-C", lie, "."], check=True)
        unpack(tmp_path / "m.tar.gz", tmp_path / option)
        assert content_of(tmp_path / option) == content_of(lie)


def test_large_files_of_a_tar_are_whole(tmp_path: Path) -> None:
    files = {f"{size}.bin": os.urandom(size) for size in (0, 511, 512, 32_768, 65_536, 65_537, 1 << 20)}
    unpack(write_tar(tmp_path / "m.tgz", files), tmp_path / "model")
    assert content_of(tmp_path / "model") == files


def test_a_root_folder_without_a_manifest_stays(tmp_path: Path) -> None:
    unpack(write_zip(tmp_path / "m.zip", {"code/inference.py": b""}), tmp_path / "model")
    assert content_of(tmp_path / "model") == {"code/inference.py": b""}


def test_only_the_owner_reads_what_was_unpacked(tmp_path: Path) -> None:
    unpack(write_tar(tmp_path / "m.tgz", FILES), tmp_path / "model")
    for path in [tmp_path / "model", *(tmp_path / "model").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_folders_of_their_own_and_empty_ones_are_made(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("a/b.txt", b"")
        archive.writestr("a/", b"")
        archive.writestr("empty/", b"")
    unpack(tmp_path / "m.zip", tmp_path / "model")
    assert sorted(os.listdir(tmp_path / "model")) == ["a", "empty"]


def test_what_is_an_archive(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    (tmp_path / "folder.mar").mkdir()
    (tmp_path / "unpacked" / "MAR-INF").mkdir(parents=True)
    (tmp_path / "unpacked" / "MAR-INF" / "MANIFEST.json").write_text("{}")
    assert is_archive(tmp_path / "unpacked")
    for name in ("weights.pth", "folder.mar", "missing.mar"):
        assert not is_archive(tmp_path / name)


HOSTILE = {
    "../../x": "leads out",
    "a/../../x": "leads out",
    "a/../b": "leads out",
    "..": "leads out",
    "/abs/x": "leads out",
    "../abc-evil/kept": "leads out",
    "../abc/kept": "leads out",
    "..\\x": "leads out",
    "a\\b": "leads out",
    "\\\\server\\x": "leads out",
    "C:/x": "leads out",
    "c:x": "leads out",
    "a\nb": "unprintable characters",
    "a\x1b[2Jb": "unprintable characters",
    "\u202egpj.exe": "unprintable characters",
    "a" * 256: "too long",
    "ä" * 128: "too long",
    "a/" * 40 + "b": "too long",
    "/".join(["a" * 200] * 6): "too long",
    ".": "is a file and a folder",
}


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_is_refused(
    tmp_path: Path, name: str, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    assert HOSTILE[name] in refused(write(tmp_path / "m.mar", FILES | {name: b"x"}), Limits())


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("names", [("a//b", "a/b"), ("./a", "a"), ("a/./b", "a/b")])
def test_a_file_that_comes_twice_is_refused(
    tmp_path: Path, names: tuple[str, str], write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    assert "twice" in refused(write(tmp_path / "m.mar", dict.fromkeys(names, b"x")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert "it holds a twice" in refused(tmp_path / "m.mar")


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b"), ("a", "a/b/c")])
def test_a_file_that_is_a_folder_is_refused(
    tmp_path: Path, names: tuple[str, str], write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    assert "is a file and a folder" in refused(write(tmp_path / "m.mar", dict.fromkeys(names, b"x")))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_of_a_zip_are_refused(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("link")
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "m.mar", "w") as archive:
        archive.writestr(entry, "../abc/kept")
    assert "a link or a device" in refused(tmp_path / "m.mar")


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"Z"]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = kind, "../abc/kept"
        archive.addfile(entry)
    assert "a link, a device" in refused(tmp_path / "m.tgz")


def test_a_file_behind_a_link_is_not_written(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as archive:
        entry = tarfile.TarInfo("out")
        entry.type, entry.linkname = tarfile.SYMTYPE, str(tmp_path / "models" / "abc")
        archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("out/kept"))
    assert "a link" in refused(tmp_path / "m.tgz")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = write_zip(tmp_path / "m.mar", {"a": b"x"}, zipfile.ZIP_STORED).read_bytes()
    directory = content.index(b"PK\x01\x02")
    for flags in (0x01, 0x40):
        changed = bytearray(content)
        changed[directory + 8] |= flags
        changed[6] |= flags
        (tmp_path / "m.mar").write_bytes(changed)
        assert "it is encrypted" in refused(tmp_path / "m.mar")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_in_another_compression_is_refused(tmp_path: Path, compression: int) -> None:
    assert "compressed in another way" in refused(write_zip(tmp_path / "m.mar", FILES, compression), Limits())


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_too_much_for_the_size_of_the_file_is_refused(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    assert "too many for its size" in refused(write(tmp_path / "m.mar", {"zeros": bytes(1 << 20)}))


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_too_many_files_are_refused(tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]) -> None:
    files = {f"{number}": b"x" for number in range(25)}
    assert "more than 20 files" in refused(write(tmp_path / "m.mar", files), Limits(entries=20))


def test_ten_gigabytes_of_zeros_are_refused(tmp_path: Path) -> None:
    zeros = tmp_path / "zeros"
    with zeros.open("wb") as file:
        file.truncate(10 << 30)
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        entry = archive.gettarinfo(zeros)
        archive.addfile(entry)  # the header only
    source = tmp_path / "m.tgz"
    source.write_bytes(gzip.compress((tmp_path / "m.tar").read_bytes()))
    zeros.unlink()
    assert "too many for its size" in refused(source, Limits())


def test_a_bomb_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "m.mar", {"zeros": bytes(1 << 20)}).read_bytes())
    directory = content.index(b"PK\x01\x02")
    for position in (directory + 24, 22):
        struct.pack_into("<I", content, position, 100)
    (tmp_path / "m.mar").write_bytes(content)
    assert "zeros" in refused(tmp_path / "m.mar")


def test_a_file_that_is_shorter_than_said_is_refused(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "m.mar", {"a": b"x"}, zipfile.ZIP_STORED).read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 100)
    (tmp_path / "m.mar").write_bytes(content)
    assert "a is damaged" in refused(tmp_path / "m.mar")


def test_a_bomb_between_the_files_of_a_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    padded = gzip.decompress((tmp_path / "m.tgz").read_bytes()) + bytes(1 << 20)
    (tmp_path / "m.tgz").write_bytes(gzip.compress(padded))
    assert "too many for its size" in refused(tmp_path / "m.tgz")


def test_a_header_that_fills_the_memory_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a")
        entry.pax_headers = {"comment": "x" * 100_000}
        archive.addfile(entry)
    assert "made to fill the memory" in refused(tmp_path / "m.tgz", Limits())
    path = write_zip(tmp_path / "m.mar", {"a": b"x"})
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(1000):
            entry = zipfile.ZipInfo(f"{number}")
            entry.extra = struct.pack("<HH", 0x4242, 8000) + bytes(8000)
            archive.writestr(entry, b"")
    assert "made to fill the memory" in refused(path, Limits())


def test_an_archive_in_an_archive_stays_packed(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"zeros": bytes(1 << 20)}).read_bytes()
    unpack(write_zip(tmp_path / "m.mar", {"inner.zip": inner}), tmp_path / "model", SMALL)
    assert content_of(tmp_path / "model") == {"inner.zip": inner}


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_every_truncation_is_refused(tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]) -> None:
    content = write(tmp_path / "m.mar", {"a": b"x" * 2000, "b/c": os.urandom(100)}).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "m.mar").write_bytes(content[:length])
        refused(tmp_path / "m.mar")


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_changed_bytes_are_refused_or_harmless(
    tmp_path: Path, write: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    files = {"a": b"x" * 2000, "b/c": os.urandom(100)}
    content = write(tmp_path / "m.mar", files).read_bytes()
    for position in range(0, len(content), 3):
        changed = bytearray(content)
        changed[position] ^= 0xFF
        (tmp_path / "m.mar").write_bytes(changed)
        try:
            unpack(tmp_path / "m.mar", tmp_path / "model", SMALL)
        except ArchiveRefused:
            assert os.listdir(tmp_path) == ["m.mar"]
        else:
            assert sorted(content_of(tmp_path / "model").values()) == sorted(files.values())
            subprocess.run(["rm", "-r", tmp_path / "model"], check=True)


@pytest.mark.parametrize("damage", ["no end", "no padding", "header", "size", "chain"])
def test_a_damaged_tar_is_refused(tmp_path: Path, damage: str) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as archive:
        for name in "abc":
            archive.addfile(tarfile.TarInfo(name))
    content = bytearray((tmp_path / "m.tar").read_bytes())
    if damage == "no end":
        del content[512 * 3 :]
    elif damage == "no padding":
        entry = tarfile.TarInfo("a")
        entry.size = 1
        content = bytearray(entry.tobuf() + b"x")
    elif damage == "header":
        content[512 + 1] ^= 0xFF
    elif damage == "size":
        entry = tarfile.TarInfo("b")
        entry.size = -1024
        content[512:1024] = entry.tobuf(tarfile.GNU_FORMAT)
    else:
        entry = tarfile.TarInfo("a")
        entry.type = tarfile.XHDTYPE
        content = bytearray(entry.tobuf() * 30)
    (tmp_path / "m.tgz").write_bytes(gzip.compress(content))
    (tmp_path / "m.tar").unlink()
    refused(tmp_path / "m.tgz")


def test_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    content = write_zip(tmp_path / "m.mar", {"ä": b"x"}).read_bytes()
    (tmp_path / "m.mar").write_bytes(content.replace("ä".encode(), b"\xff\xff"))
    refused(tmp_path / "m.mar")
    with tarfile.open(tmp_path / "m.mar", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("a\udcff"))
    assert "unprintable" in refused(tmp_path / "m.mar")


def test_what_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "missing.mar")
    (tmp_path / "folder.mar").mkdir()
    assert "Is a directory" in refused(tmp_path / "folder.mar")
    source = write_zip(tmp_path / "m.mar", FILES)
    with pytest.raises(ArchiveRefused, match="No such file"):
        unpack(source, tmp_path / "nowhere" / "model")
    (tmp_path / "full").mkdir()
    with pytest.raises(ArchiveRefused, match="its folder exists already"):
        unpack(source, tmp_path / "full")


def manifest_in(folder: Path, content: Any) -> Path:
    (folder / "MAR-INF").mkdir()
    (folder / "MAR-INF" / "MANIFEST.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_a_manifest_is_read(tmp_path: Path) -> None:
    manifest = read_manifest(manifest_in(tmp_path, MANIFEST))
    assert manifest == Manifest(
        model_name="simple_linear",
        model_version="1.0",
        handler="model_handler.py:handle",
        serialized_file="model.pth",
        model_file="linear.py",
        requirements_file="requirements.txt",
        config_file="model-config.yaml",
        runtime="python",
        content=json.loads(MANIFEST),
    )


def test_an_old_manifest_is_read(tmp_path: Path) -> None:
    content = {
        "specificationVersion": "1.0",
        "implementationVersion": "1.0",
        "description": "noop v1.0",
        "modelServerVersion": "1.0",
        "license": "Apache 2.0",
        "runtime": "python",
        "model": {"modelName": "noop", "description": "noop", "modelVersion": 1.11, "handler": "service:handle"},
    }
    manifest = read_manifest(manifest_in(tmp_path, content))
    assert (manifest.model_name, manifest.model_version, manifest.handler) == ("noop", "1.11", "service:handle")
    assert manifest.serialized_file is None
    assert manifest.content == content


@pytest.mark.parametrize("content", [None, {}, {"model": {}}])
def test_what_a_manifest_leaves_out_has_defaults(tmp_path: Path, content: Any) -> None:
    manifest = read_manifest(tmp_path if content is None else manifest_in(tmp_path, content))
    assert manifest == Manifest(content=content or {})
    assert (manifest.model_name, manifest.model_version, manifest.runtime) == (None, "1.0", "python")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Expecting value"),
        ("[" * 20_000, "recursion"),
        ([], 'member "model" is an object'),
        ({"model": []}, 'member "model" is an object'),
        ({"model": "x"}, 'member "model" is an object'),
        ({"model": {"handler": ["x"]}}, "handler must be a word"),
        ({"model": {"modelVersion": True}}, "modelVersion must be a word"),
        ({"model": {"modelName": "../x"}}, "leads out"),
        ({"model": {"modelName": "a/x"}}, "without slashes"),
        ({"model": {"modelName": "a\nx"}}, "unprintable"),
        ({"model": {"handler": "../x.py"}}, "leads out"),
        ({"model": {"handler": "/x.py:f"}}, "leads out"),
        ({"model": {"handler": ":f"}}, "an empty name leads out"),
        ({"model": {"handler": "link/x"}}, "leads out"),
        ({"model": {"handler": "linked"}}, "leads out"),
        ({"model": {"serializedFile": "a/../../x"}}, "leads out"),
        ({"model": {"modelFile": "C:\\x"}}, "leads out"),
        ({"model": {"requirementsFile": "link/requirements.txt"}}, "leads out"),
        ({"model": {"configFile": "\ud800"}}, "unprintable"),
        ({"model": {"handler": "x.py:\ud800"}}, "cannot be written as JSON"),
        ({"model": {}, "createdBy": "\ud800"}, "cannot be written as JSON"),
        ("x" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    (tmp_path / "outside.py").touch()
    (folder / "linked.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(ArchiveRefused) as caught:
        read_manifest(manifest_in(folder, content))
    assert str(caught.value).startswith("MAR-INF/MANIFEST.json cannot be used: ")
    assert reason in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_manifest_that_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MAR-INF" / "MANIFEST.json").mkdir(parents=True)
    with pytest.raises(ArchiveRefused, match="it is missing"):
        read_manifest(tmp_path)


def config_of(folder: Path, text: str) -> dict[str, Any]:
    (folder / "model-config.yaml").write_text(text)
    return read_model_config(folder, Manifest(config_file="model-config.yaml"))


def test_a_configuration_is_read(tmp_path: Path) -> None:
    text = "minWorkers: 1\nhandler: {profile: true}\ndeviceIds: [0, 1]\ndefault: &d {a: 1}\nother: {<<: *d, b: null}\n"
    assert config_of(tmp_path, text) == {
        "minWorkers": 1,
        "handler": {"profile": True},
        "deviceIds": [0, 1],
        "default": {"a": 1},
        "other": {"a": 1, "b": None},
    }
    assert config_of(tmp_path, "# nothing\n") == {}
    assert read_model_config(tmp_path, Manifest()) == {}


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("!!python/object/apply:os.system [touch x]", "could not determine a constructor"),
        ("a: !!javax.script.ScriptEngineManager []", "could not determine a constructor"),
        (LAUGHS, "more than 10000 values"),
        ("a: &a {x: 1}\n" + "b: &b {<<: [" + "*a," * 11_000 + "]}", "more than 10000 values"),
        ("a: &a [*a]", "more than 10000 values"),
        ("[" * 20_000, "recursion"),
        ("- 1", "must map names"),
        ("1: 2", "must map names"),
        ("a: [", "line 1"),
        ("a: 1\n---\nb: 1", "single document"),
        ("a: " + "x" * 70_000, "larger than"),
        ("a: " + "9" * 5000, "integer string"),
        ("a: 2024-99-99", "month"),
        ("a: 0x" + "f" * 20_000, "cannot be written as JSON"),
        ("a: " + ":".join(["59"] * 5000), "cannot be written as JSON"),
        ('a: "\\ud800"', "cannot be written as JSON"),
        ("a: {2024-01-01: x}", "cannot be written as JSON"),
    ],
)
def test_a_configuration_that_is_an_attack_or_a_mistake_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ArchiveRefused) as caught:
        config_of(tmp_path, text)
    assert re.match(r"model-config.yaml cannot be used: [^\n]*\.$", str(caught.value))
    assert reason in str(caught.value)
    assert os.listdir(tmp_path) == ["model-config.yaml"]


def test_a_configuration_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="model-config.yaml cannot be used: it is missing."):
        read_model_config(tmp_path, Manifest(config_file="model-config.yaml"))


def test_without_pyyaml_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['yaml'] = None\n"
        "from pathlib import Path; from servekit.archive import Manifest, read_model_config\n"
        "from servekit.errors import ArchiveRefused\n"
        "try: read_model_config(Path(), Manifest(config_file='model-config.yaml'))\n"
        "except ArchiveRefused as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("cannot be read without PyYAML; install it with: pip install pyyaml.\n")


def write_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel with one module, `name`, whose `VERSION` is `version`."""
    info = f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    write_zip(folder / f"{name}-{version}-py3-none-any.whl", {path: text.encode() for path, text in files.items()})


def install(tmp_path: Path, requirements: str, timeout: float = 60) -> str:
    """Install in a process that pip reaches no network from; return the folder, or why not."""
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "requirements.txt").write_text(requirements)
    program = (
        "import sys; from pathlib import Path; from servekit.archive import Manifest, install_requirements\n"
        "from servekit.errors import ArchiveRefused\n"
        "model, into, timeout = sys.argv[1:]\n"
        "manifest = Manifest(requirements_file='requirements.txt')\n"
        "try: print(install_requirements(Path(model), manifest, Path(into), float(timeout)))\n"
        "except ArchiveRefused as error: print(error)\n"
    )
    environ = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    command = [sys.executable, "-c", program, str(model), str(tmp_path / "into"), str(timeout)]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout.strip()


def test_requirements_are_installed_once_into_a_folder_of_their_own(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.5")
    folder = Path(install(tmp_path, "# what it needs\n\ntiny >= 1, <2 ; python_version > '3'  # and why\n"))
    assert folder.parent == tmp_path / "into"
    assert (folder / "tiny.py").read_text() == "VERSION = '1.5'\n"
    (tmp_path / "wheels" / "tiny-1.5-py3-none-any.whl").unlink()
    assert install(tmp_path, "tiny >= 1,  <2 ; python_version > '3'") == str(folder)
    assert os.listdir(tmp_path / "into") == [folder.name]


def test_archives_that_install_the_same_at_the_same_time_share_it(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.5")
    with ThreadPoolExecutor() as pool:
        folders = set(pool.map(lambda _: install(tmp_path, "tiny"), range(2)))
    assert folders == {str(path) for path in (tmp_path / "into").iterdir()}
    assert os.listdir(folders.pop()).count("tiny.py") == 1


def test_a_file_in_the_place_of_the_packages_is_refused(tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "tiny", "1.5")
    folder = Path(install(tmp_path, "tiny"))
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("a file")
    assert install(tmp_path, "tiny") == "requirements.txt cannot be installed: Not a directory."


def test_a_requirement_that_pip_cannot_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model" / "pip").mkdir(parents=True)
    (tmp_path / "model" / "pip" / "__init__.py").write_text("raise SystemExit('the pip of the archive')")
    message = install(tmp_path, "tiny==2")
    assert message == "requirements.txt cannot be installed: pip says: No matching distribution found for tiny==2."
    assert os.listdir(tmp_path / "into") == []


def test_pip_has_a_deadline(tmp_path: Path) -> None:
    message = install(tmp_path, "tiny==2", timeout=0.01)
    assert message == "requirements.txt cannot be installed: pip took more than 0.01 seconds."
    assert os.listdir(tmp_path / "into") == []


@pytest.mark.parametrize(
    "line",
    [
        "-e git+https://example.com/x#egg=x",
        "--index-url https://example.com",
        "-r other.txt",
        "-c other.txt",
        "--pre",
        "tiny --hash=sha256:00",
        "tiny --global-option=x",
        "tiny @ https://example.com/tiny.whl",
        "https://example.com/tiny.whl",
        "git+ssh://example.com/x",
        "file:///etc/passwd",
        "./tiny",
        "../tiny",
        "/tmp/tiny",
        "sub/tiny",
        "tiny-1.0-py3-none-any.whl",
        "tiny-1.0.zip",
        "tiny.tar.gz",
        "tiny.zip[extra]",
        "tiny==1.zip",
        "tiny \\",
        "${HOME}",
        "tiny==$X",
        "tiny; rm -rf /",
        "tiny==1 other==2",
        "tiny,other",
        "tiny>=",
        "@",
        "a" + " " * 60_000 + "@",
        "a" * 60_000 + "@",
    ],
)
def test_what_is_no_plain_requirement_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "requirements.txt").write_text(f"numpy\n{line}\n")
    with pytest.raises(ArchiveRefused, match="is not a plain requirement") as caught:
        install_requirements(tmp_path, Manifest(requirements_file="requirements.txt"), tmp_path / "into")
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "into").exists()


def test_an_archive_that_asks_for_nothing_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("\ufeff# nothing\n\n")
    assert install_requirements(tmp_path, Manifest(), tmp_path / "into") is None
    assert install_requirements(tmp_path, Manifest(requirements_file="requirements.txt"), tmp_path / "into") is None
    with pytest.raises(ArchiveRefused, match="missing.txt cannot be installed: it is missing."):
        install_requirements(tmp_path, Manifest(requirements_file="missing.txt"), tmp_path / "into")
    assert not (tmp_path / "into").exists()
