"""`servekit check`: load an archive, or a version folder, outside the server, and say what is wrong with it."""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from servekit.config import Settings
from servekit.errors import ModelLoadError, StartupError

_MODEL_JSON = "model.json"
_DEFAULT_HANDLER = "base_handler"

Make = Callable[[Path, Mapping[str, Any]], Any]  # a folder and options to an engine


def check(path: Path, install: bool = False) -> int:
    """Print that what lies at `path` can be served, or why not; return the exit status.

    `install` lets pip put the archive's requirements into a temporary folder, and so lets them run what they bring.
    """
    with tempfile.TemporaryDirectory(prefix="servekit-check-") as temporary:
        folder = Path(temporary).resolve()
        sys.dont_write_bytecode = True  # nothing is left in a folder that is only looked at
        try:
            is_version = (path / _MODEL_JSON).is_file()
            print(check_version(path) if is_version else check_archive(path, folder, install))
        except StartupError as error:
            is_named = str(error).startswith((f"{path}/", f"{path.name} "))
            print(error if is_named else f"{path}: {error}", file=sys.stderr)
            for line in own_lines(error, [folder, path.resolve()]):
                print(line, file=sys.stderr)
            return 1
    return 0


def check_version(folder: Path) -> str:
    """Load the version folder of a model store; return a sentence on it, or raise StartupError."""
    from servekit.batcher import Backlog
    from servekit.model import load_model

    sys.path.insert(0, os.getcwd())  # where model.json's network is looked for, as by Gunicorn
    settings = Settings.from_environ(os.environ)
    name, version = folder.resolve().parent.name, folder.resolve().name
    model = load_model(name, version, folder, settings, Backlog(settings.max_waiting))
    return f"{folder} is fine: {name}, version {version}, handler {model.spec.handler}."


def check_archive(path: Path, temporary: Path, install: bool, make: Make | None = None) -> str:
    """Unpack the archive at `path` into `temporary`, or take it as it lies if it is a folder, and load it.

    `make` makes the engine. Returns a sentence on the archive; raises StartupError.
    """
    if not path.exists():
        raise ModelLoadError("There is no such file or folder.")
    from servekit.archive import install_requirements, is_archive, read_manifest, read_model_config, unpack

    if not is_archive(path):
        raise ModelLoadError("It is neither a model archive nor a version folder with a model.json.")
    folder = path.resolve() if path.is_dir() else temporary / "model"
    if not path.is_dir():
        unpack(path, folder)
    manifest = read_manifest(folder)
    needed = None
    if install:
        needed = install_requirements(folder, manifest, temporary / "requirements")
    name = manifest.model_name or re.sub(r"\W", "_", path.name.partition(".")[0])
    handler = manifest.handler or _DEFAULT_HANDLER
    config = read_model_config(folder, manifest)
    options = {
        "model_name": name,
        "model_version": manifest.model_version,
        "manifest": dict(manifest.content),
        "handler": handler,
        "batch_size": config.get("batchSize", 1),
        "model_config": config,
        "service_envelope": "",
        "gpu_id": None,
        "requirements": needed and str(needed),
        "trusted_only": False,  # whoever asks for the check has the archive run
        "decode_input": True,
        "limit_max_image_pixels": True,
    }
    try:
        (make or _make_engine)(folder, options)
    except ModelLoadError as error:
        if manifest.requirements_file and not install and isinstance(error.__cause__, ImportError):
            raise ModelLoadError(f"{error} Its {manifest.requirements_file} may name it: try --install.") from error.__cause__
        raise
    return f"{path} is fine: {name}, version {manifest.model_version}, handler {handler}."


def own_lines(error: BaseException, folders: list[Path]) -> Iterator[str]:
    """Give the part of the traceback behind `error` that lies in `folders`, then the Python error itself."""
    cause = error.__cause__
    if cause is None:
        return
    while cause.__cause__ is not None:
        cause = cause.__cause__
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if _is_in(frame.filename, folders)]
    lines = [*traceback.format_list(frames), *traceback.format_exception_only(cause)]
    if not frames and not (isinstance(cause, SyntaxError) and _is_in(str(cause.filename), folders)):
        return
    for line in "".join(lines).rstrip().splitlines():
        for folder in folders:
            line = line.replace(f'"{folder}/model/', '"').replace(f'"{folder}/', '"')
        yield line


def _is_in(file: str, folders: list[Path]) -> bool:
    return any(Path(file).is_relative_to(folder) for folder in folders)


def _make_engine(folder: Path, options: Mapping[str, Any]) -> Any:
    from servekit.engines.torchserve import TorchServeEngine

    return TorchServeEngine(folder, options)
