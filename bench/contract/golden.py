"""The recorded answers of a group as JSON, and back."""

import base64
import json
from pathlib import Path
from typing import Any

from bench.contract.cases import Case, Group
from bench.contract.exchange import Answer
from bench.machine import ROOT

FOLDER = ROOT / "tests" / "golden" / "torchserve"


def write(group: Group, answers: dict[str, list[Answer]], server: str) -> Path:
    """Write what `server` answered to each case of `group`; return the file."""
    content = {
        "server": server,
        "config": group.config,
        "archives": group.archives,
        "load": group.load,
        "variables": dict(group.variables),
        "cases": [_case(case) | {"answers": [_answer(each) for each in answers[case.name]]} for case in group.cases],
    }
    path = FOLDER / f"{group.name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path


def read(group: Group) -> dict[str, list[Answer]]:
    """Return the recorded answers of `group` by the name of the case."""
    content = json.loads((FOLDER / f"{group.name}.json").read_text())
    return {case["name"]: [_parsed(each) for each in case["answers"]] for case in content["cases"]}


def _case(case: Case) -> dict[str, Any]:
    request: dict[str, Any] = {"port": case.port, "method": case.method, "path": case.path}
    if case.raw:
        request = {"port": case.port, "raw": case.raw.decode("latin-1")}
    if case.headers:
        request["headers"] = dict(case.headers) if len(dict(case.headers)) == len(case.headers) else case.headers
    if case.body is not None:
        request |= _text(case.body)
    if case.together:
        request |= {"together": [body.decode() for body in case.together], "stagger": case.stagger}
    if case.until:
        request |= {"until": case.until}
    return {"name": case.name, "request": request}


def _answer(answer: Answer) -> dict[str, Any]:
    if answer.failure:
        return {"failure": answer.failure}
    lines = [f"{name}: {value}" for name, value in answer.headers]
    return {"status": answer.status, "reason": answer.reason, "headers": lines} | _text(answer.body)


def _parsed(content: dict[str, Any]) -> Answer:
    if "failure" in content:
        return Answer(failure=content["failure"])
    body = base64.b64decode(content["base64"]) if "base64" in content else content["body"].encode()
    pairs = (line.partition(": ") for line in content["headers"])
    return Answer(content["status"], content["reason"], tuple((name, value) for name, _, value in pairs), body)


def _text(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}
