"""The settings of a recipe: a dataclass whose fields become command-line options, `epochs` being `--epochs`."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from servekit.config import Settings, unknown_name
from servekit.errors import SettingError
from train.data import DataError

T = TypeVar("T")


def setting(default: Any, reason: str) -> Any:
    """Return a dataclass field with its default and the sentence that `--help` shows."""
    return dataclasses.field(default=default, metadata={"help": reason})


def parse_settings(settings: type[T], arguments: Sequence[str], description: str | None) -> T:
    """Read `arguments` into an instance of the dataclass `settings`.

    Raises SettingError for an unknown option, naming the nearest one, and for a value of the wrong kind.
    """
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False, exit_on_error=False)
    options = {_option(field.name): field for field in dataclasses.fields(settings)}  # type: ignore[arg-type]
    for option, field in options.items():
        help_text = f"{field.metadata['help']} (default: {field.default})"
        parser.add_argument(option, dest=field.name, type=type(field.default), default=field.default, help=help_text)
    try:
        known, unknown = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise SettingError(f"{error}.") from None
    if unknown:
        raise SettingError(unknown_name("setting", unknown[0].partition("=")[0], options, "--"))
    return settings(**vars(known))


def run(recipe: Callable[[T, Settings], Path], settings: type[T], description: str | None) -> None:
    """Run a recipe with the settings of the command line and the folders of `SERVEKIT_*`, and say what it wrote."""
    with exit_on_error():
        folder = recipe(parse_settings(settings, sys.argv[1:], description), Settings.from_environ(os.environ))
        print(f"Wrote {folder}.")


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one sentence for a setting or data file that cannot be used, and for ctrl-C."""
    try:
        yield
    except (SettingError, DataError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename} cannot be written or read: {error.strerror}.")
    except KeyboardInterrupt:
        sys.exit("Interrupted; the unfinished version was discarded.")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
