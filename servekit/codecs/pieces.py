"""Large JSON, parsed and let go of in pieces: a parser in C, and Python as it frees, stop all other threads meanwhile.

A piece ends at a comma outside of strings. What is open there is closed for the parser, and opened again before the next
piece, so each is JSON of its own; what it holds then goes to the lists and objects that the pieces before have begun.
"""

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from servekit.codecs.values import NOT_JSON, require_few_containers, require_shallow
from servekit.errors import InvalidInput

PIECE_BYTES = 2**17  # which take two milliseconds
_PAUSE_SECONDS = 1e-5  # so that a thread that waits runs now, not only when the interpreter makes this one stop

# Names that no client knows: of what goes on in a piece, and of where it ends.
_GOES_ON, _ENDS = (f"{name} {secrets.token_hex(16)}" for name in ("goes on", "ends"))
_CLOSE = bytes.maketrans(b"[{", b"]}")
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))

Container = list[Any] | dict[str, Any]
Loads = Callable[[bytes], Any]
Joint = tuple[Container, int]  # a list or object, and how much it held before a piece

_joints: ContextVar[list[list[Joint]] | None] = ContextVar("joints", default=None)


def load_in_pieces(body: bytes, loads: Loads, size: int = PIECE_BYTES) -> Any:
    """Return what `loads` makes of `body`, JSON in UTF-8, by pieces of about `size` bytes; a longer string is not divided.

    `loads` raises InvalidInput for what is no JSON, and so does this, also for what is nested too deep. Of a name given
    twice the last one counts.
    """
    require_few_containers(body)
    loading, start = _Loading(loads), 0
    while True:
        stop, brackets = _cut(body, start, size)
        loading.add(body[start:stop], brackets, is_last=stop == len(body))
        if stop == len(body):
            return loading.value
        start = stop + 1
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def freed_in_pieces() -> Iterator[None]:
    """Empty all that `load_in_pieces` has returned within, at the end and as slowly; nobody may hold it longer."""
    joints: list[list[Joint]] = []
    token = _joints.set(joints)
    try:
        yield
    finally:
        _joints.reset(token)
        while joints:
            for container, length in reversed(joints.pop()):
                if isinstance(container, list):
                    del container[length:]
                else:
                    while len(container) > length:
                        container.popitem()
            time.sleep(_PAUSE_SECONDS)


class _Loading:
    """The value so far, and what is open in it."""

    def __init__(self, loads: Loads) -> None:
        self.value: Any = None
        self._loads = loads
        self._open: list[Container] = []  # lists and objects whose end has not been seen, the outermost first
        self._brackets = b""  # with which they begin
        joints = _joints.get()
        self._joints: list[list[Joint]] = [] if joints is None else joints  # of each piece

    def add(self, piece: bytes, brackets: bytes, is_last: bool) -> None:
        """Take the next piece, whose brackets outside of strings are `brackets`; raise InvalidInput."""
        text = _opening(self._brackets) + piece
        require_shallow(text)
        kept, opened = _stack(self._brackets, brackets)
        after = self._brackets[:kept] + opened
        if is_last == bool(after):
            raise InvalidInput(NOT_JSON)
        part = self._loads(text + _closing(after))
        parts = _continued(part, self._brackets)
        begun: list[Container] = []
        if not is_last:
            found = _ending(parts[kept - 1] if kept else part, len(opened) + (kept > 0))
            if found is None:  # what only looked like JSON to the one who counts brackets
                raise InvalidInput(NOT_JSON)
            begun = found[1:] if kept else found
        self._join(parts)
        if not self._brackets:
            self.value = part
        self._open, self._brackets = self._open[:kept] + begun, after

    def _join(self, parts: list[Container]) -> None:
        """Put what `parts` hold to the open lists and objects that they continue."""
        self._joints.append([(container, len(container)) for container in self._open])
        for container, part in zip(self._open, parts, strict=True):
            is_innermost = container is self._open[-1]
            if is_innermost and not part:  # a comma with nothing behind it
                raise InvalidInput(NOT_JSON)
            if isinstance(container, dict):
                members = cast(dict[str, Any], part)
                members.pop(_GOES_ON, None)
                container.update(members)
            else:
                values = cast(list[Any], part)
                container += values if is_innermost else values[1:]


