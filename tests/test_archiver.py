import json
import logging
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest

from servekit import __version__
from servekit.archive import read_manifest, unpack
from servekit.archiver import ArchiveOptions, main, make_archive
from servekit.errors import ArchiveRefused

ROOT = Path(__file__).parent.parent
FORMATS = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with the files of a model, and an empty one to export to."""
    files = {
        "model.pth": "weights",
        "model_handler.py": "def handle(data, context):\n    return data\n",
        "models/__init__.py": "",
        "models/linear.py": "class SimpleLinearModel: ...\n",
        "my-requirements.txt": "numpy\n",
        "conf/model-config.yaml": "minWorkers: 1\n",
        "extra/a.txt": "a",
        "extra/.hidden": "hidden",
        "extra/sub/b.txt": "b",
        "extra/sub/.git/config": "not for an archive",
        "extra/__pycache__/a.pyc": "not for an archive",
        "extra/MAR-INF/MANIFEST.json": "{}",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "out").mkdir()
    return tmp_path


def archive(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the archiver in `work` as a command, with what every call needs unless it is given."""
    needed = {"--model-name": "m", "--version": "1.0", "--handler": "model_handler.py", "--export-path": "out"}
    given = [part for flag, value in needed.items() if flag not in arguments for part in (flag, value)]
    program = "import sys; from servekit.archiver import main; sys.exit(main())"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *given, *arguments]
    return subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, check=False)


def archived(work: Path, *arguments: str, place: str = "out/m.mar") -> dict[str, bytes]:
    """Archive, unpack as the server does, and return the files by name."""
    done = archive(work, *arguments)
    assert (done.returncode, done.stdout) == (0, "")
    assert not [path for path in (work / "out").iterdir() if path.name.startswith(".")]
    folder = work / place
    if folder.is_file():
        folder = work / "unpacked" / folder.name
        folder.parent.mkdir(exist_ok=True)
        unpack(work / place, folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(work: Path, *arguments: str) -> str:
    """Return the sentence of an archiver that must fail, after a look that it wrote nothing."""
    before = sorted((work / "out").rglob("*"))
    done = archive(work, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"torch-model-archiver: [^\n]+\.\n", done.stderr)
    assert sorted((work / "out").rglob("*")) == before
    return done.stderr


def test_the_archive_of_a_reader(work: Path) -> None:
    flags = (
        "--model-name simple_linear --version 1.0 --serialized-file model.pth --handler model_handler.py"
        " --model-file models/linear.py --export-path out --force --extra-files models/linear.py,models/__init__.py"
    )
    files = archived(work, *flags.split(), place="out/simple_linear.mar")
    assert sorted(files) == ["MAR-INF/MANIFEST.json", "__init__.py", "linear.py", "model.pth", "model_handler.py"]
    assert files["model.pth"] == b"weights"
    manifest = json.loads(files["MAR-INF/MANIFEST.json"])
    assert re.fullmatch(r"\d\d/\d\d/\d{4} \d\d:\d\d:\d\d", manifest.pop("createdOn"))
    assert manifest == {
        "runtime": "python",
        "model": {
            "modelName": "simple_linear",
            "serializedFile": "model.pth",
            "handler": "model_handler.py",
            "modelFile": "linear.py",
            "modelVersion": "1.0",
        },
        "archiverVersion": __version__,
    }


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_holds_the_same_files(work: Path, form: str) -> None:
    flags = ("--extra-files", "extra", "-r", "my-requirements.txt", "-c", "conf/model-config.yaml")
    place = f"out/m{FORMATS[form]}"
    files = archived(work, *flags, "--archive-format", form, place=place)
    expected = [".hidden", "MAR-INF/MANIFEST.json", "a.txt", "model-config.yaml", "model_handler.py"]
    assert sorted(files) == [*expected, "my-requirements.txt", "sub/b.txt"]
    manifest = read_manifest(work / ("unpacked" if FORMATS[form] else "out") / f"m{FORMATS[form]}")
    assert (manifest.requirements_file, manifest.config_file) == ("my-requirements.txt", "model-config.yaml")
    if form == "tgz":
        with tarfile.open(work / place) as tar:
            assert all(name.startswith("m/") for name in tar.getnames())
            assert {(entry.uid, entry.uname) for entry in tar} == {(0, "")}
    elif form != "no-archive":
        with zipfile.ZipFile(work / place) as file:
            types = {entry.compress_type for entry in file.infolist()}
        assert types == {zipfile.ZIP_STORED if form == "zip-store" else zipfile.ZIP_DEFLATED}


@pytest.mark.parametrize(
    ("handler", "written", "file"),
    [
        ("image_classifier", "image_classifier", None),
        ("model_handler", "model_handler", "model_handler.py"),
        ("model_handler:handle", "model_handler:handle", "model_handler.py"),
        ("model_handler.py:handle", "model_handler.py:handle", "model_handler.py"),
        ("./model_handler.py", "model_handler.py", "model_handler.py"),
        ("models/linear.py", "linear.py", "linear.py"),
        ("models/linear:handle", "linear:handle", "linear.py"),
    ],
)
def test_the_forms_of_a_handler(work: Path, handler: str, written: str, file: str | None) -> None:
    files = archived(work, "--handler", handler)
    assert json.loads(files["MAR-INF/MANIFEST.json"])["model"]["handler"] == written
    assert set(files) == {"MAR-INF/MANIFEST.json"} | ({file} if file else set())


def test_handlers_in_cpp_are_libraries(work: Path) -> None:
    (work / "handler.so").write_bytes(b"ELF")
    assert "handler.so" in archived(work, "--runtime", "LSP", "--handler", "handler:Custom")
    assert archive(work, "--runtime", "LSP", "--handler", "TorchScriptHandler", "-f").returncode == 0
    assert "image_classifier.so, given as --handler" in refusal(
        work, "--runtime", "LSP", "--handler", "image_classifier", "-f"
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--serialized-file", "nope.pth"),
        ("--model-file", "nope.py"),
        ("--handler", "nope.py"),
        ("--extra-files", "models/linear.py,nope.txt"),
        ("-r", "nope.txt"),
        ("-c", "nope.yaml"),
    ],
)
def test_a_missing_file_is_named_with_its_flag(work: Path, flag: str, value: str) -> None:
    names = {"-r": "--requirements-file", "-c": "--config-file"}
    expected = f"{value.split(',')[-1]}, given as {names.get(flag, flag)}, is missing."
    assert expected in refusal(work, flag, value)


