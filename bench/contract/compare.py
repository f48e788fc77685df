"""What differs between two servers' answers to the same cases, and which of it is accepted."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.contract.exchange import Answer

NOTHING = "nothing"  # what stands for a header or a member that one side does not have


@dataclasses.dataclass(frozen=True)
class Difference:
    """One part of one answer that is not the same. `part` is answer, status, reason, `header NAME` or `body PATH`.

    `statuses` are both servers': `200 200`, or `503 200` where everything else follows from that.
    """

    group: str
    case: str
    part: str
    theirs: str
    ours: str
    statuses: str = "200 200"

    def __str__(self) -> str:
        return f"{self.group}, {self.case}: {self.part}: TorchServe {shown(self.theirs)}, servekit {shown(self.ours)}"


@dataclasses.dataclass(frozen=True)
class Accepted:
    """A difference that is meant: patterns of what it matches whole, and the two cells of its row in the docs."""

    what: str
    reason: str
    part: str
    group: str = ".*"
    case: str = ".*"
    theirs: str = ".*"
    ours: str = ".*"
    statuses: str = ".*"

    def covers(self, difference: Difference) -> bool:
        """Return whether `difference` is the one that is meant here."""
        fields = ("part", "group", "case", "theirs", "ours", "statuses")
        pairs = [(getattr(self, field), getattr(difference, field)) for field in fields]
        return all(re.fullmatch(pattern, text, re.DOTALL) for pattern, text in pairs)


def differences(
    group: str, theirs: Mapping[str, Sequence[Answer]], ours: Mapping[str, Sequence[Answer]]
) -> list[Difference]:
    """Return every difference between two servers' answers to the cases of `group`, by the name of the case."""
    found = []
    for case, answers in theirs.items():
        for expected, seen in zip(answers, ours[case], strict=True):
            statuses = f"{expected.status} {seen.status}"
            found += [Difference(group, case, *parts, statuses) for parts in compare(expected, seen)]
    return found


def compare(theirs: Answer, ours: Answer) -> Iterator[tuple[str, str, str]]:
    """Give (part, theirs, ours) for each part of two answers that is not the same. The case and order of headers are."""
    if theirs.failure or ours.failure:
        if theirs.failure != ours.failure:
            yield "answer", theirs.failure or str(theirs.status), ours.failure or str(ours.status)
        return
    if theirs.status != ours.status:
        yield "status", str(theirs.status), str(ours.status)
    if theirs.reason != ours.reason:
        yield "reason", theirs.reason, ours.reason
    before, after = headers(theirs), headers(ours)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield f"header {name}", before.get(name, NOTHING), after.get(name, NOTHING)
    yield from bodies(theirs.body, ours.body)


def headers(answer: Answer) -> dict[str, str]:
    """Return the headers by their names in lower case, those that came twice joined."""
    found: dict[str, str] = {}
    for name, value in answer.headers:
        found[name.lower()] = f"{found[name.lower()]}, {value}" if name.lower() in found else value
    return found


def bodies(theirs: bytes, ours: bytes) -> Iterator[tuple[str, str, str]]:
    """Give the differences of two bodies: member by member if both are JSON, line by line if both have lines."""
    if theirs == ours:
        return
    try:
        before, after = json.loads(theirs), json.loads(ours)
    except ValueError:
        yield from _lines(theirs.decode("latin-1"), ours.decode("latin-1"))
        return
    found = list(_members("body", before, after))
    yield from found or [("body layout", theirs.decode("latin-1"), ours.decode("latin-1"))]


def _members(path: str, theirs: Any, ours: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            if name not in theirs or name not in ours:
                yield f"{path} {name}", _text(theirs, name), _text(ours, name)
            else:
                yield from _members(f"{path} {name}", theirs[name], ours[name])
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for before, after in zip(theirs, ours, strict=True):
            yield from _members(path, before, after)
    elif (type(theirs), theirs) != (type(ours), ours):
        yield path, json.dumps(theirs), json.dumps(ours)


def _text(content: dict[str, Any], name: str) -> str:
    return json.dumps(content[name]) if name in content else NOTHING


def _lines(theirs: str, ours: str) -> Iterator[tuple[str, str, str]]:
    before, after = theirs.splitlines(), ours.splitlines()
    if len(before) < 2 or len(after) < 2:
        yield "body", theirs, ours
        return
    for line in before:
        if line not in after:
            yield "body line", line, NOTHING
    for line in after:
        if line not in before:
            yield "body line", NOTHING, line


def sort_out(
    found: Sequence[Difference], accepted: Sequence[Accepted]
) -> tuple[list[Difference], dict[Accepted, list[Difference]]]:
    """Return the differences that nothing accepts, and for each of `accepted` those that it is the first to cover."""
    left: list[Difference] = []
    covered: dict[Accepted, list[Difference]] = {each: [] for each in accepted}
    for difference in found:
        by = next((each for each in accepted if each.covers(difference)), None)
        (left if by is None else covered[by]).append(difference)
    return left, covered


def shown(text: str) -> str:
    """Return `text` short enough for a line."""
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}..."
