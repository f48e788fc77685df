"""What a request says of its trace. The cases are those of the standard's own text and test harness."""

import re

import pytest

from servekit.trace import trace_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    "header, flags",
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f" 00-{TRACE}-{SPAN}-00\t", "00"),
        (f"00-{TRACE}-{SPAN}-ff", "03"),  # flags that nobody knows yet are not passed on
        (f"cc-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", "01"),
    ],
)
def test_a_trace_is_passed_on_with_a_span_of_our_own(header: str, flags: str) -> None:
    found = trace_of(header)
    assert found is not None and (found.trace_id, found.parent_id) == (TRACE, SPAN)
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-{flags}", found.parent)
    assert found.span_id not in (SPAN, "0" * 16)


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"0\u0660-{TRACE}-{SPAN}-01",
    ],
)
def test_what_is_no_trace_is_left_alone(header: str) -> None:
    assert trace_of(header) is None


@pytest.mark.parametrize(
    "header, passed_on",
    [
        ("foo=1,bar=2", "foo=1,bar=2"),
        ("foo=1 , ,bar@x=2", "foo=1,bar@x=2"),
        (",".join(f"k{n}=1" for n in range(32)), ",".join(f"k{n}=1" for n in range(32))),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        ("foo=1,foo=2", ""),
        ("foo", ""),
        ("FOO=1", ""),
        ("foo=1\n", ""),
        ("foo=" + "x" * 257, ""),
    ],
)
def test_the_state_of_a_trace_is_passed_on_whole_or_not_at_all(header: str, passed_on: str) -> None:
    found = trace_of(f"00-{TRACE}-{SPAN}-01", header)
    assert found is not None and found.state == passed_on
