"""Model archives: what they say of themselves and of what they need.

An archive is a zip file (`.mar`, `.model`, `.zip`) or a tar file in gzip (`.tar.gz`, `.tgz`) whose
`MAR-INF/MANIFEST.json` names the handler and the files of one model; a folder that holds such a manifest is one too.
Its values come from strangers: none of them leads out of its folder, makes an object of a class, or gives pip an order.
"""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from servekit.errors import ArchiveRefused
from servekit.unpacking import MANIFEST, parts_of, reasons, unpack

__all__ = [
    "Manifest",
    "install_requirements",
    "is_archive",
    "read_manifest",
    "read_model_config",
    "unpack",
]

SUFFIXES = (".mar", ".model", ".zip", ".tar.gz", ".tgz")
MAX_TEXT = 65536  # bytes of a manifest, a configuration or a list of requirements
MAX_CONFIG_NODES = 10_000  # values of a configuration with every alias written out: aliases of aliases are a bomb

_REQUIREMENT = re.compile(
    r"""
    [A-Z0-9] (?: [A-Z0-9._-]* [A-Z0-9] )?                                  # name
    \s* (?: \[ [A-Z0-9._,\s-]* \] )?                                       # extras
    \s* (?: (?: ===? | ~= | != | [<>]=? ) \s* [A-Z0-9.*+!_-]+ \s* (?: ,\s* (?=[=~!<>]) | $ | (?=;) ) )*   # versions
    (?: ; [\w\s.'"<>=!~()+*,-]+ )?                                         # markers
    """,
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
# What pip takes for the name of a file in its working folder, even without a slash.
_FILE = re.compile(r"\.(zip|whl|tar|tgz|tbz|txz|tlz|gz|bz2|xz|lz|lzma)\s*(\[[^]]*\]\s*)?$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `MAR-INF/MANIFEST.json` says; every file is a path inside the archive. `content` is all of it."""

    model_name: str | None = None
    model_version: str = "1.0"
    handler: str | None = None
    serialized_file: str | None = None
    model_file: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    runtime: str = "python"
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def is_archive(path: Path) -> bool:
    """Tell whether `path` is a file named as an archive is, or a folder with a manifest; the file is not opened."""
    if path.is_dir():
        return (path / MANIFEST).is_file()
    return path.name.endswith(SUFFIXES) and path.is_file()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an unpacked archive, the old forms too; one that has none gets the defaults.

    Raise ArchiveRefused if it cannot be understood or names a file outside `folder`.
    """
    if not os.path.lexists(folder / MANIFEST):
        return Manifest()
    with reasons(f"{MANIFEST} cannot be used"):
        content = json.loads(_text(folder, str(MANIFEST)))
        model = content.get("model", {}) if isinstance(content, dict) else None
        if not isinstance(model, dict):
            raise ValueError('it must hold an object whose member "model" is an object')
        handler = _member(model, "handler")
        if handler is not None:
            module = handler.partition(":")[0]
            _inside(folder, module)
            _inside(folder, f"{module}.py")
        manifest = Manifest(
            model_name=_name(model, "modelName"),
            model_version=_name(model, "modelVersion") or "1.0",
            handler=handler,
            serialized_file=_file(folder, model, "serializedFile"),
            model_file=_file(folder, model, "modelFile"),
            requirements_file=_file(folder, model, "requirementsFile"),
            config_file=_file(folder, model, "configFile"),
            runtime=_member(content, "runtime") or "python",
            content=content,
        )
        _require_writable(content)
        return manifest


def read_model_config(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Return the YAML file that `manifest` names as its configuration, or {} if it names none.

    Only plain values are made of it. Raise ArchiveRefused if it cannot be read, or PyYAML is not installed.
    """
    name = manifest.config_file
    if name is None:
        return {}
    try:
        import yaml
    except ImportError:
        raise ArchiveRefused(f"{name} cannot be read without PyYAML; install it with: pip install pyyaml.") from None
    with reasons(f"{name} cannot be used"):
        text = _text(folder, name)
        try:
            _count_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        if not isinstance(values, dict | None) or not all(isinstance(key, str) for key in values or {}):
            raise ValueError("it must map names to values")
        _require_writable(values)
        return values or {}


def install_requirements(folder: Path, manifest: Manifest, into: Path, timeout: float = 600) -> Path | None:
    """Install the packages that an archive asks for into a folder below `into`, and return that folder to import from.

    None if it asks for none. Archives with the same requirements share a folder, which is installed once and whole.
    Raise ArchiveRefused for anything but plain requirements, and if pip fails or takes over `timeout` seconds.
    """
    if manifest.requirements_file is None:
        return None
    with reasons(f"{manifest.requirements_file} cannot be installed"):
        requirements = _requirements(_text(folder, manifest.requirements_file))
        if not requirements:
            return None
        # Compiled packages are of one Python only.
        key = "\n".join([sys.implementation.cache_tag or sys.version, *requirements])
        target = into / sha256(key.encode()).hexdigest()
        if not target.is_dir():
            _install(requirements, target, timeout)
        return target


def _inside(folder: Path, name: str) -> Path:
    """Return where the file `name` of an archive lies; raise ValueError if that is outside."""
    parts = parts_of(name)
    path = folder.joinpath(*parts)
    if not parts or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name or 'an empty name'} leads out of the archive")
    return path


def _text(folder: Path, name: str) -> str:
    path = _inside(folder, name)
    if not path.is_file():
        raise ValueError("it is missing")
    with path.open("rb") as file:
        content = file.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise ValueError(f"it is larger than {MAX_TEXT} bytes")
    return content.decode("utf-8-sig")


def _member(value: Mapping[str, Any], key: str) -> str | None:
    member = value.get(key)
    if isinstance(member, bool) or not isinstance(member, str | int | float | None):
        raise ValueError(f"{key} must be a word")
    return None if member in (None, "") else str(member)


def _name(model: Mapping[str, Any], key: str) -> str | None:
    name = _member(model, key)
    if name is not None and parts_of(name) != (name,):
        raise ValueError(f"{key} must be a word without slashes")
    return name


def _file(folder: Path, model: Mapping[str, Any], key: str) -> str | None:
    name = _member(model, key)
    return name if name is None else str(_inside(folder, name).relative_to(folder))


def _count_nodes(root: Any) -> None:
    """Raise ValueError if what a YAML file composes is a bomb, or a value that holds itself."""
    waiting, seen = [root], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > MAX_CONFIG_NODES:
            raise ValueError(f"it holds more than {MAX_CONFIG_NODES} values")
        for child in node.value if node is not None and not isinstance(node.value, str) else ():
            waiting.extend(child if isinstance(child, tuple) else (child,))


def _require_writable(values: Any) -> None:
    """Raise ValueError for what can be read but not written down again: half a character, a number without end."""
    try:
        json.dumps(values, default=str, ensure_ascii=False).encode()
    except (TypeError, ValueError):
        raise ValueError("it holds a name, a text or a number that cannot be written as JSON") from None


def _requirements(text: str) -> list[str]:
    """Return the requirements of a requirements.txt; raise ValueError for what could make pip do anything else."""
    lines = (" ".join(re.sub(r"(^|\s)#.*", "", line).split()) for line in text.splitlines())
    requirements = [line for line in lines if line]
    for line in requirements:
        if not _REQUIREMENT.fullmatch(line) or _FILE.search(line.partition(";")[0]):
            raise ValueError(f"{ascii(line[:80])} is not a plain requirement such as numpy>=2; pip gets no other")
    return requirements


def _install(requirements: list[str], target: Path, timeout: float) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name[:8]}.", dir=target.parent) as temporary:
        packages, scratch = Path(temporary, "packages"), Path(temporary, "scratch")
        packages.mkdir()
        scratch.mkdir()
        _run_pip(["install", "--target", str(packages), "--", *requirements], scratch, timeout)
        try:
            packages.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise


def _run_pip(arguments: list[str], scratch: Path, timeout: float) -> None:
    """Run pip in an empty folder, where nothing of the archive can be imported."""
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "--no-color", *arguments]
    environ = {**os.environ, "TMPDIR": str(scratch)}
    with tempfile.TemporaryFile() as output, subprocess.Popen(
        command, cwd=scratch, env=environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    ) as pip:
        try:
            status = pip.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"pip took more than {timeout:g} seconds") from None
        finally:
            if pip.poll() is None:
                os.killpg(pip.pid, signal.SIGKILL)  # the compilers that it started, too
        output.seek(0)
        if status != 0:
            lines = output.read().decode(errors="replace").split("\n")
            said = [line.strip() for line in lines if line.strip()] or ["nothing"]
            raise ValueError(f"pip says: {said[-1].removeprefix('ERROR: ')}")
