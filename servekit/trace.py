"""W3C Trace Context (https://www.w3.org/TR/trace-context/): what a request says of its trace, and what is passed on.

Standard library only: the id of a trace stands in log lines, whether spans are sent anywhere or not.
"""

import random
import re
from dataclasses import dataclass

VERSION = "00"  # the one that is passed on; it is what is known of any newer one, too
MAX_STATES = 32  # members of a tracestate

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_KNOWN_FLAGS = 0x03  # sampled, random; what others mean is not known, so they are not passed on
# A member of a tracestate is key=value; the key's form is checked, the value is whatever may stand in a header.
_STATE = re.compile(r"[a-z0-9][a-z0-9_*/@-]{0,255}=[ -+\--<>-~]{1,256}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to: 32 hexadecimal digits; `span_id`, 16 of them, is this server's part of it."""

    trace_id: str
    parent_id: str  # the caller's span
    span_id: str
    flags: int
    state: str = ""  # what systems of tracing have noted for one another, passed on as it came

    @property
    def parent(self) -> str:
        """What calls that are made for the request say in their `traceparent`."""
        return f"{VERSION}-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def trace_of(traceparent: str, tracestate: str = "") -> Trace | None:
    """Return what two headers say, with a new span for this server; None if the first is none that can be read."""
    found = _PARENT.fullmatch(traceparent.strip(" \t"))
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == "ff" or (version == VERSION and more) or not int(trace_id, 16) or not int(parent_id, 16):
        return None
    return Trace(trace_id, parent_id, new_span_id(), int(flags, 16) & _KNOWN_FLAGS, _state_of(tracestate))


def new_span_id() -> str:
    """Return 16 random hexadecimal digits that are not all zero."""
    return f"{random.randrange(1, 2**64):016x}"  # nosec B311  # nobody's secret depends on it


def _state_of(header: str) -> str:
    """Return `header` if it is a tracestate; one that is not, or too long, is dropped whole as the standard allows."""
    members = [member.strip(" \t") for member in header.split(",")]
    members = [member for member in members if member]  # empty ones are allowed
    keys = {member.partition("=")[0] for member in members}
    is_state = len(members) <= MAX_STATES and len(keys) == len(members) and all(map(_STATE.fullmatch, members))
    return ",".join(members) if is_state else ""
