"""Stands in for TorchServe's package `ts` where that is not installed: what handlers import from it.

`install()` makes `import ts.torch_handler.base_handler` mean `servekit.ts.torch_handler.base_handler`, the same module,
so that its classes are the same under both names. A real TorchServe that can be imported is left alone.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.12.0"  # TorchServe's last release, whose handlers run here


def install() -> None:
    """Let `import ts` find these modules; does nothing where TorchServe itself is installed, or the second time."""
    if _Finder not in sys.meta_path and not _is_torchserve(PathFinder.find_spec("ts")):
        sys.meta_path.insert(0, _Finder)


def _is_torchserve(spec: ModuleSpec | None) -> bool:
    folders = None if spec is None else spec.submodule_search_locations
    return any(Path(folder, "torch_handler", "__init__.py").is_file() for folder in folders or ())


class _Finder:
    """Finds `ts` and what is below it."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if name != "ts" and not name.startswith("ts."):
            return None
        try:
            module = importlib.import_module(f"servekit.{name}")
        except ModuleNotFoundError as error:
            if error.name == f"servekit.{name}":
                return None
            raise
        return ModuleSpec(name, _Alias(module), is_package=hasattr(module, "__path__"))


class _Alias(Loader):
    """Loads a module that is loaded already, under its second name."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import machinery has put that of the second name in its place