def test_a_handler_without_its_file_is_named_as_it_was_looked_for(work: Path) -> None:
    assert "nope.py, given as --handler, is missing." in refusal(work, "--handler", "nope:handle")
    assert "models, given as --serialized-file, is not a file." in refusal(work, "--serialized-file", "models")


def test_extra_files_are_patterns_and_lists(work: Path) -> None:
    (work / "extra" / "[1].txt").write_text("brackets")
    files = archived(work, "--extra-files", "extra/*.txt, models/linear.py,")
    assert sorted(files) == ["MAR-INF/MANIFEST.json", "[1].txt", "a.txt", "linear.py", "model_handler.py"]
    files = archived(work, "--model-name", "n", "--extra-files", "extra/[1].txt", place="out/n.mar")
    assert sorted(files) == ["MAR-INF/MANIFEST.json", "[1].txt", "model_handler.py"]


def test_a_pattern_that_matches_a_folder_gives_its_content(work: Path) -> None:
    assert "sub/b.txt" in archived(work, "--extra-files", "ext*")
    assert {"b.txt", "a.txt"} <= set(archived(work, "--model-name", "n", "--extra-files", "extra/*", place="out/n.mar"))


def test_a_pattern_that_matches_nothing_is_told(work: Path) -> None:
    done = archive(work, "--extra-files", "data/*.json")
    assert (done.returncode, done.stderr) == (0, "No file matches data/*.json, given as --extra-files.\n")


def test_of_two_files_with_one_name_the_later_is_taken_and_told(work: Path) -> None:
    (work / "extra" / "model.pth").write_text("other weights")
    done = archive(work, "--serialized-file", "model.pth", "--extra-files", "extra/model.pth,models/../extra/model.pth")
    assert done.returncode == 0
    assert done.stderr == "extra/model.pth takes the place of model.pth: both are called model.pth in the archive.\n"
    with zipfile.ZipFile(work / "out" / "m.mar") as file:
        assert file.read("model.pth") == b"other weights"
        assert file.namelist().count("model.pth") == 1


def test_what_cannot_be_archived_is_refused(work: Path) -> None:
    (work / "extra" / "deep").mkdir()
    (work / "extra" / "deep" / "up").symlink_to(work / "extra")
    assert "is a link to a folder that it lies in" in refusal(work, "--extra-files", "extra")
    (work / "extra" / "deep" / "up").unlink()
    (work / "extra" / "dangling").symlink_to("nowhere")
    assert "extra/dangling, given as --extra-files, is neither a file nor a folder" in refusal(
        work, "--extra-files", "extra"
    )
    (work / "extra" / "dangling").unlink()
    (work / "sub").write_text("a file")
    assert "have one name" in refusal(work, "--extra-files", "sub,extra")
    (work / "extra" / "a\\b").write_text("")
    assert "cannot be put into an archive" in refusal(work, "--extra-files", "extra")


