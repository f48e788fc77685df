"""Malformed requests, generated: the same ones for the same seed.

Where a request is ambiguous a second one, the canary, lies behind or within it: a server that runs it has been smuggled
it. Where a change at random may make two honest requests of one, there is no canary.
"""

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench import cases

CANARY_PATH = "/health/live"
CANARY = f"GET {CANARY_PATH}?smuggled HTTP/1.1\r\nHost: x\r\n\r\n".encode()
HOST = b"Host: x\r\n"
FORM, JSON, OCTETS = "application/x-www-form-urlencoded", "application/json", "application/octet-stream"
MULTIPART = "multipart/form-data; boundary=b"
DECLINED = (501, 505)  # of the protocol: what it does not speak


@dataclass(frozen=True)
class Case:
    """Bytes to send on a connection of their own, after which the client says that nothing more comes."""

    kind: str
    data: bytes


Chance = random.Random
Make = Callable[[Chance], bytes]


def _post(path: str, content_type: str, body: bytes, *fields: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n".encode()
    return head + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


# Framing: each of these must end its connection, and nothing behind it be run.

_SPACES = (b"", b" ", b"\t", b"\x0b", b"\x0c", b"\x00", b"\r", b"\xa0")
_LENGTHS = (b"+%d", b"-%d", b"0x%x", b"%d, %d", b"%d,", b"%d\x00", b"%d %d", b"%d.0", b"%de0", b"1_%d", b"\xd9\xa1%d", b'"%d"')
_CODINGS = (
    b"xchunked", b"chunked, identity", b"identity, chunked", b"chunked, chunked", b"gzip, chunked", b"chunked;q=1",
    b"\x0bchunked", b"chunked\x0b", b"'chunked'", b"chunk", b"identity", b"gzip", b"", b",chunked",
    b"chun\xe2\x84\xaaed", b"chunked,",
)  # fmt: skip
_NAMES = (
    b"Transfer-Encoding ", b"Transfer-Encoding\t", b" Transfer-Encoding", b"Transfer\x00-Encoding",
    b"Transfer-Encoding\x0b",
)  # fmt: skip
_SIZES = (
    b"0x5", b"5 ", b" 5", b"+5", b"-5", b"0_5", b"", b";a", b"g", b"10000000000000005", b"f" * 30, b"5\r", b"5\n", b"5;a\nb",
    b"5;a\rb", b"5\x00", b"5;\x00", b"5\r\r", b"\xef\xbc\x95", b"5,5",
)  # fmt: skip


def _with_length(chance: Chance) -> bytes:
    """A Content-Length that some read as a number and some do not."""
    form = chance.choice(_LENGTHS)
    size = len(CANARY)
    value = form % ((size,) * form.count(b"%d") or (size,)) if b"%" in form else form
    return b"POST /linear/predict HTTP/1.1\r\n" + HOST + b"Content-Length: " + value + b"\r\n\r\n" + CANARY


def _two_lengths(chance: Chance) -> bytes:
    """Content-Length twice, or with Transfer-Encoding."""
    first, second = chance.sample(range(len(CANARY) + 1), 2)
    second_field = chance.choice((b"Content-Length: %d\r\n" % second, b"Transfer-Encoding: chunked\r\n"))
    fields = [b"Content-Length: %d\r\n" % first, second_field]
    chance.shuffle(fields)
    padding = b"X-A: b\r\n" * chance.randrange(3)
    return b"POST /linear/predict HTTP/1.1\r\n" + HOST + padding.join(fields) + b"\r\n0\r\n\r\n" + CANARY


def _with_coding(chance: Chance) -> bytes:
    """A Transfer-Encoding that some take for chunked."""
    length = chance.choice((b"", b"Content-Length: 5\r\n"))
    if chance.random() < 0.7:
        field = b"Transfer-Encoding: " + chance.choice(_CODINGS)
    else:
        field = chance.choice(_NAMES) + b": chunked"
    return b"POST /linear/predict HTTP/1.1\r\n" + HOST + length + field + b"\r\n\r\n0\r\n\r\n" + CANARY


def _with_chunk(chance: Chance) -> bytes:
    """A chunk whose size or end some read and some do not."""
    good = b"5\r\nvalue\r\n" * chance.randrange(3)
    if chance.random() < 0.7:
        bad = chance.choice(_SIZES) + b"\r\nvalue\r\n0\r\n\r\n"
    else:
        bad = b"5\r\nvalue" + chance.choice((b"", b"\n", b"\rx", b"!\r\n", b"\r")) + b"0\r\n\r\n"
    return b"POST /linear/predict HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + good + bad + CANARY


def _with_control(chance: Chance) -> bytes:
    """A control byte somewhere in a head, which ends no line."""
    head = b"POST /linear/predict?a=b HTTP/1.1\r\nHost: x\r\nX-A: b\r\nContent-Length: %d\r\n\r\n" % len(CANARY)
    at = chance.randrange(len(head) - 4)
    byte = bytes([chance.choice([*range(9), *range(11, 13), *range(14, 32), 127])])
    return head[:at] + byte + head[at + chance.randrange(2) :] + CANARY


def _with_line(chance: Chance) -> bytes:
    """A request line that is none, or a Host that is none."""
    line = chance.choice((
        b"GET / HTTP/1.10", b"GET / HTTP/9.9", b"GET /", b"GET\t/ HTTP/1.1", b"G(T / HTTP/1.1", b"GET /#a HTTP/1.1",
        b"GET http://a@b/ HTTP/1.1", b"CONNECT x:80 HTTP/1.1", b"GET * HTTP/1.1", b"PRI * HTTP/2.0",
        b"GET /\x80 HTTP/1.1", b"\x16\x03\x01",
        b"GET / HTTP/1.1 HTTP/1.1", b"GET / HTTP/1.1\r\nHost: y", b"GET / HTTP/1.1\r\nHost: a b", b"GET / HTTP/1.1\r\n X-A: b",
        b"GET / HTTP/1.1\r\nX A: b", b"GET / HTTP/1.1\r\n: b", b"GET / HTTP/1.1\r\nX-A", b"GET / HTTP/1.1\nX-A: b",
    ))  # fmt: skip
    return line + b"\r\n" + HOST + b"\r\n" + CANARY


def _too_much(chance: Chance) -> bytes:
    """A head that is too long, in one of its parts."""
    size = chance.choice((5_000, 20_000, 70_000))
    return chance.choice((
        b"GET /" + b"a" * size, b"GET / HTTP/1.1\r\nX-A: " + b"a" * size, b"GET / HTTP/1.1\r\n" + b"a" * size + b": b",
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * size,
    ))  # fmt: skip


# Bodies: honest HTTP around something that is none of what it says.


def damaged(data: bytes, chance: Chance) -> bytes:
    """Return `data` with up to five places changed, lost, repeated, swapped or filled, or cut off."""
    if chance.random() < 0.15:
        return data[: chance.randrange(len(data) + 1)]
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.choice((1, 2, 4, 20)))
        filling = (b"", bytes([chance.randrange(256)]), data[at:to] * 3, data[at:to][::-1], chance.choice(_WORDS))
        data = data[:at] + chance.choice(filling) + data[to:]
    return data


