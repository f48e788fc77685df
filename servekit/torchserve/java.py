"""Java's `.properties` syntax: text to names and values, and a name and its value to a line.

Standard library only: Gunicorn's master imports this.
"""

import re
from collections.abc import Iterator, Mapping

from servekit.errors import SettingError

_BLANKS = " \t\f"
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_VARIABLE = re.compile(r"\$\$([^$]+)\$\$")


def parse(text: str) -> dict[str, str]:
    """Return the values of `text` by name, the last one where a name is repeated.

    Comments begin with # or !; a name ends at the first =, : or blank; a line that ends in an odd number of backslashes
    goes on in the next one. Raises SettingError for a \\u that four hexadecimal digits do not follow.
    """
    return dict(_split(line) for line in _logical_lines(text))


def line_of(name: str, value: str) -> str:
    """Return the line that `parse` reads as `name` and `value`: printable ASCII without a line break."""
    guard = "\\" if value.startswith(" ") else ""  # blanks before a value are not part of it
    return f"{name}={guard}" + "".join(map(_escape, value))


def substitute(name: str, value: str, environ: Mapping[str, str]) -> str:
    """Return `value` with each `$$VAR$$` replaced by that variable of `environ`; raise SettingError if it is not set."""

    def lookup(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise SettingError(f"{name} names the environment variable {match[1]}, which is not set; set it.")
        return environ[match[1]]

    return _VARIABLE.sub(lookup, value)


def _logical_lines(text: str) -> Iterator[str]:
    """Give the lines that hold a setting, those that go on joined, without the blanks before them."""
    pending = ""
    for line in re.split(r"\r\n|\r|\n", text):
        line = line.lstrip(_BLANKS)
        if not pending and line[:1] in ("", "#", "!"):
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending += line[:-1]
            continue
        yield pending + line
        pending = ""
    if pending:
        yield pending


def _split(line: str) -> tuple[str, str]:
    end = 0
    while end < len(line) and line[end] not in "=:" + _BLANKS:
        end += 2 if line[end] == "\\" else 1
    rest = line[end:].lstrip(_BLANKS)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANKS)
    return _unescape(line[:end]), _unescape(rest)


def _unescape(text: str) -> str:
    """Resolve backslashes; a pair of \\u for one character beyond the first 65536 becomes that character."""

    def character(match: re.Match[str]) -> str:
        escaped = match[1]
        if not escaped.startswith("u"):
            return _ESCAPES.get(escaped, escaped)
        if len(escaped) == 1:
            raise SettingError(f"{text.split('=')[0]}: four hexadecimal digits must follow \\u; write \\\\ for a backslash.")
        return chr(int(escaped[1:], 16))

    resolved = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", character, text)
    return resolved.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if " " <= character <= "~":
        return character
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start:start + 4]}" for start in range(0, len(units), 4))
