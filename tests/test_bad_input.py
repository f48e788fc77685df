"""Whatever is sent wrongly gets one clear sentence and the right status, and the same workers go on serving."""

import base64
import contextlib
import json
import socket
from typing import Any

import pytest

from tests.conftest import png
from tests.server import ROOT, Server, multipart
from tests.test_handlers_image import bomb

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
MEBIBYTE = 2**20


@pytest.fixture(autouse=True)
def same_workers(server: Server) -> Any:
    """Fail a test after which another worker serves, or none."""
    before = server.workers()
    yield
    assert server.workers() == before
    status, _, answer = server.post_form("/predict", "value=5")
    assert (status, answer["input"]) == (200, 5.0)


def refused(reply: tuple[int, dict[str, str], Any], status: int, words: str = "") -> None:
    """Assert the one form of errors: one sentence, nothing of the server's inside."""
    assert reply[0] == status, reply
    assert list(reply[2]) == ["error"]
    sentence = reply[2]["error"]
    assert words in sentence
    assert sentence.endswith((".", "png")) and "\n" not in sentence
    assert not any(secret in sentence for secret in (str(ROOT), "site-packages", "Traceback", "servekit/"))
    assert reply[1]["Content-Type"] == "application/json"
    assert reply[1]["X-Request-Id"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("", "Send either a number"),
        ("other=5", "Send either a number"),
        ("value=", "There is no value"),
        ("value=%20", "There is no value"),
        ("value=abc", "not a number"),
        ("value=nan", "not a number"),
        ("value=inf", "not a number"),
        ("value=1e999", "too large or not finite"),
        ("value=1e39", "too large or not finite"),
        ("value=3.4e38", "no finite answer"),
        ("value=1_000", "not a number"),
        ("value=5&value=6", "sent 2 times"),
        ("value=%00", "not a number"),
    ],
)
def test_a_bad_number(server: Server, form: str, words: str) -> None:
    refused(server.post_form("/predict", form), 400, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "must be an object"),
        (b"{}", "Send either a number"),
        (b'{"value": null}', "There is no value"),
        (b'{"value": true}', "There is no value"),
        (b'{"value": [5]}', "There is no value"),
        (b'{"value": "abc"}', "not a number"),
        (b'{"value": NaN}', "not a number of JSON"),
        (b'{"value": 1, "value": 2}', "twice"),
        (b'{"value": 1, "image": "QQ=="}', "Send either"),
        (b'{"value": ' + b"[" * 200 + b"]" * 200 + b"}", "too deep"),
        (b'{"value": ' + b"[" * 100_000, "too deep"),
        (b'{"value": ' + b"9" * 400 + b"}", "too large or not finite"),
        (b'{"value": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b'{"image": "not base64!"}', "not valid base64"),
        (b'{"image": ""}', "The file is empty"),
        (b'{"image": 5}', "There is no image"),
        (b'{"image": "QUJD"}', "not an image"),
        (b'{"value": "\xff"}', "not valid JSON"),
    ],
)
def test_bad_json(server: Server, body: bytes, words: str) -> None:
    refused(server.post("/predict", body, JSON), 400, words)


def test_bad_images(server: Server, digit: bytes) -> None:
    gif = b"GIF89a\x01\x00\x01\x00\x00\xff\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x00;"
    for name, content, status, words in [
        ("empty.png", b"", 400, "The file is empty"),
        ("text.png", b"hello", 400, "not an image that is read here"),
        ("cut.png", digit[:-60], 400, "damaged or cut off"),
        ("a.gif", gif, 400, "send PNG or JPEG"),
        ("bomb.png", bomb(40_000, 40_000), 413, "at most 4000000 pixels"),
        ("wide.png", bomb(4_000_001, 1), 413, "at most 4000000 pixels"),
    ]:
        refused(server.post_files("/predict", [("file", name, content)]), status, words)
        if content:
            refused(server.post("/predict", content, "image/png"), status, words)
    refused(server.post("/predict", b"", "image/png"), 400, "The file is empty")


def test_an_image_that_is_missing_or_double(server: Server, digit: bytes) -> None:
    refused(server.post_files("/predict", [("picture", "a.png", digit)]), 400, "Send either a number")
    refused(server.post_files("/mnist/predict", [("picture", "a.png", digit)]), 400, "There is no image")
    refused(server.post_files("/predict", [("file", "a.png", digit)] * 2), 400, "sent 2 times")
    refused(server.post_form("/mnist/predict", "file=digit.png"), 400, "text, not a file")
    double = json.dumps({"image": base64.b64encode(digit).decode(), "file": "x"}).encode()
    refused(server.post("/mnist/predict", double, JSON), 400, "two images")
    refused(server.post_form("/predict", "value=5&file=x"), 400, "Send either")