_WORDS = (
    b"\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\r\n", b"--b", b"--b--", b'"', b"[[", b"]]", b"{", b"}",
    b",", b"null", b"NaN",
    b"-Infinity", b"1e999", b"1" * 400, b"-0", b"1e-400", b"\\ud800", b"\\u0000", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"9223372036854775808",
)  # fmt: skip
_VALUES: tuple[object, ...] = (
    None, True, [], {}, "", "5", "nan", 1e308, -1, 2**63, 2**64, 10**400, [[]], [None], [[1], [1, 2]], [{"b64": "!"}],
    {"b64": "QQ=="},
    "\x00", "\ud800", [1] * 2000, -0.0, 0.1, [[[[1]]]], {"a": {"a": {}}},
)  # fmt: skip
_V1 = {"instances": [5.0], "signature_name": "serving_default"}
_TENSOR = {"name": "value", "shape": [1, 1], "datatype": "FP32", "data": [5]}
_V2 = {"id": "1", "parameters": {"binary_data_output": True}, "inputs": [_TENSOR], "outputs": [{"name": "prediction"}]}
_JSON_ROUTES = (
    "/v1/models/linear:predict", "/v1/models/mnist:predict", "/v1/models/mnist:classify", "/v1/models/linear:regress",
    "/v1/models/linear/versions/1:predict", "/v2/models/linear/infer", "/v2/models/mnist/infer",
    "/v2/models/linear/versions/1/infer",
    "/v2/repository/index", "/v2/repository/models/none/load", "/v2/logging", "/v2/trace/setting", "/predictions/linear",
    "/predictions/mnist", "/linear/predict", "/predict", "/v2/systemsharedmemory/region/r/register",
)  # fmt: skip


