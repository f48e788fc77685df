"""How the comparison with TorchServe sends, normalises and compares. What the servers answer is not tested here."""

import collections
import contextlib
import json
import socket
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.contract import __main__ as script
from bench.contract import golden
from bench.contract.accepted import ACCEPTED
from bench.contract.cases import TEXT, Case, Group, infer, manage, parts
from bench.contract.compare import Accepted, Difference, compare, differences, sort_out
from bench.contract.exchange import Answer, exchange
from bench.contract.groups import GROUPS
from bench.contract.normal import exposition, normalise
from bench.contract.targets import Target
from bench.servers import ServerFailed
from tests.archives import ARCHIVES, HANDLERS, write
from tests.server import ROOT

PORTS = {"inference": 18080, "management": 18081, "metrics": 18082}
PAGE = ROOT / "docs" / "torchserve.md"
FAKE = """
import http.server, json, pathlib, sys, threading
lines = dict(line.split("=", 1) for line in pathlib.Path("config.properties").read_text().splitlines())
pathlib.Path("key_file.json").write_text(json.dumps({"inference": {"key": "abc"}, "management": {"key": "def"}}))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "token": self.headers["Authorization"], "status": "READY", "pid": 7}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
ports = [int(lines[f"{role}_address"].rpartition(":")[2]) for role in ("inference", "management", "metrics")]
servers = [http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) for port in ports]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
"""


