"""Text and bytes from a request into values, and strictly: what is doubtful is refused with a sentence.

Pure functions; none of them knows HTTP.
"""

import base64
import json
import math
import re
from typing import Any

from servekit.errors import InvalidInput

MAX_JSON_DEPTH = 100  # deeper is no honest request, and a recursive parser pays for it
MAX_JSON_CONTAINERS = 1_000_000  # an empty list is two bytes to send and sixty-four to hold
MAX_JSON_COMMAS = 10_000  # where a few values are meant, none of them a table

NOT_JSON = "The body is not valid JSON."

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_PIECE = 2**16  # bytes, which take a millisecond: for a whole body other threads would wait, and memory be taken
_WINDOW = 2**20  # bytes, in which one of them is found as soon
_FLOAT32_MAX = 3.4028234663852886e38


def parse_json(body: bytes) -> Any:
    """Parse a JSON body of a few values; raise InvalidInput for what is none.

    That is what RFC 8259 does not allow, a name given twice, deep nesting, or more than MAX_JSON_COMMAS.
    """
    require_shallow(body)
    if _count(body, b",", MAX_JSON_COMMAS) > MAX_JSON_COMMAS:
        raise InvalidInput(f"The JSON holds too many values; it may have {MAX_JSON_COMMAS} commas here.")
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique_members)
    except ValueError:  # bad JSON, bad UTF-8, or an integer of thousands of digits
        raise InvalidInput(NOT_JSON) from None


def require_shallow(body: bytes) -> None:
    """Raise InvalidInput for JSON that is nested too deep, or holds too many lists and objects, to be parsed."""
    brackets = require_few_containers(body)
    if brackets <= MAX_JSON_DEPTH:  # the usual case costs two scans
        return
    marks = _brackets(body)
    for _ in range(MAX_JSON_DEPTH):  # each round takes the innermost ones away, without a loop of Python over them
        marks, before = marks.replace(b"[]", b""), marks
        if marks == before:
            break
    if b"[]" in marks or marks.count(b"[") > MAX_JSON_DEPTH:
        raise InvalidInput(f"The JSON is nested too deep; at most {MAX_JSON_DEPTH} levels are read.")


def require_few_containers(body: bytes) -> int:
    """Return how many lists and objects JSON can hold at most; raise InvalidInput if that is too many to be parsed."""
    brackets = _count(body, b"[", MAX_JSON_CONTAINERS) + _count(body, b"{", MAX_JSON_CONTAINERS)
    if brackets > MAX_JSON_CONTAINERS:
        raise InvalidInput(f"The JSON holds too many lists and objects; at most {MAX_JSON_CONTAINERS} are read.")
    return brackets


def _count(body: bytes, mark: bytes, most: int) -> int:
    """Return how often `mark` occurs in `body`; more than `most` need not be counted to the end."""
    found = 0
    for start in range(0, len(body), _WINDOW):
        found += body.count(mark, start, start + _WINDOW)
        if found > most:
            break
    return found


def _brackets(body: bytes) -> bytes:
    """Return the brackets of JSON that stand outside of strings, all as those of lists."""
    plain = body.replace(rb"\\", b"").replace(rb'\"', b"") if b"\\" in body else body  # quotes that are left end strings
    found, is_inside = [], False
    for start in range(0, len(plain), _PIECE):
        parts = plain[start : start + _PIECE].split(b'"')
        found.append(b"".join(parts[is_inside::2]).translate(_AS_LISTS, _NO_BRACKETS))
        is_inside ^= len(parts) % 2 == 0
    return b"".join(found)


def parse_number(text: str) -> float:
    """Parse a decimal number as a person writes it ("5", "-1.5e3"); raise InvalidInput for anything else.

    Python's own `float` reads "1_000", "nan" and digits of other scripts too; none of them is meant by a client.
    """
    if not _DECIMAL.fullmatch(text.strip()):
        raise InvalidInput("The value is not a number; send digits such as 5 or -1.5.")
    return finite(float(text))


def finite(number: float) -> float:
    """Return `number` as a float if a float32 can hold it; raise InvalidInput for infinities, nan and huge ones."""
    try:
        number = float(number)
    except OverflowError:  # a huge integer of JSON
        number = math.inf
    if not abs(number) <= _FLOAT32_MAX:
        raise InvalidInput("The value is too large or not finite; send a number between -3.4e38 and 3.4e38.")
    return number


def decode_base64(text: str) -> bytes:
    """Decode standard base64 (RFC 4648, section 4), with or without line breaks; raise InvalidInput otherwise."""
    try:
        # ASCII alone, and as bytes: text in pieces would take ten times its place.
        return base64.b64decode(text.encode("ascii").translate(None, b" \t\r\n\v\f"), validate=True)
    except ValueError:
        raise InvalidInput("The text is not valid base64.") from None


def _refuse_constant(name: str) -> None:
    raise InvalidInput(f"The JSON holds {name}, which is not a number of JSON.")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidInput("The JSON gives the same name twice; send each once.")
    return members