def _twisted(value: object, chance: Chance) -> object:
    """Return a JSON value with one of its parts replaced, left out, or put in twice under another name."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(sorted(value))
        twisted = {**value, name: _twisted(value[name], chance)}
        what = chance.randrange(6)
        if what == 0:
            del twisted[name]
        elif what == 1:
            twisted[chance.choice(("x" * 300, "\x1b[31m", "instances", "shape", "__class__", ""))] = chance.choice(_VALUES)
        return twisted
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], _twisted(value[at], chance), *value[at + 1 :]]
    return chance.choice(_VALUES)


def _json(chance: Chance) -> bytes:
    """JSON of another shape than any contract's, or none."""
    value = _twisted(chance.choice((_V1, _V2, {"inputs": {"value": [5]}}, [5], 5)), chance)
    body = json.dumps(value).encode()
    what = chance.randrange(8)
    if what == 0:
        body = damaged(body, chance)
    elif what == 1:
        body = chance.choice((
            b"[" * 3000, b'{"a":' * 3000, b"[" * 50_000, b"[]" * 3000, b'{"a":1,"a":2}', b"\xff\xfe[\x001\x00]\x00",
        ))  # fmt: skip
    fields = [b"Content-Encoding: " + chance.choice((b"gzip", b"deflate", b"br", b"gzip, gzip"))] if what == 2 else []
    return _post(chance.choice(_JSON_ROUTES), chance.choice((JSON, JSON, JSON, FORM, "text/csv")), body, *fields)


def _binary(chance: Chance) -> bytes:
    """V2's binary tensors: sizes, shapes, types and the length of the head that do not agree."""
    shape = chance.choice(([1, 1], [2, 1], [2**31, 2**31], [-1], [0, 1], [1, 2**62], [], [1] * 70, [1, 1.5], "1"))
    kind = chance.choice(("FP32", "FP64", "INT64", "UINT8", "BYTES", "BOOL", "FP16", "BF16", "XX"))
    content = chance.choice((
        b"\0" * 4, b"", b"\0" * 8, struct.pack("<I", 2**32 - 1) + b"a", chance.randbytes(chance.randrange(64)),
    ))  # fmt: skip
    size = chance.choice((len(content), len(content) + 1, 0, -1, 2**63, "4", 4.0))
    tensor = {"name": "value", "shape": shape, "datatype": kind, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor] * chance.choice((1, 1, 1, 2))}).encode()
    length = chance.choice((len(head), len(head), len(head), len(head) - 1, len(head) + 99, 0, -1, 10**30))
    path = chance.choice(("/v2/models/linear/infer", "/v2/models/mnist/infer"))
    return _post(path, OCTETS, head + content, b"Inference-Header-Content-Length: %d" % length)


def _multipart(chance: Chance) -> bytes:
    """Multipart forms that are cut, doubled, misnamed or not ended."""
    name = chance.choice((
        'name="file"', 'name="files"', "name=file", 'name="value"', "name*=utf-8''file", 'name="../../x"', "",
    ))  # fmt: skip
    file = chance.choice((
        '; filename="a.png"', '; filename="../../etc/passwd"', "; filename*=utf-8''%ff", '; filename="a\\"b"', "",
    ))  # fmt: skip
    part = f"--b\r\nContent-Disposition: form-data; {name}{file}\r\nContent-Type: image/png\r\n\r\n".encode()
    content = chance.choice((_DIGIT, damaged(_DIGIT, chance), b"", b"\r" * 3000, b"--b" * 50, b"5"))
    body = (part + content + b"\r\n") * chance.choice((1, 1, 2, 40)) + b"--b--\r\n"
    if chance.random() < 0.4:
        body = damaged(body, chance)
    if chance.random() < 0.02:
        body = b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 1001 + b"--b--\r\n"
    kind = chance.choice((
        MULTIPART, MULTIPART, MULTIPART, "multipart/form-data", "multipart/form-data; boundary=",
        "multipart/mixed; boundary=b",
    ))  # fmt: skip
    paths = ("/predict", "/predict/batch", "/mnist/predict", "/mnist/predict/batch", "/predictions/mnist")
    return _post(chance.choice(paths), kind, body)


