"""What `servekit doctor` has found: facts in sections, and what to change, as text for people or JSON for tools."""

import dataclasses
import enum
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

_WIDTH = 110


class Weight(enum.IntEnum):
    """How much an advice matters; the smaller the number, the more."""

    STOPS = 0  # the server would not start
    CHANGE = 1  # it would start, and serve badly or not for long
    CONSIDER = 2  # it would serve, and could serve better


_WORDS = {Weight.STOPS: "stops the start", Weight.CHANGE: "change", Weight.CONSIDER: "consider"}


@dataclasses.dataclass(frozen=True)
class Fact:
    """What is so: `value` as JSON has it, in base units; `text` as people read it, and where it comes from, or ""."""

    value: Any
    text: str
    origin: str = ""


@dataclasses.dataclass
class Section:
    """The facts about one thing, by name, and what to change about it."""

    title: str
    facts: dict[str, Fact] = dataclasses.field(default_factory=dict)
    advice: list[tuple[Weight, str]] = dataclasses.field(default_factory=list)

    def add(self, name: str, value: Any, text: str | None = None, origin: str = "") -> None:
        """Note a fact; without `text` it reads as it is."""
        self.facts[name] = Fact(value, str(value) if text is None else text, origin)

    def stops(self, text: str) -> None:
        """Note why the server would not start, and what to do about it."""
        self.advice.append((Weight.STOPS, text))

    def change(self, text: str) -> None:
        """Note what should be changed."""
        self.advice.append((Weight.CHANGE, text))

    def consider(self, text: str) -> None:
        """Note what could be better."""
        self.advice.append((Weight.CONSIDER, text))


def advice_of(sections: Iterable[Section]) -> list[tuple[Weight, str]]:
    """Return all advice, what matters most first."""
    return sorted((each for section in sections for each in section.advice), key=lambda each: each[0])


def would_start(sections: Iterable[Section]) -> bool:
    """Return False if something keeps the server from starting."""
    return all(weight != Weight.STOPS for weight, _ in advice_of(sections))


def as_json(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the report for tools: facts by section and name, advice in its order, and whether the server would start."""
    return {
        "would_start": would_start(sections),
        "sections": {
            section.title: {
                name: {"value": fact.value} | ({"origin": fact.origin} if fact.origin else {})
                for name, fact in section.facts.items()
            }
            for section in sections
        },
        "advice": [{"weight": _WORDS[weight], "text": text} for weight, text in advice_of(sections)],
    }


def as_text(sections: Sequence[Section]) -> str:
    """Return the report for people."""
    lines = [line for section in sections for line in _lines_of(section)]
    lines.append("To change, what matters most first")
    advice = advice_of(sections)
    for number, (weight, text) in enumerate(advice, start=1):
        lines += textwrap.wrap(f"{number}. {_WORDS[weight]}: {text}", _WIDTH, initial_indent="  ", subsequent_indent="     ")
    if not advice:
        lines.append("  nothing")
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """Return `line` with what is no visible character written out: values come from outside, and may steer a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def _lines_of(section: Section) -> Iterable[str]:
    yield section.title
    width = max(map(len, section.facts), default=0)
    for name, fact in section.facts.items():
        origin = f"  ({fact.origin})" if fact.origin else ""
        yield f"  {name.ljust(width)}  {fact.text}{origin}".rstrip()
    yield ""


def size(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
