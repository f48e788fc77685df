"""What no two runs have in common, by named rules, so that two answers can be compared as text."""

import dataclasses
import re
from collections.abc import Mapping

from bench.contract.exchange import Answer

# name, pattern, what stands for it; in bodies and in the values of headers
RULES = (
    ("uuid", re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "<uuid>"),
    ("pid", re.compile(r'("pid": )\d+'), r'\1"<pid>"'),
    ("worker id", re.compile(r'("id": )"\d+"(?=,\s+"startTime")'), r'\1"<worker id>"'),
    ("time", re.compile(r'("startTime": )"[^"]+"'), r'\1"<time>"'),
    ("memory", re.compile(r'("memoryUsage": )\d+'), r'\1"<bytes>"'),
    ("host", re.compile(r'([Hh]ostname=)"[^"]*"'), r'\1"<host>"'),
    ("worker", re.compile(r'(WorkerName=)"[^"]*"'), r'\1"<worker>"'),
    ("date", re.compile(r"\b\w{3}, \d\d \w{3} 2\d{3} \d\d:\d\d:\d\d GMT"), "<date>"),
)
EXPOSITION = "text/plain; version=0.0.4"
COUNTS = re.compile(r"ts_inference_requests_total\{")


def normalise(answer: Answer, ports: Mapping[str, int], keys: Mapping[str, str], folder: str) -> Answer:
    """Return `answer` without what changes from run to run; `folder` is the one that the server was started in."""

    def rewritten(text: str) -> str:
        for role, port in ports.items():
            text = re.sub(rf"\b{port}\b", f"<{role} port>", text)
        for name, key in keys.items():
            text = text.replace(key, f"<{name} key>")
        text = text.replace(folder, "<folder>")
        for _, pattern, stand_in in RULES:
            text = pattern.sub(stand_in, text)
        return text

    headers = [(name, rewritten(value)) for name, value in answer.headers]
    is_page = any(name.lower() == "content-type" and value.startswith(EXPOSITION) for name, value in headers)
    body = answer.body
    text = _decoded(body)
    if text is not None:
        body = rewritten(exposition(text) if is_page else text).encode()
    length = "" if is_page else str(len(answer.body))  # of a page of metrics it is never the same
    sized = [(name, _length(name, value, length)) for name, value in headers]
    return dataclasses.replace(answer, headers=tuple(sized), body=body)


def exposition(text: str) -> str:
    """Return a page of metrics with its families and samples sorted, and every value but the count of predictions replaced."""
    families: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
        if not line.startswith("#") and not COUNTS.match(line):
            line = re.sub(r" [^ ]+$", " <value>", line)
        families.setdefault(name, []).append(line)
    return "".join(f"{line}\n" for name in sorted(families) for line in _sorted_samples(families[name]))


def _sorted_samples(lines: list[str]) -> list[str]:
    head = [line for line in lines if line.startswith("#")]
    return head + sorted({line for line in lines if not line.startswith("#")})


def _length(name: str, value: str, length: str) -> str:
    return "<length of the body>" if name.lower() == "content-length" and length in ("", value) else value


def _decoded(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