def _image(chance: Chance) -> bytes:
    """Pictures that are damaged, of another kind, or larger than they say."""
    data = chance.choice((
        _DIGIT, _DIGIT, _bomb(50_000, 50_000), _bomb(2**31 - 1, 1), b"GIF89a\1\0\1\0", b"\xff\xd8\xff\xe0", b"BM",
        b"II*\0",
    ))  # fmt: skip
    if data is _DIGIT:
        data = damaged(data, chance)
    kind = chance.choice(("image/png", "image/jpeg", OCTETS))
    return _post(chance.choice(("/predict", "/mnist/predict", "/predictions/mnist")), kind, data)


def _bomb(width: int, height: int) -> bytes:
    """Return a PNG that says it is huge and has hardly anything in it."""
    return _DIGIT[:16] + struct.pack(">II", width, height) + _DIGIT[24:]


def _table(chance: Chance) -> bytes:
    """npy, CSV and other content types that a route may read."""
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", 70)
    heads = (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9999999999), }",
        b"{'descr': [('a','<f4')], 'shape': (-1,), }",
        b"__import__('os').abort()", b"{'a':" * 14,
    )  # fmt: skip
    body = chance.choice((
        npy + chance.choice(heads).ljust(69)[:69] + b"\n" + bytes(4), b"5\n6\n", b"a,b\n1,2,3\n", b"5,,\n" * 500,
        b'"5\n',
    ))  # fmt: skip
    if chance.random() < 0.5:
        body = damaged(body, chance)
    kind = chance.choice((
        "application/x-npy", "text/csv", "application/jsonlines", "application/x-pickle",
        "text/plain; charset=utf-7", "",
    ))  # fmt: skip
    return _post(chance.choice(_JSON_ROUTES), kind, body)


def _form(chance: Chance) -> bytes:
    """Forms of text that hold no number."""
    value = chance.choice((
        b"", b"nan", b"1e999", b"%", b"%ff", b"1_0", b"0x5", b"5&value=6", b"\x00", b"5" * 5000, b"%00", b"&" * 2000,
    ))  # fmt: skip
    name = chance.choice((b"value", b"value", b"Value", b"value%00", b"", b"__proto__"))
    return _post(chance.choice(("/predict", "/linear/predict", "/predictions/linear")), FORM, name + b"=" + value)


def _archive(chance: Chance) -> bytes:
    """What asks for models, files and folders that are none of a client's business."""
    name = chance.choice((
        "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 3000, "linear%2f1", "*", "\\\\host\\share",
        "file:%2f%2f%2fetc",
    ))  # fmt: skip
    path = chance.choice((
        f"/v2/repository/models/{name}/load", f"/v2/repository/models/{name}/unload", f"/v1/models/{name}:predict",
        f"/v2/models/{name}/infer",
        f"/predictions/{name}", f"/docs/{name}", f"/models?url={name}", f"/v2/repository/{name}/index",
    ))  # fmt: skip
    zipped = b"PK\x03\x04" + chance.randbytes(40)
    body = chance.choice((
        b"{}", b'{"parameters":{"config":"{}","file:1/../../model.onnx":"AAAA"}}', zipped, b"\x1f\x8b" + zipped,
    ))  # fmt: skip
    return _post(path, chance.choice((JSON, OCTETS, "application/zip")), body)


_DIGIT = cases.DIGIT.read_bytes()
MAKERS: dict[str, tuple[Make, int]] = {
    "framing: length": (_with_length, 3),
    "framing: two lengths": (_two_lengths, 3),
    "framing: coding": (_with_coding, 4),
    "framing: chunk": (_with_chunk, 4),
    "framing: control byte": (_with_control, 6),
    "framing: line": (_with_line, 3),
    "framing: size": (_too_much, 1),
    "JSON": (_json, 8),
    "tensors": (_binary, 5),
    "multipart": (_multipart, 5),
    "images": (_image, 5),
    "tables": (_table, 4),
    "forms": (_form, 2),
    "archives": (_archive, 2),
}


def generate(count: int, seed: int) -> Iterator[Case]:
    """Give `count` malformed requests; each kind has its share."""
    chance = random.Random(seed)
    kinds = list(MAKERS)
    weights = [MAKERS[kind][1] for kind in kinds]
    for kind in chance.choices(kinds, weights, k=count):
        data = MAKERS[kind][0](chance)
        if not kind.startswith("framing") and chance.random() < 0.2:
            data = _cut_or_changed(data, chance)
        yield Case(kind, data or b"\r")


def _cut_or_changed(data: bytes, chance: Chance) -> bytes:
    """Damage a whole request, its head included."""
    return damaged(data[:400], chance) + data[400:]
