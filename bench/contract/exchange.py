"""Sending a case to a server and taking down what comes back, byte for byte."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import re
import time
from collections.abc import Mapping

from bench.contract.cases import Case

AGAIN_SECONDS = 60.0  # for a case that is sent until its answer matches
PAUSE_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Answer:
    """A response as it came: header names in the server's own case and order. `failure` says why there is none."""

    status: int = 0
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    failure: str = ""


def exchange(case: Case, ports: Mapping[str, int], keys: Mapping[str, str]) -> list[Answer]:
    """Send `case`; return its answer, or those to all its bodies sorted by status and body."""
    if not case.together:
        return [_repeated(case, ports[case.port], keys)]
    with concurrent.futures.ThreadPoolExecutor(len(case.together)) as pool:
        sent = []
        for body in case.together:
            sent.append(pool.submit(_send, dataclasses.replace(case, body=body), ports[case.port], keys))
            time.sleep(case.stagger)
        return sorted((each.result() for each in sent), key=lambda answer: (answer.status, answer.body))


def _repeated(case: Case, port: int, keys: Mapping[str, str]) -> Answer:
    deadline = time.monotonic() + AGAIN_SECONDS
    while True:
        answer = _send(case, port, keys)
        if re.search(case.until.encode(), answer.body) or time.monotonic() > deadline:
            return answer
        time.sleep(PAUSE_SECONDS)


def _send(case: Case, port: int, keys: Mapping[str, str]) -> Answer:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=case.seconds)) as connection:
        try:
            connection.connect()
            _write(connection, case, keys)
            return _read(connection, case)
        except TimeoutError:
            return Answer(failure="no answer")
        except (OSError, http.client.HTTPException):
            return Answer(failure="the connection was closed without an answer")


def _write(connection: http.client.HTTPConnection, case: Case, keys: Mapping[str, str]) -> None:
    if case.raw:
        connection.send(case.raw)
        return
    connection.putrequest(case.method, filled(case.path, keys), skip_accept_encoding=True)
    for name, value in case.headers:
        connection.putheader(name, filled(value, keys))
    if case.body is not None and "Transfer-Encoding" not in dict(case.headers):
        connection.putheader("Content-Length", str(len(case.body)))
    connection.endheaders()
    if case.body:
        with contextlib.suppress(OSError):  # who refuses a body early may close first; the answer is there to be read
            connection.send(case.body)


def _read(connection: http.client.HTTPConnection, case: Case) -> Answer:
    response = http.client.HTTPResponse(connection.sock, method=case.method)
    response.begin()
    body = response.read()
    return Answer(response.status, response.reason, tuple(response.getheaders()), body)


def filled(text: str, keys: Mapping[str, str]) -> str:
    """Return `text` with the server's own tokens in the place of `<... key>`."""
    for name, key in keys.items():
        text = text.replace(f"<{name} key>", key)
    return text
