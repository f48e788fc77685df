"""The modules of an archive, under a name of their own: two archives with a `model.py` each do not meet.

TorchServe gives every model a process, and the archive's folder a place on its path. Here archives share a process, so
the modules of each live in `sys.modules` below a private package (`_servekit_3.model`), and three doors lead to them:

- the `import` statements of an archive's own code, wherever and whenever they run, by a `__import__` in the
  `__builtins__` of its modules: no lock, no plain name in `sys.modules`;
- `importlib.import_module("model")` in the archive's code, by a stand-in for `importlib` that its imports are given;
- plain names that others look up for it, such as the class of a pickle, by a finder that answers within `scope()` only.
  What it puts into `sys.modules` meanwhile is no module but a sign that shows each scope its own.

Packages that an archive requires are another matter: many know their own names, in C code not least. They go by them,
on `sys.path` after what the server has installed; if that has another version, those of Python alone live below the
private package, too, and of the others the server's version is used, with a warning.
"""

import builtins
import contextlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import itertools
import linecache
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

log = logging.getLogger(__name__)

# These exist once in a process: they register things in torch, or their C code cannot be loaded twice.
_SHARED = {"numpy", "onnxruntime", "PIL", "scipy", "torch", "torchaudio", "torchvision", "triton", "yaml"}
_NEVER = set(sys.stdlib_module_names) | {"servekit", "ts"}

_numbers = itertools.count(1)
_archives: dict[str, "Modules"] = {}
_scope: ContextVar["Modules | None"] = ContextVar("servekit_imports", default=None)


class Modules:
    """The modules of one archive; those of another with the same names live beside them."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Look for modules in `folders`: the archive's first, then those of the packages that it requires."""
        self.folders = tuple(str(folder) for folder in folders)
        self._isolated = set[str]().union(*map(_others_versions, self.folders[1:]))
        sys.path.extend(folder for folder in self.folders[1:] if folder not in sys.path)
        self.name = f"_servekit_{next(_numbers)}"
        self.builtins = {**vars(builtins), "__import__": self._import}
        spec = ModuleSpec(self.name, None, is_package=True)
        spec.submodule_search_locations = list(self.folders)
        sys.modules[self.name] = importlib.util.module_from_spec(spec)
        _archives[self.name] = self
        self._importlib = _importlib_for(self)
        _install()

    def load(self, name: str) -> ModuleType:
        """Return the module `name` ("handler", "pkg.x") of the archive; raise ImportError if it has none of it."""
        private = f"{self.name}.{name}"
        try:
            return importlib.import_module(private)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(f"{self.name}."):
                raise
            plain = (error.name or "").removeprefix(f"{self.name}.")
            raise ModuleNotFoundError(f"No module named {plain!r}", name=plain) from None

    def has(self, name: str) -> bool:
        """Return True if the archive has a module or package `name` ("handler", "pkg.x"), folders of data apart."""
        parent, _, last = name.rpartition(".")
        spec = PathFinder.find_spec(last, [str(Path(folder, *parent.split("."))) for folder in self.folders])
        return spec is not None and spec.loader is not None

    def owns(self, name: str) -> bool:
        """Return True if `import name` in the archive's code means the archive's own."""
        top = name.partition(".")[0]
        if f"{self.name}.{top}" in sys.modules:
            return top not in _NEVER
        if top in _NEVER:
            return False
        spec = PathFinder.find_spec(top, self.folders[:1])
        # A folder of data may have the name of an installed package, which then goes first.
        return top in self._isolated if spec is None else spec.loader is not None or not _is_installed(top)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it, plain names that the archive has (`importlib.import_module("model")`) mean the archive's own."""
        token = _scope.set(self)
        _signs.enter()
        try:
            yield
        finally:
            _signs.leave()
            _scope.reset(token)

    def forget(self) -> None:
        """Take the modules out of the process; those that no one holds are freed."""
        _archives.pop(self.name, None)
        # A copy and no list: while its pairs are made, the collector may free another archive, which comes here, too.
        for name, module in sys.modules.copy().items():
            if name == self.name or name.startswith(f"{self.name}."):
                del sys.modules[name]
                linecache.cache.pop(getattr(module, "__file__", None) or "", None)
        others = {folder for modules in list(_archives.values()) for folder in modules.folders}
        for folder in set(self.folders[1:]) - others:
            with contextlib.suppress(ValueError):
                sys.path.remove(folder)
        for folder in list(sys.path_importer_cache):
            if folder.startswith(self.folders):
                del sys.path_importer_cache[folder]

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """Do what the statements `import` and `from ... import` need, as `builtins.__import__` does."""
        if level == 0 and self.owns(name):
            if isinstance(fromlist, list) and not fromlist:
                self._import_for_c(name)
            module = self.load(name)
            if not fromlist:
                return sys.modules[f"{self.name}.{name.partition('.')[0]}"]
            return builtins.__import__(module.__name__, globals, locals, fromlist, 0)
        module = builtins.__import__(name, globals, locals, fromlist or (), level)
        return self._importlib if module is importlib else module

    def _import_for_c(self, name: str) -> None:
        """Import for C code, such as that of pickle, which the archive has called: it looks into `sys.modules` itself.

        It gives itself away by an empty list for `fromlist` (PyImport_Import in CPython's import.c).
        """
        if _scope.get() is None:
            if threading.current_thread() is threading.main_thread():
                return
            _scope.set(self)  # a thread that the archive has started, and that runs nothing else
        builtins.__import__(name)


