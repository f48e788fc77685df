"""`servekit check`: load an archive, or a folder with a model, as a server would, and say what is wrong with it."""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from servekit.archive import is_archive, read_manifest
from servekit.batcher import Backlog
from servekit.config import Settings
from servekit.desired import Entry
from servekit.errors import ModelLoadError, ModelNotFound, ServekitError
from servekit.loading import load_entry
from servekit.model import Model
from servekit.platforms import SAGEMAKER, program_of
from servekit.spec import FILE_NAME, TRITON_CONFIG, read_spec, scan
from servekit.stores import entries_in, model_entry
from servekit.torchserve.entries import Loader
from servekit.torchserve.properties import Properties
from servekit.torchserve.registration import Registration

Load = Callable[..., Any]  # as load_entry


def check(path: Path, install: bool = False) -> int:
    """Print that what lies at `path` can be served, or why not; return the exit status.

    `install` lets pip put the archive's requirements into a temporary folder, and so lets them run what they bring.
    """
    sys.dont_write_bytecode = True  # nothing is left in a folder that is only looked at
    with tempfile.TemporaryDirectory(prefix="servekit-check-") as temporary:
        folder = Path(temporary).resolve()
        try:
            print(check_at(path, folder, install))
        except ServekitError as error:
            is_named = str(error).startswith((f"{path.resolve()}/", f"{path.name} "))
            print(error if is_named else f"{path}: {error}", file=sys.stderr)
            for line in own_lines(error, [folder / "archive" / "model", path.resolve()]):
                print(line, file=sys.stderr)
            return 1
    return 0


def check_at(path: Path, temporary: Path, install: bool = False, load: Load = load_entry) -> str:
    """Load what lies at `path`, an archive being unpacked into `temporary`; return a sentence on it.

    Raises ServekitError, one sentence that says what is wrong, the error of the model's own code being its cause.
    """
    if not path.exists():
        raise ModelLoadError("There is no such file or folder.")
    settings = Settings.from_environ(os.environ)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as Gunicorn does
    if (path / FILE_NAME).is_file():
        folder = path.resolve()
        entry = Entry(folder.parent.name, folder.name, "servekit", str(path), str(folder))
    elif stored := _of_triton(path.resolve()):
        entry = stored[0]
    elif is_archive(path):
        entry = _unpacked(path.resolve(), temporary, install)
    elif placed := model_entry(path.resolve().name, path):
        entry = placed
    else:
        raise ModelLoadError(_what_else(path))
    try:
        if entry.format == "triton":
            _load_with_members(entry, settings, load)
        else:
            load(entry, settings, Backlog(settings.max_waiting))
    except ModelLoadError as error:
        if entry.format not in ("servekit", SAGEMAKER) and isinstance(error.__cause__, ImportError):
            if not install and (file := read_manifest(Path(entry.folder)).requirements_file):
                raise ModelLoadError(f"{error} Its {file} may name it: try --install.") from error.__cause__
        raise
    return f"{path} is fine: {entry.name}, version {entry.version}, handler {_handler_of(entry)}."


def own_lines(error: BaseException, folders: list[Path]) -> Iterator[str]:
    """Give the part of the traceback behind `error` that lies in `folders`, then the Python error itself."""
    cause = error.__cause__
    if cause is None:
        return
    while cause.__cause__ is not None:
        cause = cause.__cause__
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_in(frame.filename, folders)]
    if not frames and not (isinstance(cause, SyntaxError) and _is_in(str(cause.filename), folders)):
        return
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(cause)]
    for line in "".join(lines).rstrip().splitlines():
        for folder in folders:
            line = line.replace(f'"{folder}/', '"')
        yield line


def _unpacked(path: Path, temporary: Path, install: bool) -> Entry:
    """Return what a server would register for the archive at `path`."""

    def new_folder() -> Path:
        (temporary / "archive").mkdir()
        return temporary / "archive" / "model"

    properties = Properties(install_py_dep_per_model=install)
    loader = Loader(properties, new_folder, lambda folder: None, temporary / "packages")
    return loader.load(Registration(str(path)), at_startup=True)


def _load_with_members(entry: Entry, settings: Settings, load: Load) -> None:
    """Load a model of Triton's layout and, if it is an ensemble, the models beside it that it is made of."""
    backlog = Backlog(settings.max_waiting)

    @cache
    def find(name: str, version: str | None) -> Model:
        entries = entries_in(Path(entry.folder).parent.parent, name, version)
        model: Model = load(entries[0], settings, backlog, find=find)
        return model

    load(entry, settings, backlog, find=find).require_ready()


def _of_triton(path: Path) -> list[Entry]:
    """Return what a server would register of a model folder of Triton's layout, or of a version folder in one."""
    with contextlib.suppress(ModelNotFound):
        if path.name.isdecimal():
            entries = entries_in(path.parent.parent, path.parent.name, path.name)
        else:
            entries = entries_in(path.parent, path.name)
        return [entry for entry in entries if entry.format == "triton"]
    return []


def _what_else(path: Path) -> str:
    """Return what to do about `path`, which is nothing that can be loaded."""
    versions = sorted((int(each.parent.name), each.parent) for each in path.glob(f"*/{FILE_NAME}") if each.parent.name.isdecimal())
    if versions:
        return f"It holds versions; check one of them: {versions[-1][1]}."
    if (path / TRITON_CONFIG).is_file():
        return f"It has a {TRITON_CONFIG} and no version; put the model's file into a folder called 1."
    if path.is_dir() and (names := list(scan(path, warns=False))):
        return f"It is a model store; check one of its models: {', '.join(names)}."
    return f"It is neither a model archive nor a model of Triton's layout nor a version folder with a {FILE_NAME}."


def _handler_of(entry: Entry) -> str:
    if entry.format == SAGEMAKER:
        program = program_of(Path(entry.folder), os.environ)
        return "of SageMaker's toolkit" if program is None else program.name
    if entry.format == "triton":
        return "servekit.handlers.tensors:TensorsHandler"
    return str(entry.options.get("handler") or read_spec(Path(entry.folder)).handler)


def _is_in(file: str, folders: list[Path]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)