def _cut(body: bytes, start: int, size: int) -> tuple[int, bytes]:
    """Return where the piece from `start` on ends, at a comma or at the end, and its brackets; both outside of strings."""
    brackets, is_inside = b"", False
    while True:
        window = body[start : start + size]
        if (len(window) - len(window.rstrip(b"\\"))) % 2:  # the end would part a character from what escapes it
            window = body[start : start + size + 1]
        start += len(window)
        if b"\\" in window:
            window = window.replace(rb"\\", b"__").replace(rb'\"', b"__")
        parts = window.split(b'"')  # in turn outside and inside of strings
        comma = None if start == len(body) else _last_comma(parts, is_inside)
        if comma is None:
            brackets += _brackets(parts[is_inside::2])
            is_inside ^= len(parts) % 2 == 0
            if start == len(body):
                return start, brackets
        else:
            number, at = comma
            brackets += _brackets([*parts[is_inside:number:2], parts[number][:at]])
            return start - len(b'"'.join(parts[number:])) + at, brackets


def _last_comma(parts: list[bytes], is_inside: bool) -> tuple[int, int] | None:
    """Return the number of the part outside of strings that holds the last comma, and where in it; None if none does."""
    last = len(parts) - 1
    for number in range(last - (last % 2 != is_inside), -1, -2):
        at = parts[number].rfind(b",")
        if at >= 0:
            return number, at
    return None


def _brackets(parts: list[bytes]) -> bytes:
    return b"".join(parts).translate(None, _OTHERS)


def _stack(before: bytes, brackets: bytes) -> tuple[int, bytes]:
    """Return how many of the open brackets `before` stay open when `brackets` follow, and those that are opened then."""
    left = b""
    while left != brackets:
        left, brackets = brackets, brackets.replace(b"[]", b"").replace(b"{}", b"")
    closed = len(brackets) - len(brackets.lstrip(b"]}"))
    kept = len(before) - closed
    opened = brackets[closed:]
    if kept < 0 or before[kept:][::-1].translate(_CLOSE) != brackets[:closed] or opened.strip(b"[{"):
        raise InvalidInput(NOT_JSON)
    return kept, opened


def _opening(brackets: bytes) -> bytes:
    outer = b"".join(b"[" if bracket == b"["[0] else b'{"%b":' % _GOES_ON.encode() for bracket in brackets[:-1])
    return outer + brackets[-1:]


def _closing(brackets: bytes) -> bytes:
    """Return the end of what is open, and in the innermost of it a mark before, to know it by."""
    mark = b"" if not brackets else b',"%b"' % _ENDS.encode() if brackets.endswith(b"[") else b',"%b":0' % _ENDS.encode()
    return mark + brackets[::-1].translate(_CLOSE)


def _continued(part: Any, brackets: bytes) -> list[Container]:
    """Return what of `part` continues that which began with `brackets`, the outermost first."""
    found: list[Container] = [part] if brackets else []
    while len(found) < len(brackets):
        outer: Any = found[-1]
        found.append(outer[0] if isinstance(outer, list) else outer[_GOES_ON])
    return found


def _ending(container: Any, depth: int) -> list[Container] | None:
    """Return `container` and what is open in it, `depth` in all, if the innermost bears the mark; take that away."""
    if not isinstance(container, list | dict):
        return None
    if depth == 1:
        if isinstance(container, dict):
            return None if container.pop(_ENDS, None) is None else [container]
        return [container] if container[-1:] == [_ENDS] and container.pop() else None
    # The last member, unless its name was given before: then the object has it in the place of the first.
    children = container[-1:] if isinstance(container, list) else reversed(container.values())
    for child in children:
        below = _ending(child, depth - 1)
        if below is not None:
            return [container, *below]
    return None
