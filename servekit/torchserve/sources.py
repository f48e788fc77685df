"""Where a model comes from: a name in the model store, or a URL that the operator allows.

A name leads nowhere but into the store, and nothing is connected to before its URL is allowed. Standard library only.
"""

import http.client
import ipaddress
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from servekit.spec import STATE_FOLDER
from servekit.torchserve.properties import Properties
from servekit.torchserve.refusals import Refusal

log = logging.getLogger(__name__)

MAX_DOWNLOAD_BYTES = 64 << 30
DOWNLOAD_SECONDS = 1800.0  # for all of it
SILENCE_SECONDS = 30.0  # between two pieces of it
MAX_URL = 8192  # characters; who signs URLs needs two thousand

_CHUNK = 2**20
_SCHEME = re.compile(r"(https?|file)://", re.IGNORECASE)
_DEFAULT_URLS = Properties().allowed_urls
_PRIVATE = "its host is in a private network, or has no address; name it in allowed_urls to allow that"


class Sources:
    """Finds what clients and operators name as a model's `url`."""

    def __init__(
        self, properties: Properties, max_bytes: int = MAX_DOWNLOAD_BYTES, seconds: float = DOWNLOAD_SECONDS
    ) -> None:
        self._store = properties.model_store
        self._allowed = properties.allowed_urls
        self._max_bytes = max_bytes
        self._seconds = seconds

    def is_remote(self, url: str) -> bool:
        """Return True if `url` has to be downloaded."""
        return url.lower().startswith(("http://", "https://"))

    def check(self, url: str) -> None:
        """Raise Refusal for what need not be looked for: nothing, a way out of the store, a URL that is not allowed."""
        if not url:
            raise Refusal("ModelNotFoundException", "empty url")
        if len(url) > MAX_URL:  # a percent sign of percent signs takes its length squared to undo
            raise Refusal("BadRequestException", f"A url has at most {MAX_URL} characters.")
        plain = _unquoted(url)
        if ".." in plain:
            raise Refusal("ModelNotFoundException", f"Relative path is not allowed in url: {url}")
        if not plain.isprintable():
            raise not_found(url)
        if _SCHEME.match(url) and not is_allowed(url, self._allowed):
            raise Refusal("ModelNotFoundException", f"Given URL {url} does not match any allowed URL(s)")
        if self.is_remote(url) and self._store and (self._store / base_name(url)).exists():
            raise Refusal("InternalServerException", f"Model file already exists {base_name(url)}")

    def local(self, url: str, from_operator: bool = False) -> Path:
        """Return the file or folder that `url` names; raise Refusal if there is none, or none in the model store.

        The operator, who starts the server, may name what lies elsewhere.
        """
        file_url = _SCHEME.match(url)
        if file_url:
            parts = urlsplit(url)
            if parts.netloc not in ("", "localhost"):
                raise not_found(url)
        path = Path(unquote(parts.path) if file_url else url)
        if (from_operator or file_url and self._is_named(path)) and (path.is_file() or path.is_dir()):
            return path.resolve()
        for found in self._in_store(path):
            return found
        raise not_found(url)

    def download(self, url: str, path: Path, from_operator: bool = False) -> None:
        """Fetch `url`, which `check` lets pass, into the new file `path`; raise Refusal if that fails.

        A client leads the server into a private network, its own machine included, only where the operator's own
        expressions name the place; the default one, which matches all, does not.
        """
        until = time.monotonic() + self._seconds
        is_public = self._allowed == _DEFAULT_URLS and not from_operator
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "servekit"})
            opener = _opener(lambda target: self._may_redirect(url, target), is_public and not _has_proxy(url))
            if is_public and not _is_public(urlsplit(url).hostname or ""):
                raise ValueError(_PRIVATE)
            with opener.open(request, timeout=SILENCE_SECONDS) as answer:
                self._save(answer, path, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it holds the connection
            log.warning("%s was not downloaded: %s", base_name(url), error)
            path.unlink(missing_ok=True)
            raise Refusal("DownloadArchiveException", f"Failed to download archive from: {url}") from error

    def _save(self, answer: IO[bytes], path: Path, until: float) -> None:
        size = 0
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            while chunk := answer.read1(_CHUNK):  # type: ignore[attr-defined]
                size += len(chunk)
                if size > self._max_bytes or time.monotonic() > until:
                    raise ValueError("it is too large, or takes too long")
                file.write(chunk)
        length = answer.headers["Content-Length"]  # type: ignore[attr-defined]
        if length is not None and size < int(length):
            raise ValueError("it ended too early")

    def _in_store(self, path: Path) -> list[Path]:
        """Return what `path`, or else its last part, is in the model store; links that lead out of it lead nowhere."""
        if self._store is None:
            return []
        found = []
        try:
            store = self._store.resolve()
            for candidate in (store / path, store / path.name):
                real = candidate.resolve()
                if not real.is_relative_to(store) or real == store or real.is_relative_to(store / STATE_FOLDER):
                    continue  # what lies in the server's own folder goes when the model does that it belongs to
                if real.is_file() or real.is_dir():  # whoever opens a pipe waits for ever
                    found.append(real)
        except (OSError, RuntimeError):  # a name that is too long, links in a circle
            return []
        return found

    def _is_named(self, path: Path) -> bool:
        """Return True if the operator's own expressions, not the default that matches all, name the file."""
        return self._allowed != _DEFAULT_URLS and is_allowed(f"file://{path.resolve()}", self._allowed)

    def _may_redirect(self, url: str, target: str) -> bool:
        """Return True if who asked for `url` may be sent on to `target`.

        What stands behind the default expression is decided by who names the URL, not by the server it names: into a
        private network only the operator's own expressions lead.
        """
        if not self.is_remote(target) or ".." in _unquoted(target) or not is_allowed(target, self._allowed):
            return False
        host = urlsplit(target).hostname or ""
        return self._allowed != _DEFAULT_URLS or host == urlsplit(url).hostname or _is_public(host)


def not_found(url: str) -> Refusal:
    """Return the answer for a model that is not where `url` says."""
    return Refusal("ModelNotFoundException", f"Model not found at: {url}")


def is_allowed(url: str, expressions: Sequence[str]) -> bool:
    """Return True if the whole of `url` matches one of `expressions`, and hides nothing from who wrote them.

    Who reads `http://ok.com@evil/`, or a backslash, takes it for another host than the one that would be asked.
    """
    if re.search(r"[\s\\\x00-\x20]", url):
        return False
    try:
        parts = urlsplit(url)
        is_plain = "@" not in parts.netloc and (parts.scheme == "file" or bool(parts.hostname)) and parts.port != 0
    except ValueError:
        return False
    return is_plain and any(re.fullmatch(expression, url, re.IGNORECASE) for expression in expressions)


def base_name(url: str) -> str:
    """Return the last part of a path or URL, fit to be a file's name."""
    path = urlsplit(url).path if _SCHEME.match(url) else url
    return re.sub(r"[^\w.-]", "_", unquote(path).rstrip("/").rpartition("/")[2])[-200:] or "model"


def _unquoted(text: str) -> str:
    """Return `text` without percent signs that stand for something, even for percent signs."""
    while (plain := unquote(text)) != text:
        text = plain
    return text


def _is_public(host: str) -> bool:
    try:
        return bool(_public_addresses(host, None))
    except (OSError, ValueError):
        return False


def _public_addresses(host: str, port: int | None) -> list[tuple[str, int]]:
    """Return the addresses of `host`; raise OSError if one of them is not for everybody."""
    found = [each[4] for each in socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)]
    if not all(ipaddress.ip_address(address[0]).is_global for address in found):
        raise OSError(_PRIVATE)
    return [(str(address[0]), int(address[1])) for address in found]