def test_linked_files_and_folders_are_archived_as_what_they_are(work: Path) -> None:
    os.link(work / "extra" / "a.txt", work / "extra" / "hard.txt")
    (work / "extra" / "soft.txt").symlink_to("a.txt")
    (work / "extra" / "folder").symlink_to(work / "models")
    files = archived(work, "--extra-files", "extra", "--archive-format", "tgz", place="out/m.tar.gz")
    assert files["hard.txt"] == files["soft.txt"] == files["a.txt"] == b"a"
    assert "folder/linear.py" in files


def test_files_from_before_1980_are_archived(work: Path) -> None:
    os.utime(work / "model.pth", (0, 0))
    assert "model.pth" in archived(work, "--serialized-file", "model.pth")


@pytest.mark.parametrize("form", FORMATS)
def test_an_archive_that_exists_is_kept_unless_forced(work: Path, form: str) -> None:
    flags = ("--archive-format", form, "--serialized-file", "model.pth")
    assert archive(work, *flags).returncode == 0
    place = work / "out" / f"m{FORMATS[form]}"
    assert "exists already; --force (-f) overwrites it." in refusal(work, *flags)
    (work / "model.pth").write_text("new weights")
    files = archived(work, *flags, "-f", place=str(place.relative_to(work)))
    assert files["model.pth"] == b"new weights"


def test_a_forced_folder_keeps_what_else_it_holds(work: Path) -> None:
    (work / "out" / "m").mkdir()
    (work / "out" / "m" / "notes.txt").write_text("mine")
    (work / "out" / "m" / "model_handler.py").write_text("old")
    files = archived(work, "--archive-format", "no-archive", "--extra-files", "extra", "-f", place="out/m")
    assert files["notes.txt"] == b"mine"
    assert files["model_handler.py"].startswith(b"def handle")
    assert {"sub/b.txt", "MAR-INF/MANIFEST.json"} <= set(files)


def test_a_folder_is_not_overwritten_by_a_file_nor_the_other_way_round(work: Path) -> None:
    (work / "out" / "m.mar").mkdir()
    assert "is in the way" in refusal(work, "-f")
    (work / "out" / "m").write_text("a file")
    assert "is in the way" in refusal(work, "-f", "--archive-format", "no-archive")


@pytest.mark.parametrize("name", ["bad name", "../m", "_m", ".m", "", "a/b", "m\n", "ä"])
def test_a_model_name_is_checked(work: Path, name: str) -> None:
    assert "cannot be used; it must match" in refusal(work, "--model-name", name)


def test_an_export_path_must_exist(work: Path) -> None:
    assert "The export path nowhere is not a folder; make it first." in refusal(work, "--export-path", "nowhere")


def test_a_place_that_cannot_be_written_to_is_named(work: Path) -> None:
    assert "cannot be used: File name too long" in refusal(work, "--model-name", "m" * 250)


@pytest.mark.parametrize(
    "arguments", [["--archive-format", "rar"], ["--runtime", "java"], ["--unknown"], ["--model-name"]]
)
def test_wrong_flags_are_answered_with_the_usage(work: Path, arguments: list[str]) -> None:
    done = archive(work, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: torch-model-archiver ")


def test_without_an_export_path_the_archive_lies_in_the_current_folder(work: Path) -> None:
    flags = ["--model-name", "m", "-v", "1.0", "--handler", "image_classifier"]
    program = "import sys; from servekit.archiver import main; sys.exit(main())"
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, *flags], cwd=work, env=environ, check=True)
    assert (work / "m.mar").is_file()


def options(work: Path, **others: Any) -> ArchiveOptions:
    handler = str(work / "model_handler.py")
    return ArchiveOptions("m", "2.0", handler, export_path=str(work / "out"), **others)


def test_the_archiver_is_a_function_too(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert make_archive(options(work)) == work / "out" / "m.mar"
    assert caplog.messages == []
    with pytest.raises(ArchiveRefused, match="exists already"):
        make_archive(options(work))


def test_main_returns_its_status(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model-name", "m", "--version", "1", "--handler", "image_classifier", "--export-path", str(work / "out")]
    assert main(flags) == 0
    assert main(flags, "servekit torch-model-archiver") == 1
    assert capsys.readouterr().err.startswith("servekit torch-model-archiver: ")


def test_archivers_at_the_same_time_do_not_mix_their_files(work: Path) -> None:
    folders = [work / f"out{number}" for number in range(8)]

    def export(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.pth").write_text(folder.name)
        files = {"serialized_file": str(folder / "model.pth"), "extra_files": str(work / "extra")}
        make_archive(ArchiveOptions("m", "1.0", "image_classifier", export_path=str(folder), **files))

    threads = [threading.Thread(target=export, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for folder in folders:
        unpack(folder / "m.mar", folder / "m")
        assert (folder / "m" / "model.pth").read_text() == folder.name
        assert sorted(os.listdir(folder)) == ["m", "m.mar", "model.pth"]