class _ArchiveLoader(SourceFileLoader):
    """Runs a source file of an archive with the archive's own `__import__`; writes and reads no bytecode."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: ModuleType) -> None:
        _prepare(module)
        super().exec_module(module)


class _CompiledLoader(SourcelessFileLoader):
    """Runs a compiled file of an archive that came without its source."""

    def exec_module(self, module: ModuleType) -> None:
        _prepare(module)
        super().exec_module(module)


def _prepare(module: ModuleType) -> None:
    vars(module)["__builtins__"] = _archives[module.__name__.partition(".")[0]].builtins


class _Finder:
    """Finds modules below the private packages, and plain names within a scope."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        top, _, rest = name.partition(".")
        if top in _archives:
            spec = PathFinder.find_spec(name, path) if rest else None
            return None if spec is None else _with_own_loader(spec)
        modules = _scope.get()
        if modules is not None and modules.owns(top):
            return ModuleSpec(name, _SignLoader(modules), is_package=True)
        return None


def _with_own_loader(spec: ModuleSpec) -> ModuleSpec:
    for theirs, ours in ((SourceFileLoader, _ArchiveLoader), (SourcelessFileLoader, _CompiledLoader)):
        if type(spec.loader) is theirs and spec.origin is not None:
            spec.loader = ours(spec.name, spec.origin)
    return spec


class _Sign(ModuleType):
    """Stands under a plain name in `sys.modules` and shows whoever is in a scope the module of that scope's archive."""

    def __getattribute__(self, attribute: str) -> Any:
        modules = _scope.get()
        own = ModuleType.__getattribute__(self, "__dict__")
        if attribute == "__class__" or modules is None:
            return ModuleType.__getattribute__(self, attribute)
        return getattr(modules.load(own["_plain"]), attribute)

    def __dir__(self) -> list[str]:
        modules = _scope.get()
        return [] if modules is None else dir(modules.load(ModuleType.__getattribute__(self, "__dict__")["_plain"]))


class _SignLoader(Loader):
    def __init__(self, modules: Modules) -> None:
        self._modules = modules

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._modules.load(spec.name)
        sign = _Sign(spec.name)
        ModuleType.__setattr__(sign, "_plain", spec.name)
        _signs.add(spec.name)
        return sign

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the archive's module has been run already."""


class _Signs:
    """The plain names that scopes have put into `sys.modules`: they go when the last scope ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scopes = 0
        self._names: set[str] = set()

    def add(self, name: str) -> None:
        with self._lock:
            self._names.add(name)

    def enter(self) -> None:
        with self._lock:
            self._scopes += 1

    def leave(self) -> None:
        with self._lock:
            self._scopes -= 1
            if self._scopes or not self._names:
                return
            for name in self._names:
                if type(sys.modules.get(name)) is _Sign:
                    del sys.modules[name]
            self._names.clear()


_signs = _Signs()


def current() -> Modules | None:
    """Return the modules of the archive whose scope the caller is in."""
    return _scope.get()


def _install() -> None:
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


def _is_installed(top: str) -> bool:
    """Return True if the server's own environment has a module or package `top` with code in it."""
    spec = PathFinder.find_spec(top)
    return spec is not None and spec.loader is not None


def _others_versions(folder: str) -> set[str]:
    """Return the packages in `folder` that the server has in another version and that can be loaded beside it."""
    found: set[str] = set()
    for package in importlib.metadata.distributions(path=[folder]):
        name, files = package.metadata["Name"], package.files or []
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if version == package.version:
            continue
        tops = {file.parts[0].removesuffix(".py") for file in files if file.suffix == ".py"} - {".."}
        if tops & _SHARED or any(file.suffix in (".so", ".pyd") for file in files):
            log.warning("An archive requires %s %s; the server's own %s is used.", name, package.version, version)
        else:
            found |= tops
    return found


def _importlib_for(modules: Modules) -> ModuleType:
    """Return what the archive's code gets for `import importlib`: the same, with an `import_module` that knows it."""

    def import_module(name: str, package: str | None = None) -> ModuleType:
        """Import a module, one of the archive's own before all others."""
        if not name.startswith(".") and modules.owns(name):
            return modules.load(name)
        return importlib.import_module(name, package)

    stand_in = ModuleType("importlib", importlib.__doc__)
    vars(stand_in).update({**vars(importlib), "import_module": import_module})
    # what is imported below it later on: importlib.metadata
    vars(stand_in)["__getattr__"] = lambda name: getattr(importlib, name)
    return stand_in
