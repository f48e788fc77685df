"""The command `torch-model-archiver`: puts the files of one model into an archive.

The flags, the order of the files and the manifest are TorchServe's, so that both servers read what either tool wrote.
"""

import argparse
import contextlib
import dataclasses
import glob
import io
import json
import logging
import os
import re
import secrets
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import servekit
from servekit.errors import ArchiveRefused
from servekit.unpacking import MANIFEST, parts_of, reasons

log = logging.getLogger(__name__)

SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
RUNTIMES = ("python", "python3", "LSP")
BUILT_IN = frozenset({"base_handler", "dali_image_classifier", "image_classifier", "image_segmenter", "object_detector"})
BUILT_IN |= {"text_classifier", "trt_llm_handler", "vllm_handler"}
BUILT_IN_LSP = frozenset({"BaseHandler", "TorchScriptHandler"})  # of the runtime in C++

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
_LEFT_OUT = {"__pycache__", "__MACOSX", MANIFEST.parent.name}  # folders, as those whose name begins with a dot


@dataclasses.dataclass(frozen=True)
class ArchiveOptions:
    """What the flags say; `extra_files` is a comma list of files, patterns, and folders whose content is meant."""

    model_name: str
    version: str
    handler: str
    serialized_file: str | None = None
    model_file: str | None = None
    extra_files: str | None = None
    runtime: str = "python"
    export_path: str = "."
    archive_format: str = "default"
    force: bool = False
    requirements_file: str | None = None
    config_file: str | None = None


def main(arguments: Sequence[str] | None = None, program: str = "torch-model-archiver") -> int:
    """Write the archive that the flags ask for and return the exit status; an error is one sentence on stderr."""
    options = ArchiveOptions(**vars(_parser(program).parse_args(arguments)))
    try:
        make_archive(options)
    except ArchiveRefused as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def make_archive(options: ArchiveOptions) -> Path:
    """Write the archive and return where it is; raise ArchiveRefused if a file is missing, or the archive there already.

    An archive appears whole or not at all. With `force` it takes the place of the one before; a folder's files (format
    "no-archive") are replaced one by one, and its other files stay.
    """
    if not _NAME.fullmatch(options.model_name):
        raise ArchiveRefused(
            f"The model name {options.model_name!r} cannot be used; it must match ^[A-Za-z0-9][A-Za-z0-9_\\-.]*$."
        )
    folder = Path(options.export_path)
    if not folder.is_dir():
        raise ArchiveRefused(f"The export path {folder} is not a folder; make it first.")
    archive = folder / (options.model_name + SUFFIXES[options.archive_format])
    if os.path.lexists(archive):
        if not options.force:
            raise ArchiveRefused(f"{archive} exists already; --force (-f) overwrites it.")
        if archive.is_dir() != (options.archive_format == "no-archive"):
            raise ArchiveRefused(f"{archive} is in the way and no archive of this format; move it away.")
    try:
        _write(archive, options, _collect(options))
    except OSError as error:
        raise ArchiveRefused(f"{error.filename or archive} cannot be used: {error.strerror or error}.") from error
    return archive


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(program, description="Puts the files of one model into an archive.")
    add = parser.add_argument
    add("--model-name", required=True, help="name of the model, and of the archive")
    add("--serialized-file", help="the weights: .pt, .pth, .onnx or another file that the handler reads")
    add("--model-file", help="Python file with the one class of the network, for weights that are a state dict")
    add("--handler", required=True, help=f"{', '.join(sorted(BUILT_IN))}, or a Python file[:function]")
    add("--extra-files", help="comma list of further files, patterns such as data/*.json, and folders (their content)")
    add("--runtime", choices=RUNTIMES, default="python", help="what runs the handler (default: python)")
    add("--export-path", default=os.curdir, help="folder to write to (default: the current one)")
    add("--archive-format", choices=tuple(SUFFIXES), default="default", help="default: a .mar file, which is a zip")
    add("-f", "--force", action="store_true", help="overwrite an archive that exists")
    add("-v", "--version", required=True, help="version of the model")
    add("-r", "--requirements-file", help="requirements.txt of the packages that the model needs")
    add("-c", "--config-file", help="YAML file that configures the model, such as model-config.yaml")
    return parser


def _manifest(options: ArchiveOptions) -> str:
    """Return the text of MANIFEST.json; files are named without the folders that they came from."""
    model = {
        "modelName": options.model_name,
        "serializedFile": options.serialized_file,
        "handler": options.handler,
        "modelFile": options.model_file,
        "modelVersion": options.version,
        "requirementsFile": options.requirements_file,
        "configFile": options.config_file,
    }
    files = {"serializedFile", "handler", "modelFile", "requirementsFile", "configFile"}
    content = {
        "createdOn": time.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": options.runtime,
        "model": {key: os.path.basename(value) if key in files else value for key, value in model.items() if value},
        "archiverVersion": servekit.__version__,
    }
    return json.dumps(content, indent=2)