def _connect(address: tuple[str, int], timeout: float, source_address: Any = None) -> socket.socket:
    """Connect as `socket.create_connection` does, to an address that was looked at: a name may mean another later."""
    error = OSError(_PRIVATE)
    for each in _public_addresses(*address):
        try:
            return socket.create_connection(each, timeout, source_address)
        except OSError as failure:  # of several addresses one may be of a protocol that is not spoken here
            error = failure
    raise error


def _has_proxy(url: str) -> bool:
    """Return True if the operator's environment has `url` fetched by another machine."""
    parts = urlsplit(url)
    return parts.scheme.lower() in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.netloc)


class _PublicHTTP(http.client.HTTPConnection):
    """A connection to a machine that everybody can reach."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _PublicHTTPS(http.client.HTTPSConnection):
    """The same, with TLS, whose certificate is of the name that was asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _connect


class _PublicHTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHTTP, req)


class _PublicHTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PublicHTTPS, req)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where `may_redirect` lets it."""

    def __init__(self, may_redirect: Callable[[str], bool]) -> None:
        self._may_redirect = may_redirect

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> Any:
        if not self._may_redirect(newurl):
            fp.close()
            raise urllib.error.URLError("it redirects to where it may not")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(may_redirect: Callable[[str], bool], is_public: bool) -> urllib.request.OpenerDirector:
    """Return what opens http and https URLs, with `is_public` those of public machines, and nothing else that urllib can."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _PublicHTTPHandler() if is_public else urllib.request.HTTPHandler(),
        _PublicHTTPSHandler() if is_public else urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _Redirects(may_redirect),
    ):
        opener.add_handler(handler)
    return opener
