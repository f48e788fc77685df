"""The worker class gives the application what PEP 3333 promises, by every way that a request can come."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.raw import Client, PlainServer, plain
from tests.server import wait_for

KEYS = {"REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL"}
WSGI_KEYS = {"version", "url_scheme", "input", "errors", "multithread", "multiprocess", "run_once", "file_wrapper"}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


HAS_IPV6 = has_ipv6()


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    folder = tmp_path_factory.mktemp("environ")
    addresses = ["127.0.0.1:0", "127.0.0.1:0", f"unix:{folder / 'socket'}", *["[::1]:0"] * HAS_IPV6]
    access = ["--access-logfile", "-", "--access-logformat", "access %(m)s %(U)s?%(q)s %(s)s %(b)s %({x-a}i)s %(h)s"]
    with plain(folder, "--forwarded-allow-ips", "127.0.0.1", *access, bind=addresses) as server:
        yield server
        assert "Traceback" not in server.text()


def environ(client: Client, target: str = "/a", *headers: str, method: str = "GET", host: str = "x") -> dict[str, Any]:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    answer = client.ask("\r\n".join(lines).encode("latin-1"))
    assert answer.status == 200, answer
    return answer.json()["environ"]


@pytest.fixture
def client(http: PlainServer) -> Iterator[Client]:
    with http.client() as client:
        yield client


def test_every_key_of_pep_3333_is_there(client: Client) -> None:
    names = client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").json()["names"]
    assert KEYS | {f"wsgi.{name}" for name in WSGI_KEYS} | {"REMOTE_ADDR", "HTTP_HOST", "RAW_URI"} <= set(names)
    seen = environ(client, "/a?b=c")
    assert {name: seen[name] for name in ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")} == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b=c",
    }
    assert (seen["SERVER_PROTOCOL"], seen["wsgi.url_scheme"], seen["wsgi.version"]) == ("HTTP/1.1", "http", [1, 0])
    assert seen["wsgi.run_once"] is False and seen["REMOTE_ADDR"] == "127.0.0.1"
    assert "HTTP_CONTENT_LENGTH" not in names and "HTTP_CONTENT_TYPE" not in names


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_the_validator_of_the_standard_library_has_no_complaint(http: PlainServer, method: str) -> None:
    body = b"hello" if method == "POST" else b""
    head = f"{method} /checked?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nContent-Type: a/b\r\n\r\n"
    with http.client() as client:
        for _ in range(2):
            answer = client.ask(head.encode() + body, method)
            assert (answer.status, answer.body) == (200, body)
    assert wait_for(lambda: f"checked {method}" in http.text())
    assert "garbage collected without being closed" not in http.text()


def test_the_content_type_and_length_have_names_of_their_own(client: Client) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 5\r\n\r\n"
    seen = client.ask(head + b"hello").json()["environ"]
    assert (seen["CONTENT_TYPE"], seen["CONTENT_LENGTH"]) == ("image/png", "5")


def test_the_path_is_decoded_and_the_raw_target_is_kept(client: Client) -> None:
    seen = environ(client, "/a%20b%2Fc%C3%A9%3f?x=%41&y=?")
    assert seen["PATH_INFO"] == "/a b/c\xc3\xa9?"  # bytes as latin-1, as PEP 3333 wants it
    assert seen["QUERY_STRING"] == "x=%41&y=?"
    assert seen["RAW_URI"] == "/a%20b%2Fc%C3%A9%3f?x=%41&y=?"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/%zz%4", "/%zz%4", ""),
        ("//double//slash", "//double//slash", ""),
        ("/a?", "/a", ""),
        ("/a/../b;c=d", "/a/../b;c=d", ""),
        ("/a:80/b", "/a:80/b", ""),
        ("/?http://b/c", "/", "http://b/c"),
    ],
)
def test_unusual_targets_are_left_as_they_are(client: Client, target: str, path: str, query: str) -> None:
    seen = environ(client, target)
    assert (seen["PATH_INFO"], seen["QUERY_STRING"], seen["RAW_URI"]) == (path, query, target)


def test_the_host_of_an_absolute_target_wins(client: Client) -> None:
    seen = environ(client, "http://other.example:81/a%20b?x=1", host="wrong.example")
    assert (seen["PATH_INFO"], seen["QUERY_STRING"], seen["HTTP_HOST"]) == ("/a b", "x=1", "other.example:81")
    seen = environ(client, "http://other.example?x=1", host="wrong.example")
    assert (seen["PATH_INFO"], seen["QUERY_STRING"], seen["HTTP_HOST"]) == ("/", "x=1", "other.example")


def test_options_may_ask_for_the_whole_server(client: Client) -> None:
    seen = environ(client, "*", method="OPTIONS")
    assert seen["RAW_URI"] == "*" and seen["PATH_INFO"] in ("*", "")


@pytest.mark.parametrize("host", ["example.com", "a_b.example.:80", "127.0.0.1:5001", "[::1]:80", "[::1]", "x-1"])
def test_every_valid_host_is_taken(client: Client, host: str) -> None:
    assert environ(client, host=host)["HTTP_HOST"] == host


def test_repeated_headers_are_joined(client: Client) -> None:
    seen = environ(client, "/a", "X-A: 1", "Cookie: a=1", "x-a: 2, 3", "Cookie: b=2", "X-A:4")
    assert [value.strip() for value in seen["HTTP_X_A"].split(",")] == ["1", "2", "3", "4"]
    assert seen["HTTP_COOKIE"] == "a=1; b=2"


def test_white_space_around_a_value_is_removed(client: Client) -> None:
    seen = environ(client, "/a", "X-A: \t b \t c \t", "X-Empty:", "X-Blank:   ", "X-Latin: \xe9")
    assert seen["HTTP_X_A"] == "b \t c"
    assert (seen["HTTP_X_EMPTY"], seen["HTTP_X_BLANK"], seen["HTTP_X_LATIN"]) == ("", "", "\xe9")


def test_a_header_name_with_an_underscore_cannot_pass_for_another(client: Client) -> None:
    headers = ["X_Forwarded_For: evil", "X-Real_User: evil", "X-Forwarded-For: good", "SCRIPT_NAME: evil"]
    seen = environ(client, "/a", *headers)
    assert seen["HTTP_X_FORWARDED_FOR"] == "good"
    assert "evil" not in seen.values() and seen["SCRIPT_NAME"] == ""


def test_no_header_sets_the_script_name_or_path(client: Client) -> None:
    seen = environ(client, "/a", "Script-Name: /evil", "Path-Info: /evil", "Proxy: http://evil")
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("", "/a")


def test_only_a_trusted_peer_says_that_the_scheme_is_https(http: PlainServer) -> None:
    for peer, scheme in (("127.0.0.1", "https"), ("127.0.0.2", "http")):
        with http.client(source=peer) as client:
            seen = environ(client, "/a", "X-Forwarded-Proto: https")
            assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == (peer, scheme)
            assert environ(client, "/a")["wsgi.url_scheme"] == "http"


def test_a_request_on_each_address_has_its_port(http: PlainServer) -> None:
    ports = set()
    for address in http.addresses[:2]:
        with Client(address) as client:
            seen = environ(client, host="elsewhere:1")
            assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("127.0.0.1", str(address[1]))
            ports.add(seen["SERVER_PORT"])
    assert len(ports) == 2


def test_a_unix_socket_is_served(http: PlainServer) -> None:
    with Client(http.addresses[2]) as client:
        for path in ("/a", "/b"):
            seen = environ(client, path)
            assert seen["PATH_INFO"] == path
            assert all(isinstance(seen[name], str) for name in ("SERVER_NAME", "SERVER_PORT", "REMOTE_ADDR"))
    assert Path(str(http.addresses[2])).is_socket()


@pytest.mark.skipif(not HAS_IPV6, reason="this machine has no IPv6")
def test_ipv6_is_served(http: PlainServer) -> None:
    with Client(http.addresses[3]) as client:
        seen = environ(client, host="[::1]")
        assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("::1", str(http.addresses[3][1]))


def test_the_access_log_is_gunicorns_with_its_own_format(http: PlainServer) -> None:
    http.ask(b"GET /stream-length?logged=1 HTTP/1.1\r\nHost: x\r\nX-A: b\r\n\r\n")
    line = "access GET /stream-length?logged=1 200 12 b 127.0.0.1"
    assert wait_for(lambda: line in http.text()), http.text()


def test_the_hooks_of_the_settings_are_called_with_request_and_answer(http: PlainServer) -> None:
    http.ask(b"GET /hooked?a=b HTTP/1.1\r\nHost: x\r\n\r\n")
    worker = http.workers()[0]
    assert wait_for(lambda: f"post_request {worker} GET /hooked 200 OK" in http.text()), http.text()
    assert f"pre_request {worker} GET /hooked a=b" in http.text()


def test_a_date_is_of_now_and_the_server_has_a_name(http: PlainServer) -> None:
    headers = http.ask(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n").headers
    sent = time.strptime(headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
    assert abs(time.mktime(sent) - time.mktime(time.gmtime())) < 5
    assert headers["server"]
