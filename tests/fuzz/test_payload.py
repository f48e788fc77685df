"""Forms, JSON and pictures as bodies: what a client wrote is read, by both readers of multipart alike, and no bytes do harm."""

import io
from typing import Any
from urllib.parse import urlencode

from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder, encode_multipart

from servekit.errors import RequestError
from servekit.payload import FORM, JSON, BodyInMemory, Payload, Upload, read_payload, split_uploads
from tests.fuzz.made import bounded, damaged

KIND = "multipart/form-data; boundary=X"
SEEDS = (
    b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\ncontent\r\n--X--\r\n',
    b'--X\r\nContent-Disposition: form-data; name="value"\r\n\r\n5\r\n--X\r\n'
    b'Content-Disposition: form-data; name="files"; filename="b c.png"\r\n\r\n\r\n--X--',
    b'\r\n--X\r\ncontent-disposition: form-data; name="f"; filename="a"\r\n\r\n--X--\r\n\r\n--X--\r\n',
)
WORDS = (
    *(
        b"--X",
        b"--X--",
        b"\r\n--X\r\n",
        b"\r\n--X--",
        b"--",
        b"\r\n",
        b"\r",
        b"\n",
        b"\r\n\r\n",
        b'"',
        b"\\",
        b";",
        b"%22",
        b"\0",
        b"\xff",
    ),
    *(
        b"filename*=utf-8''a",
        b"name=",
        b"Content-Transfer-Encoding: base64\r\n",
        b" folded\r\n",
        b"multipart/mixed; boundary=X",
    ),
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
QUOTABLE = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters='"\\'), min_size=1, max_size=6)
NAMES = st.from_regex(r"[A-Za-z0-9_.\[\]-]{1,6}", fullmatch=True) | QUOTABLE
KINDS = st.sampled_from((KIND, FORM, JSON, "image/png", "", "x/y")) | st.text(
    st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=8
)
FILES = st.from_regex(r"[A-Za-z0-9 _.()+,@-]{1,8}", fullmatch=True)
app = Flask(__name__)


def read(body: bytes, kind: str) -> Payload:
    """Return what a request with `body` carries."""
    request = BodyInMemory(EnvironBuilder(method="POST", data=body, content_type=kind).get_environ())
    request.max_content_length = 10**6
    return read_payload(request)


def carried(payload: Payload) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in payload._members.items()}


@given(st.lists(st.tuples(NAMES, TEXT | st.tuples(FILES, st.binary(max_size=20)))))
def test_a_form_of_files_and_text_is_read_as_it_was_written(members: list[tuple[str, Any]]) -> None:
    fields = MultiDict(
        (name, FileStorage(io.BytesIO(one[1]), one[0]) if isinstance(one, tuple) else one) for name, one in members
    )
    boundary, body = encode_multipart(fields)
    found = carried(read(body, f"multipart/form-data; boundary={boundary}"))
    for name in dict(members):
        wanted = [one for key, one in members if key == name]
        assert [(one.filename, one.content) if isinstance(one, Upload) else one for one in found[name]] == [
            *(one for one in wanted if isinstance(one, str)),
            *(one for one in wanted if isinstance(one, tuple)),
        ]


@given(damaged(SEEDS, WORDS))
def test_what_is_cut_at_its_boundaries_werkzeug_reads_alike(body: bytes) -> None:
    uploads = bounded(split_uploads, body, KIND)
    if uploads is None:
        return
    request = BodyInMemory(EnvironBuilder(method="POST", data=body, content_type=KIND).get_environ())
    parser = request.make_form_data_parser()
    parser.silent = False
    _, form, files = parser.parse(io.BytesIO(body), "multipart/form-data", len(body), {"boundary": "X"})
    assert not form
    assert {name: [(one.filename, one.content) for one in found] for name, found in uploads.items()} == {
        name: [(one.filename, one.read()) for one in found] for name, found in files.lists()
    }


@given(damaged((*SEEDS, b"a=1&b=%20+&a=2", b'{"value": 5}'), WORDS), KINDS)
def test_no_body_hurts_its_reader(body: bytes, kind: str) -> None:
    try:
        bounded(read, body, kind)
    except RequestError as error:
        assert str(error).isprintable()
    except HTTPException as error:
        assert 400 <= (error.code or 0) < 500


@given(st.dictionaries(TEXT.filter(bool), st.lists(TEXT, min_size=1, max_size=2)))
def test_a_form_of_text_is_read_as_it_was_written(members: dict[str, list[str]]) -> None:
    assert carried(read(urlencode(members, doseq=True).encode(), FORM)) == members