def test_bad_batches(server: Server, digit: bytes) -> None:
    refused(server.post_files("/predict/batch", [("file", "a.png", digit)]), 400, "There are no files")
    refused(server.post("/predict/batch"), 400, "There are no files")
    files = [("files", "x.png", digit)] * 1001
    refused(server.post_files("/predict/batch", files), 413, "1000 files")
    refused(server.post("/predict/batch", b'{"files": 5}', JSON), 400, "files is text, not a file")
    refused(server.post_form("/predict/batch", "files=a.png"), 400, "files is text, not a file")


def test_a_body_that_is_no_multipart(server: Server) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        refused(server.post("/predict", b"\0\1\2", kind), 400, "The form is damaged")
    body, kind = multipart([("files", "a.png", b"content")])
    refused(server.post("/predict/batch", body[:-10], kind), 400, "The form is damaged")
    refused(server.post("/predict/batch", body.replace(b"a.png", b"\xff.png"), kind), 400, "names in UTF-8")


def test_a_form_of_text_has_limits_of_its_own(server: Server) -> None:
    refused(server.post_form("/predict", "value=" + "%41" * 400_000), 413, "1048576 bytes and 1000 fields")
    refused(server.post_form("/predict", "&".join(["a=1"] * 1001)), 413, "1048576 bytes and 1000 fields")


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "image/gif", "application/xml", "x", None])
def test_other_content_types(server: Server, kind: str | None) -> None:
    for path in ("/predict", "/linear/predict", "/mnist/predict", "/predict/batch"):
        refused(server.post(path, b"5", kind), 415, "content type is not read; send one of: application/x-www-form")


@pytest.mark.parametrize("size", [26, 49])  # MiB; clients that send all before they listen must get the answer too
def test_a_body_over_the_limit(server: Server, size: int) -> None:
    body = b"x" * (size * MEBIBYTE)
    for kind in (FORM, JSON, "image/png"):
        refused(server.post("/predict", body, kind), 413, "at most 26214400 bytes")
    content, kind = multipart([("file", "x.png", body)])
    refused(server.post("/predict", content, kind), 413, "at most 26214400 bytes")


def test_a_chunked_body_over_the_limit(server: Server) -> None:
    for kind in (FORM, JSON, "image/png"):
        chunks = (b"x" * MEBIBYTE for _ in range(26))
        refused(server.post("/predict", chunks, kind), 413, "at most 26214400 bytes")


def test_a_body_at_the_limit_is_read(server: Server) -> None:
    refused(server.post("/predict", b"x" * (25 * MEBIBYTE), "image/png"), 400, "not an image")


def test_a_request_without_anything(server: Server) -> None:
    refused(server.post("/predict"), 400, "Send either a number")
    refused(server.post("/linear/predict"), 400, "There is no value")
    refused(server.post("/mnist/predict"), 400, "There is no image")
    refused(server.post("/linear/predict", png_of_noise(), "image/png"), 400, "There is no value")


def png_of_noise() -> bytes:
    import numpy as np

    return png(np.random.default_rng(0).integers(0, 255, (28, 28), np.uint8))


def test_ten_gigabytes_announced_are_refused_at_once(server: Server) -> None:
    with contextlib.closing(server.connect()) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", FORM)
        connection.putheader("Content-Length", str(10 * 2**30))
        connection.endheaders(b"value=5")
        assert connection.getresponse().status == 413


@pytest.mark.parametrize("body", [b"5\r\nvalue\r\nx\r\n", b"5\r\nval", b"-5\r\nvalue\r\n0\r\n\r\n"])
def test_broken_chunks(server: Server, body: bytes) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: " + FORM.encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 "), answer


def test_a_body_that_ends_early(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: " + FORM.encode() + b"\r\nContent-Length: 7\r\n\r\n"
        connection.sendall(head + b"value=")
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error":' in answer


def test_a_header_cannot_set_the_script_name(server: Server) -> None:
    status, _, answer = server.request("GET", "/health", headers={"Script_Name": "/x"})
    assert (status, answer["status"]) == (200, "healthy")
