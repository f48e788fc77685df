"""The settings in force, and where each comes from: its default, a variable, or the platform's variables."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from servekit.cli.doctor.report import Section
from servekit.config import PREFIX, Settings
from servekit.errors import SettingError

MASK = "set, not shown"


def read(environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Return the settings, and what is wrong with them, a sentence each; the defaults stand in for what is wrong."""
    try:
        return Settings.from_environ(environ), []
    except SettingError as error:
        whole = str(error)
    wrong = {}
    for variable in sorted(environ):
        if variable.startswith(PREFIX):
            try:
                Settings.from_environ({variable: environ[variable]})
            except SettingError as error:
                wrong[variable] = str(error)
    sound = {name: value for name, value in environ.items() if name not in wrong}
    try:
        return Settings.from_environ(sound), list(wrong.values())
    except SettingError:  # each is sound, and they do not go together
        return Settings(), [*wrong.values()] if whole in wrong.values() else [*wrong.values(), whole]


def section_of(
    settings: Settings, wrong: list[str], environ: Mapping[str, str], configured: Collection[str] = ()
) -> Section:
    """Return every setting with its value and origin; keys are masked.

    `configured` are the variables that Gunicorn's configuration sets.
    """
    section = Section("Settings")
    for field in dataclasses.fields(Settings):
        variable, value = PREFIX + field.name.upper(), getattr(settings, field.name)
        origin = "default"
        if variable in environ:
            origin = f"{variable}, in Gunicorn's configuration" if variable in configured else variable
        elif value != field.default:
            origin = f"platform {settings.platform}"
        shown = _shown(field.name, value)
        section.add(field.name, shown, "-" if shown == "" else str(shown), origin)
    for sentence in wrong:
        section.stops(sentence)
    return section


def _shown(name: str, value: Any) -> Any:
    """Return a value as it may be shown: what may hold a key is masked."""
    is_secret = name.endswith(("_key", "_token", "_secret", "_password")) or name == "torchserve"
    if is_secret and value:
        return MASK
    return value if isinstance(value, bool | int | float) else str(value)
