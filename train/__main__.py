"""Train every model: `python -m train`, or with `--missing` only those that the model store lacks."""

import os
import sys
from importlib import import_module

from servekit.config import Settings, unknown_name
from servekit.errors import SettingError
from servekit.spec import scan
from train.settings import exit_on_error

RECIPES = {"linear": "LinearSettings", "mnist": "MnistSettings"}  # module -> its settings, all left at their defaults
MISSING = "--missing"


def main(arguments: list[str]) -> None:
    """Run every recipe, or those whose model is missing; raise SettingError for an argument that does not exist."""
    for argument in arguments:
        if argument != MISSING:
            raise SettingError(unknown_name("setting", argument, [MISSING]))
    paths = Settings.from_environ(os.environ)
    held = scan(paths.model_store) if arguments else {}
    for name, settings in RECIPES.items():
        if name not in held:
            recipe = import_module(f"train.{name}")  # only now: it imports torch, which takes seconds
            print(f"Wrote {recipe.train(getattr(recipe, settings)(), paths)}.")


if __name__ == "__main__":
    with exit_on_error():
        main(sys.argv[1:])
