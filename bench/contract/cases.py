"""What a case and a group of cases are: requests as data, in the order in which one fresh server gets them."""

import dataclasses
from typing import Any

TEXT = ("Content-Type", "text/plain")
JSON = ("Content-Type", "application/json")
BYTES = ("Content-Type", "application/octet-stream")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
BOUNDARY = "----contract"
MULTIPART = ("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
Header = tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One request: nothing is sent but `Host`, `headers` and, for a body, `Content-Length`.

    `<inference key>`, `<management key>` and `<API key>` in path and headers stand for the tokens of the server, and
    `<first ... key>` for those that it began with.
    """

    name: str
    port: str  # inference, management or metrics
    method: str
    path: str
    headers: tuple[Header, ...] = ()
    body: bytes | None = None
    raw: bytes = b""  # sent as it stands, in place of all of the above
    together: tuple[bytes, ...] = ()  # these bodies, over a connection each, each `stagger` seconds after the one before
    stagger: float = 0.0
    until: str = ""  # sent again until the body matches this pattern: what takes time may still be under way
    seconds: float = 30.0  # without an answer for so long, there is none


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases that one fresh server gets in turn, and how it is started.

    `archives` are names of tests/archives.py that lie in the model store, `load` those of them that are loaded at
    the start; `config` are lines of config.properties beside the addresses.
    """

    name: str
    cases: tuple[Case, ...]
    archives: tuple[str, ...] = ()
    load: tuple[str, ...] = ()
    config: tuple[str, ...] = ("disable_token_authorization=true", "enable_model_api=true")
    variables: tuple[tuple[str, str], ...] = ()  # of the environment


def infer(name: str, method: str, path: str, body: bytes | None = None, *headers: Header, **more: Any) -> Case:
    """Return a request to the inference port."""
    return Case(name, "inference", method, path, headers, body, **more)


def manage(name: str, method: str, path: str, body: bytes | None = None, *headers: Header, **more: Any) -> Case:
    """Return a request to the management port."""
    return Case(name, "management", method, path, headers, body, **more)


def scrape(name: str, path: str, method: str = "GET", **more: Any) -> Case:
    """Return a request to the metrics port."""
    return Case(name, "metrics", method, path, **more)


def parts(*fields: tuple[str, str, str, bytes]) -> bytes:
    """Return a multipart body of (field, file name or "", content type or "", content)."""
    body = b""
    for field, file, kind, content in fields:
        named = f'; filename="{file}"' if file else ""
        typed = f"Content-Type: {kind}\r\n" if kind else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"{named}\r\n{typed}\r\n'
        body += head.encode() + content + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()