def _collect(options: ArchiveOptions) -> dict[str, Path]:
    """Return the files of the archive by their names in it; of two with one name, the later flag's is taken."""
    files: dict[str, Path] = {}
    for flag, path in (
        ("--model-file", options.model_file),
        ("--serialized-file", options.serialized_file),
        ("--handler", _handler_file(options)),
    ):
        if path:
            _add(files, Path(path).name, _existing(flag, path))
    for item in (options.extra_files or "").split(","):
        for match in _matches(item.strip()):
            for name, file in _files_of(match):
                _add(files, name, file)
    for flag, path in (("--requirements-file", options.requirements_file), ("--config-file", options.config_file)):
        if path:
            _add(files, Path(path).name, _existing(flag, path))
    for name in files:
        if folder := next((str(parent) for parent in PurePosixPath(name).parents if str(parent) in files), None):
            raise ArchiveRefused(f"{files[folder]} and the folder of {files[name]} have one name; rename one of them.")
    return files


def _handler_file(options: ArchiveOptions) -> str | None:
    """Return the file of `--handler`, None for a handler that the server has itself."""
    if options.handler in (BUILT_IN_LSP if options.runtime == "LSP" else BUILT_IN):
        return None
    suffix = ".so" if options.runtime == "LSP" else ".py"
    path = options.handler.partition(":")[0]
    return path if path.endswith(suffix) else path + suffix


def _existing(flag: str, path: str) -> Path:
    if not Path(path).is_file():
        raise ArchiveRefused(f"{path}, given as {flag}, is {'not a file' if os.path.exists(path) else 'missing'}.")
    return Path(path)


def _matches(item: str) -> list[Path]:
    """Return what one item of `--extra-files` stands for."""
    if not item or os.path.exists(item):
        return [Path(item)] if item else []
    if not glob.has_magic(item):
        raise ArchiveRefused(f"{item}, given as --extra-files, is missing.")
    found = [Path(path) for path in sorted(glob.glob(item))]
    if not found:
        log.warning("No file matches %s, given as --extra-files.", item)
    return found


def _files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """Give a file, or the content of a folder, by the names in the archive."""
    if path.is_file():
        yield path.name, path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if not child.is_dir():
                yield from _files_of(child)
            elif path.resolve().is_relative_to(child.resolve()):
                raise ArchiveRefused(f"{child}, given as --extra-files, is a link to a folder that it lies in.")
            elif child.name not in _LEFT_OUT and not child.name.startswith("."):
                yield from ((f"{child.name}/{name}", file) for name, file in _files_of(child))
    else:
        raise ArchiveRefused(f"{path}, given as --extra-files, is neither a file nor a folder.")


def _add(files: dict[str, Path], name: str, file: Path) -> None:
    with reasons(f"{file} cannot be put into an archive"):
        parts_of(name)  # else no server would unpack it
    if name in files and not os.path.samefile(files[name], file):
        log.warning("%s takes the place of %s: both are called %s in the archive.", file, files[name], name)
    files[name] = file


def _write(archive: Path, options: ArchiveOptions, files: Mapping[str, Path]) -> None:
    """Write under another name beside the archive, then rename."""
    manifest = _manifest(options)
    with _temporary(archive) as temporary:
        if options.archive_format == "no-archive":
            _write_folder(temporary, files, manifest)
            _move(temporary, archive)
            return
        if options.archive_format == "tgz":
            _write_tar(temporary, files, manifest, options.model_name)
        else:
            stored = options.archive_format == "zip-store"
            _write_zip(temporary, files, manifest, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)
        temporary.replace(archive)


@contextlib.contextmanager
def _temporary(archive: Path) -> Iterator[Path]:
    """Give a name beside `archive` that no other process takes, and leave nothing under it."""
    path = archive.with_name(f".{archive.name}.{secrets.token_hex(8)}")
    try:
        yield path
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def _write_zip(path: Path, files: Mapping[str, Path], manifest: str, compression: int) -> None:
    # Files from before 1980, whose time a zip cannot hold, are written all the same.
    with zipfile.ZipFile(path, "x", compression, strict_timestamps=False) as archive:
        for name, file in files.items():
            archive.write(file, name)
        archive.writestr(str(MANIFEST), manifest)


def _write_tar(path: Path, files: Mapping[str, Path], manifest: str, root: str) -> None:
    with tarfile.open(path, "x:gz", dereference=True) as archive:
        for name, file in files.items():
            entry = archive.gettarinfo(file, f"{root}/{name}")
            entry.type = tarfile.REGTYPE  # not a hard link to an earlier one: those are refused when unpacked
            entry.size = file.stat().st_size
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            with file.open("rb") as content:
                archive.addfile(entry, content)
        entry = tarfile.TarInfo(f"{root}/{MANIFEST}")
        entry.size, entry.mtime = len(manifest.encode()), time.time()
        archive.addfile(entry, io.BytesIO(manifest.encode()))


def _write_folder(path: Path, files: Mapping[str, Path], manifest: str) -> None:
    path.mkdir()
    for name, file in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, path / name)
    (path / MANIFEST).parent.mkdir()
    (path / MANIFEST).write_text(manifest, encoding="utf-8")


def _move(source: Path, target: Path) -> None:
    """Rename the folder `source`, or file by file if `target` is there already, the manifest last."""
    if not target.is_dir():
        source.rename(target)
        return
    files = sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path == source / MANIFEST)
    for path in files:
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)