@contextlib.contextmanager
def answering(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """Give a port where each connection gets the next of `answers`, and the list of what was received."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                with listener.accept()[0] as connection:
                    received.append(connection.recv(65536))
                    while b"Content-Length" in received[-1] and received[-1].endswith(b"\r\n\r\n"):
                        received[-1] += connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], received
        thread.join()


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nX-One: 1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def answer(body: str = "", status: int = 200, **headers: str) -> Answer:
    return Answer(status, "OK", tuple((name.replace("_", "-"), value) for name, value in headers.items()), body.encode())


def test_a_case_sends_nothing_but_what_it_says() -> None:
    with answering(ok(b"x")) as (port, received):
        case = infer("c", "POST", "/p?key=<inference key>", b"5.0", TEXT, ("Authorization", "Bearer <inference key>"))
        found = exchange(case, {"inference": port}, {"inference": "abc"})
    head = f"POST /p?key=abc HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: text/plain\r\nAuthorization: Bearer abc\r\n"
    assert received == [f"{head}Content-Length: 3\r\n\r\n5.0".encode()]
    assert found == [Answer(200, "OK", (("X-One", "1"), ("Content-Length", "1")), b"x")]


def test_raw_bytes_are_sent_as_they_stand() -> None:
    with answering(b"HTTP/1.1 400 \r\nConnection: close\r\n\r\n") as (port, received):
        found = exchange(Case("c", "inference", "GET", "", raw=b"nonsense\r\n\r\n"), {"inference": port}, {})
    assert received == [b"nonsense\r\n\r\n"]
    assert found == [Answer(400, "", (("Connection", "close"),))]


def test_a_case_is_sent_until_its_answer_matches() -> None:
    with answering(ok(b"not yet"), ok(b"ready")) as (port, received):
        found = exchange(infer("c", "GET", "/", until="^ready$"), {"inference": port}, {})
    assert len(received) == 2 and found[0].body == b"ready"


def test_bodies_that_go_together_are_answered_in_a_fixed_order() -> None:
    with answering(ok(b"b"), ok(b"a")) as (port, received):
        found = exchange(infer("c", "POST", "/", together=(b"1", b"2"), stagger=0.2), {"inference": port}, {})
    assert [each[-1:] for each in received] == [b"1", b"2"]
    assert [each.body for each in found] == [b"a", b"b"]


def test_a_server_that_does_not_answer_is_an_answer_too() -> None:
    with answering(b"") as (port, _):
        closed = exchange(infer("c", "GET", "/"), {"inference": port}, {})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nothing = exchange(infer("c", "GET", "/", seconds=0.1), {"inference": silent.getsockname()[1]}, {})
    assert closed == [Answer(failure="the connection was closed without an answer")]
    assert nothing == [Answer(failure="no answer")]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a8098c1a-f86e-11da-bd1a-00112444be1e", "<uuid>"),
        ('"pid": 123,', '"pid": "<pid>",'),
        ('"id": "9000",\n  "startTime": "2026-01-01T00:00:00.000Z"', '"id": "<worker id>",\n  "startTime": "<time>"'),
        ('"id": "7", "model_name": "m"', '"id": "7", "model_name": "m"'),
        ('"memoryUsage": 12345', '"memoryUsage": "<bytes>"'),
        ("http://127.0.0.1:18081/x 180810", "http://127.0.0.1:<management port>/x 180810"),
        ("Bearer abcdefgh", "Bearer <inference key>"),
        ("/tmp/run/model-store/x.mar", "<folder>/model-store/x.mar"),
    ],
)
def test_what_changes_from_run_to_run_gets_a_name(before: str, after: str) -> None:
    found = normalise(answer(before, x_header=before), PORTS, {"inference": "abcdefgh"}, "/tmp/run")
    assert (found.body.decode(), found.headers) == (after, (("x-header", after),))


def test_a_length_is_compared_only_where_it_is_wrong() -> None:
    right = normalise(answer("five!", Content_Length="5"), PORTS, {}, "/tmp/run")
    wrong = normalise(answer("five!", Content_Length="6"), PORTS, {}, "/tmp/run")
    assert right.headers == (("Content-Length", "<length of the body>"),)
    assert wrong.headers == (("Content-Length", "6"),)


def test_bytes_that_are_no_text_stay_as_they_are() -> None:
    found = normalise(Answer(200, "OK", (), b"\xff18080"), PORTS, {}, "/tmp/run")
    assert found.body == b"\xff18080"


def test_metrics_are_sorted_and_keep_only_the_counts_of_predictions() -> None:
    page = (
        '# HELP b Second\n# TYPE b gauge\nb{x="2",} 1.5\nb{x="1",} 2.5\n'
        '# HELP a First\n# TYPE a counter\nts_inference_requests_total{model_name="m",} 2.0\n'
    )
    sorted_page = (
        '# HELP a First\n# TYPE a counter\nts_inference_requests_total{model_name="m",} 2.0\n'
        '# HELP b Second\n# TYPE b gauge\nb{x="1",} <value>\nb{x="2",} <value>\n'
    )
    assert exposition(page) == sorted_page
    kind = "text/plain; version=0.0.4; charset=utf-8"
    assert normalise(answer(page, content_type=kind), PORTS, {}, "/tmp/run").body.decode() == sorted_page
    assert normalise(answer(page, content_type="text/plain"), PORTS, {}, "/tmp/run").body.decode() == page


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (answer("x", A="1"), answer("x", a="1"), []),
        (answer("x"), answer("x", 404), [("status", "200", "404")]),
        (answer("x", a="1"), answer("x", b="2"), [("header a", "1", "nothing"), ("header b", "nothing", "2")]),
        (answer('{"a": [1, {"b": 2}]}'), answer('{"a": [1, {"b": 3}]}'), [("body a b", "2", "3")]),
        (answer('{"a": 1}'), answer('{"b": 1}'), [("body a", "1", "nothing"), ("body b", "nothing", "1")]),
        (answer('{"a": 1}'), answer('{"a":1}'), [("body layout", '{"a": 1}', '{"a":1}')]),
        (answer("[1]"), answer("[1, 2]"), [("body", "[1]", "[1, 2]")]),
        (answer("1"), answer("true"), [("body", "1", "true")]),
        (answer("x"), answer("y"), [("body", "x", "y")]),
        (answer("a\nb\n"), answer("b\nc\n"), [("body line", "a", "nothing"), ("body line", "nothing", "c")]),
        (answer("x"), Answer(failure="no answer"), [("answer", "200", "no answer")]),
        (Answer(failure="no answer"), Answer(failure="no answer"), []),
    ],
)
def test_every_part_that_differs_is_named(theirs: Answer, ours: Answer, expected: list[tuple[str, str, str]]) -> None:
    assert list(compare(theirs, ours)) == expected


def test_header_values_that_come_twice_are_compared_together() -> None:
    twice = Answer(200, "OK", (("A", "1"), ("a", "2")))
    assert list(compare(twice, answer(a="1"))) == [("header a", "1, 2", "1")]


def test_a_difference_is_accepted_only_where_all_of_it_is_meant() -> None:
    found = differences("g", {"c": [answer("x", a="1")], "d": [answer()]}, {"c": [answer("y", a="2")], "d": [answer()]})
    assert [str(each) for each in found] == [
        "g, c: header a: TorchServe '1', servekit '2'",
        "g, c: body: TorchServe 'x', servekit 'y'",
    ]
    meant = Accepted("what", "why", "header .*", ours="2")
    elsewhere = Accepted("what", "why", "body", case="other")
    left, covered = sort_out(found, (meant, elsewhere))
    assert left == [Difference("g", "c", "body", "x", "y")]
    other = Accepted("what", "why", "header .*", statuses="200 404")
    assert not other.covers(found[0])
    assert covered == {meant: [Difference("g", "c", "header a", "1", "2")], elsewhere: []}


def test_a_group_is_asked_in_a_folder_and_on_ports_of_its_own() -> None:
    token = ("Authorization", "Bearer <management key>")
    cases = (manage("with token", "GET", "/x", None, token), infer("without", "GET", "/y"))
    found = script.asked(Target("fake", lambda: [sys.executable, "-c", FAKE], {}), Group("g", cases, ("echo",), ("echo",)))
    bodies = [json.loads(found[case.name][0].body) for case in cases]
    assert bodies == [
        {"path": "/x", "token": "Bearer <management key>", "status": "READY", "pid": "<pid>"},
        {"path": "/y", "token": None, "status": "READY", "pid": "<pid>"},
    ]


def test_a_server_that_ends_at_once_is_named_with_its_last_words() -> None:
    target = Target("fake", lambda: [sys.executable, "-c", "raise SystemExit('no java')"], {})
    with pytest.raises(ServerFailed, match="it ended with 1: no java"):
        script.asked(target, GROUPS[0])


def test_there_are_cases_enough_and_each_has_a_name_of_its_own() -> None:
    assert sum(len(group.cases) for group in GROUPS) >= 150
    assert len({group.name for group in GROUPS}) == len(GROUPS)
    for group in GROUPS:
        names = collections.Counter(case.name for case in group.cases)
        assert not [name for name, count in names.items() if count > 1], group.name
        assert set(group.load) <= set(group.archives) <= set(ARCHIVES)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_what_is_recorded_belongs_to_the_cases_as_they_are(group: Group) -> None:
    recorded = golden.read(group)
    assert list(recorded) == [case.name for case in group.cases]
    assert [len(recorded[case.name]) for case in group.cases] == [len(case.together) or 1 for case in group.cases]


def test_no_file_of_answers_is_left_over() -> None:
    assert {path.stem for path in golden.FOLDER.glob("*.json")} == {group.name for group in GROUPS}


def test_the_page_has_a_row_for_each_accepted_difference_and_no_other() -> None:
    table = PAGE.read_text().partition("<!-- begin differences -->")[2].partition("<!-- end differences -->")[0]
    rows = [line for line in table.strip().splitlines() if line.startswith("|")][2:]
    assert rows == [f"| {each.what} | {each.reason} |" for each in ACCEPTED]


def test_archives_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, ARCHIVES)
    written = {path.relative_to(tmp_path / "first") for path in (tmp_path / "first").rglob("*") if path.is_file()}
    assert len(written) > len(ARCHIVES)
    for path in written:
        assert (tmp_path / "first" / path).read_bytes() == (tmp_path / "second" / path).read_bytes()


def test_an_archive_holds_what_its_manifest_names(tmp_path: Path) -> None:
    write(tmp_path, ARCHIVES)
    for path in tmp_path.glob("*.mar"):
        with zipfile.ZipFile(path) as archive:
            listed = set(archive.namelist())
            manifest = json.loads(archive.read("MAR-INF/MANIFEST.json")) if "MAR-INF/MANIFEST.json" in listed else {}
        model = manifest.get("model", {})
        assert {name for key, name in model.items() if key.endswith("File")} <= listed
        assert f"{ARCHIVES[path.stem].handler}.py" in listed
    with tarfile.open(tmp_path / "rolled.tar.gz") as rolled:
        assert set(rolled.getnames()) == {"rolled/version.py", "rolled/MAR-INF/MANIFEST.json"}
    assert (tmp_path / "unpacked" / "MAR-INF" / "MANIFEST.json").exists()


def test_no_handler_is_without_an_archive() -> None:
    used = {archive.handler for archive in ARCHIVES.values()} | {archive.network for archive in ARCHIVES.values()}
    assert {path.stem for path in HANDLERS.glob("*.py")} == used - {""}


def test_multipart_bodies_are_what_they_say() -> None:
    body = parts(("data", "a.txt", "text/plain", b"1"), ("text", "", "", b"2"))
    assert body.count(b"------contract") == 3 and body.endswith(b"--\r\n")
    assert b'name="data"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\n1\r\n' in body
    assert b'name="text"\r\n\r\n2\r\n' in body
