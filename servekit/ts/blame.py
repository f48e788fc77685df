"""Which line of an archive an error comes from."""

import textwrap
import traceback
from pathlib import Path

_OURS = Path(__file__).parent.parent  # servekit/, whose frames say nothing about the archive


def describe(error: BaseException, folder: Path) -> str:
    """Return type and message of `error` in one line, with the innermost line of the archive's that was reached."""
    reason = error.msg if isinstance(error, SyntaxError) else str(error)
    name, message = type(error).__name__, textwrap.shorten(reason, 300).rstrip(".")
    text = f"{name}: {message}" if message else name
    place = _place(error, folder)
    return f"{text} ({place})" if place else text


def _place(error: BaseException, folder: Path) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SyntaxError) and (place := _inside(seen.filename, seen.lineno, folder)):
            return place.partition(" ")[0]
        for frame in reversed(traceback.extract_tb(seen.__traceback__)):
            if place := _inside(frame.filename, frame.lineno, folder):
                return place
        seen = seen.__cause__ or seen.__context__
    return None


def _inside(file: str | None, line: int | None, folder: Path) -> str | None:
    if file is None or not Path(file).is_relative_to(folder):
        return None
    return f"{Path(file).relative_to(folder)}:{line}"


def traceback_of(error: BaseException, folder: Path) -> str:
    """Return the traceback of `error`, beginning at the first line of the archive's own."""
    whole = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = whole
    while part is not None:
        part.stack = traceback.StackSummary.from_list(_from_archive(list(part.stack), folder))
        part = part.__cause__ or part.__context__
    return "".join(whole.format())


def _from_archive(frames: list[traceback.FrameSummary], folder: Path) -> list[traceback.FrameSummary]:
    own = [number for number, frame in enumerate(frames) if Path(frame.filename).is_relative_to(folder)]
    kept = frames[own[0] :] if own else frames
    machinery = str(_OURS / "imports.py"), "<frozen importlib"
    return [frame for frame in kept if not frame.filename.startswith(machinery)]
