"""The fast way for the usual upload must read what Werkzeug's parser reads, or nothing."""

import io
import itertools
import random
import time

import pytest
from werkzeug.formparser import MultiPartParser
from werkzeug.test import EnvironBuilder, encode_multipart

from servekit.errors import InvalidInput
from servekit.payload import MAX_PARTS, BodyInMemory, Payload, Upload, read_payload, split_uploads

BOUNDARY = "X-b.9"
KIND = f"multipart/form-data; boundary={BOUNDARY}"
PNG = b"\x89PNG\r\n\x1a\n\x00\r\n--\r\n"


def part(name: str = "file", filename: str = "a.png", content: bytes = PNG, more: str = "\r\nContent-Type: image/png") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"{more}\r\n\r\n'
    return head.encode() + content


def body(*parts: bytes, end: bytes = b"\r\n--X-b.9--\r\n") -> bytes:
    return b"".join(b"--X-b.9\r\n" + each + (b"\r\n" if each is not parts[-1] else b"") for each in parts) + end


def by_werkzeug(content: bytes) -> dict[str, list[Upload]]:
    form, files = MultiPartParser().parse(io.BytesIO(content), BOUNDARY.encode(), len(content))
    assert not form
    uploads = {
        name: [Upload(each.filename, each.read(), each.content_type or None) for each in found]
        for name, found in files.lists()
    }
    for each in itertools.chain(*files.listvalues()):
        each.close()
    return uploads


@pytest.mark.parametrize(
    "content",
    [
        body(part()),
        body(part(), end=b"\r\n--X-b.9--"),
        b"\r\n" + body(part()),
        body(part(more="")),
        body(part(content=b"")),
        body(part(content=b"\r\n\r\n\r\n")),
        body(part("files", "a.png"), part("files", "b (1).png", b"two"), part("other", "c")),
        body(*[part("files", f"{number}.png") for number in range(32)]),
    ],
)
def test_the_usual_upload_is_read_as_werkzeug_reads_it(content: bytes) -> None:
    uploads = split_uploads(content, KIND)
    assert uploads == by_werkzeug(content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--X-b.9--\r\n",
        body(part())[:-1],
        body(part())[:-6],
        body(part(), end=b"\r\n--X-b.9-- \r\n"),
        body(part(filename='a\\"b.png')),
        body(part(filename="a%22b.png")),
        body(part(filename="é.png")),
        body(part(filename="")),
        body(part(more="\r\nContent-Transfer-Encoding: base64")),
        body(part(more="\r\n folded")),
        body(part(content=b"\r\n--X-b.9 \r\n")),
        body(part(content=b"\n--X-b.9\n")),
        body(b'Content-Disposition: form-data; name="value"\r\n\r\n5'),
        body(b"no head"),
        body(part(), b""),
        b"preamble\r\n" + body(part()),
        body(part()) + b"epilogue",
        body(*[part(content=b"")] * (MAX_PARTS + 1)),
    ],
)
def test_what_is_not_usual_is_left_to_werkzeug(content: bytes) -> None:
    assert split_uploads(content, KIND) is None


@pytest.mark.parametrize(
    "kind",
    ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="X-b.9"', KIND + "; charset=x"],
)
def test_a_boundary_in_another_dress_is_left_to_werkzeug(kind: str) -> None:
    assert split_uploads(body(part()), kind) is None


def test_whatever_is_cut_or_changed_is_read_as_werkzeug_reads_it_or_not_at_all() -> None:
    generator = random.Random(0)
    whole = body(part("files", "a.png", b"one\r\n--X-b.8\r\ntwo"), part("files", "b.png", b"-" * 40))
    read = 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(content))
            content[at : at + generator.randint(0, 2)] = generator.choice([b"", b"\r", b"\n", b"-", b"X-b.9", b"\r\n--X-b.9"])
        uploads = split_uploads(bytes(content), KIND)
        if uploads is not None:
            read += 1
            assert uploads == by_werkzeug(bytes(content)), bytes(content)
    assert read > 300


def read(content: bytes, kind: str) -> Payload:
    request = BodyInMemory(EnvironBuilder(method="POST", data=content, content_type=kind).get_environ())
    request.max_content_length = 25 * 2**20
    return read_payload(request)


HEAVY_HEADS = {
    "parameters without end": b'--b\r\nContent-Disposition: form-data;name=a' + b';a=""' * 1_000_000 + b"\r\n\r\nx\r\n--b--\r\n",
    "parameters": b'--b\r\nContent-Disposition: form-data; name="a"' + b"; a=b" * 100 + b"\r\n\r\nx\r\n--b--\r\n",
    "fields": b"--b\r\n" + b"X: y\r\n" * 1_000_000 + b"\r\nx\r\n--b--",
    "bare line ends": b"--b\n" + b"X: y\n" * 1_000_000 + b"\nx\n--b--",
    "the second part": b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b\r\n' + b"X: y\r\n" * 1_000_000,
}


@pytest.mark.parametrize("body", HEAVY_HEADS.values(), ids=HEAVY_HEADS)
def test_heads_of_parts_that_would_take_long_to_read_are_refused_at_once(body: bytes) -> None:
    started = time.process_time()
    with pytest.raises(InvalidInput, match="too large a head"):
        read(body, "multipart/form-data; boundary=b")
    assert time.process_time() - started < 0.5


def test_a_boundary_that_no_client_writes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="200 characters"):
        read(b"--" + b"b" * 201 + b"\r\n\r\n", f"multipart/form-data; boundary={'b' * 201}")


def test_a_boundary_somewhat_over_the_standard_is_read_as_werkzeugs_test_client_writes_it() -> None:
    boundary = "---------------WerkzeugFormPart_1795309606.12345670.00012345678901234567"
    assert len(boundary) > 70
    _, body = encode_multipart({"value": "5"}, boundary)
    assert read(body, f'multipart/form-data; boundary="{boundary}"').one("value") == "5"
