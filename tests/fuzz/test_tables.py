"""CSV, JSON lines, .npy and compressed bodies: round trips, differentials with numpy and gzip, and no bytes do harm."""

import gzip
import io
import math
import zlib
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from servekit.codecs import scoring
from servekit.codecs.compression import deflate, inflate
from servekit.codecs.npy import dump_npy, load_npy, read_npy, write_npy
from servekit.codecs.tables import read_csv, read_json_lines, read_numbers, write_csv, write_json_lines
from servekit.errors import InvalidInput, RequestError
from servekit.signature import Signature
from servekit.spec import TensorSpec
from tests.fuzz.made import NUMBERS, bounded, damaged, requests, same
from tests.fuzz.test_contracts import SIGNATURES, require_fit

FLAT = Signature((TensorSpec("a", "float32", (-1,)), TensorSpec("b", "int8", (-1, 2))), (TensorSpec("y", "float32", (-1,)),))
ALL = (*SIGNATURES, FLAT)
CSV = (b"1,2,3\n4.5,-6,7e1\n", b'"1",2,"3"\r\n', b"a,b,c\n1,2,3\n", b"nan,inf\n-inf,0\n", b'x,"y\n",\xc3\xa9\n')
LINES = (b'{"a":1,"b":[2,3]}\n{"a":4,"b":[5,6]}\n', b"[1,2]\n\n[3]", b"[[[[1,2],[3,4]]]]\n")
TYPES = (*scoring.OFFERS, *scoring.IMAGES, scoring.NPZ, "application/json; charset=utf-8", "text/csv;charset=latin-1", "")
ARRAYS = st.sampled_from(NUMBERS).flatmap(
    lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(max_dims=3, max_side=3))
)
NPY = tuple(dump_npy(array) for array in (np.zeros((2, 2), np.float32), np.ones((1, 3), ">i2"), np.zeros((2, 3), order="F")))
NPY_WORDS = (
    b"(2**40,)",
    b"(-1,)",
    b"'O'",
    b"'|O'",
    b"'<f8'",
    b"'V8'",
    b"[('a', 'O')]",
    b"True",
    b"(1" + b",1" * 40 + b")",
    b"9" * 25,
    b"(" * 60,
)


@given(requests())
def test_tables_are_read_as_they_were_written(request: tuple[Signature, dict[str, Any]]) -> None:
    signature, tensors = request
    for read, write in ((read_csv, write_csv), (read_json_lines, write_json_lines)):
        found = read(write(tensors, signature), signature)
        assert all(same(found[name], array) for name, array in tensors.items()), write(tensors, signature)


@given(requests(dtypes=("float64",)))
def test_an_npy_holds_all_inputs_side_by_side(request: tuple[Signature, dict[str, Any]]) -> None:
    signature, tensors = request
    found = read_npy(write_npy(tensors, signature), signature)
    assert all(same(found[name], array) for name, array in tensors.items())


@given(damaged((*CSV, *LINES)), st.sampled_from(ALL), st.booleans())
def test_no_bytes_hurt_the_readers_of_tables(body: bytes, signature: Signature, has_header: bool) -> None:
    for read in (lambda: read_csv(body, signature, has_header), lambda: read_json_lines(body, signature)):
        try:
            tensors = bounded(read)
        except RequestError as error:
            assert str(error).isprintable()
            continue
        require_fit(tensors, signature)


@given(damaged(CSV[:2]))
def test_numbers_of_a_table_are_those_of_python(body: bytes) -> None:
    try:
        found = bounded(read_numbers, body)
    except RequestError:
        return
    text = body.removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n").replace("\r\n", "\n")
    if '"' not in text and "\r" not in text:
        assert [[float(field) for field in line.split(",")] for line in text.split("\n")] == found.tolist() or math.isnan(
            found.sum()
        )


@given(ARRAYS, st.booleans(), st.booleans())
def test_what_numpy_saves_is_loaded(array: NDArray[Any], is_fortran: bool, is_swapped: bool) -> None:
    array = np.asarray(array, order="F" if is_fortran else "C")
    array = array.astype(array.dtype.newbyteorder(">")) if is_swapped else array
    stream = io.BytesIO()
    np.save(stream, array)
    assert same(load_npy(stream.getvalue()), array)


@given(damaged(NPY, NPY_WORDS))
@example(b"\x93NUMPY\x01\x00\x05\x00((((1")
def test_what_is_loaded_numpy_loads_too(body: bytes) -> None:
    try:
        array = bounded(load_npy, body)
    except InvalidInput:
        return
    assert same(np.load(io.BytesIO(body), allow_pickle=False), array)
    for signature in ALL:
        try:
            require_fit(read_npy(body, signature), signature)
        except RequestError:
            pass


@given(
    damaged((*CSV, *LINES, *NPY, b'{"dataframe_split":{"columns":["a","b"],"data":[[1,2,3]]}}', b'{"inputs":[[1,2,3]]}')),
    st.data(),
)
def test_no_request_hurts_scoring(body: bytes, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TYPES) | st.text(max_size=10))
    signature = data.draw(st.sampled_from(ALL))
    try:
        require_fit(dict(bounded(lambda: scoring.read(body, kind, signature, data.draw(st.booleans()))).tensors), signature)
    except RequestError as error:
        assert str(error).isprintable()


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from((*scoring.OFFERS, "*/*", "text/*", ";q=0.5", ";q=0", ",", "q=nan"))).map("".join)
)
def test_no_accept_header_hurts(accept: str) -> None:
    try:
        assert scoring.choose(accept, scoring.JSON) in scoring.OFFERS
    except RequestError:
        pass


@given(requests(dtypes=("float32", "int64")), st.sampled_from(scoring.OFFERS), st.booleans())
def test_an_answer_can_be_sent_back(request: tuple[Signature, dict[str, Any]], media: str, is_wrapped: bool) -> None:
    signature, tensors = request
    body = scoring.write(tensors, signature, media, is_wrapped)
    if media == scoring.JSON and is_wrapped:
        body = body.replace(b'"predictions"', b'"instances"', 1)
    if media != scoring.NPY or len(signature.inputs) == 1:
        found = scoring.read(body, media, signature).tensors
        assert all(same(found[name], array) for name, array in tensors.items())


@given(
    st.binary(max_size=500), st.sampled_from(("gzip", "deflate", "x-gzip", " GZIP ", "identity", "")), st.integers(0, 600)
)
def test_what_is_compressed_inflates_within_its_limit(body: bytes, encoding: str, limit: int) -> None:
    sent = deflate(body, encoding.strip().lower()) if encoding.strip() not in ("", "identity") else body
    try:
        assert inflate(sent, encoding, limit) == body
        assert len(body) <= limit or sent is body
    except RequestError:
        assert len(body) > limit


@given(damaged((gzip.compress(b"hello" * 20, mtime=0), zlib.compress(bytes(10**7)), zlib.compress(b"")), most=2))
def test_no_bytes_hurt_the_inflater(body: bytes) -> None:
    for encoding in ("gzip", "deflate"):
        try:
            assert len(bounded(inflate, body, encoding, 1000)) <= 1000
        except RequestError:
            pass
