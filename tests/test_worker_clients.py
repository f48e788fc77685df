"""Slow, idle, greedy and vanishing clients cost a worker little and others nothing."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.raw import Client, PlainServer, plain
from tests.server import wait_for

pytestmark = pytest.mark.slow

GET = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /%s HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"
LIMIT = 100_000
PROMPT_SECONDS = 2.0  # for a good client while others misbehave; generous, for a busy machine
DEADLINE_SECONDS = 0.7
GIVEN_UP_SECONDS = 5.0  # by when a deadline of less than a second must have been noticed on a busy machine


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    """A server with short deadlines."""
    names = ("SERVEKIT_HEADER_SECONDS", "SERVEKIT_BODY_SECONDS", "SERVEKIT_WRITE_SECONDS")
    settings = {name: str(DEADLINE_SECONDS) for name in names} | {"SERVEKIT_MAX_BODY_BYTES": str(LIMIT)}
    with plain(tmp_path_factory.mktemp("strict"), "--keep-alive", "1", **settings) as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers
        assert "Traceback" not in server.text()


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainServer]:
    """A server that waits long for its clients."""
    with plain(tmp_path_factory.mktemp("patient"), "--keep-alive", "60") as server:
        workers = server.workers()
        yield server
        assert server.workers() == workers
        assert "Traceback" not in server.text()


@contextlib.contextmanager
def crowd(server: PlainServer, size: int, receive_buffer: int = 0) -> Iterator[list[Client]]:
    """Connect many clients for the length of a `with` block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.client(receive_buffer=receive_buffer)) for _ in range(size)]


def assert_prompt(server: PlainServer, requests: int = 5) -> None:
    """Ask on new connections and assert that each is answered promptly."""
    for number in range(requests):
        with server.client() as client:
            client.send(GET % b"echo" if number % 2 else HEAD % (b"echo", b"Content-Length: 5") + b"hello")
            assert client.answer(seconds=PROMPT_SECONDS).body == (b"" if number % 2 else b"hello")


def assert_given_up(client: Client, *statuses: int) -> None:
    """Assert that the server closes the connection in time, saying one of `statuses` or nothing."""
    answers = client.last_answers(GIVEN_UP_SECONDS)
    assert [answer.status for answer in answers] in [[], *([status] for status in statuses)]


def drip(client: Client, data: bytes, seconds: float = GIVEN_UP_SECONDS) -> None:
    """Send a byte a tenth of a second, until the server has had enough."""
    deadline = time.monotonic() + seconds
    for at in range(len(data)):
        client.send(data[at : at + 1])
        if client.read(0.1) or time.monotonic() > deadline:
            return


def test_a_head_has_a_deadline_however_steadily_it_drips(strict: PlainServer) -> None:
    with strict.client() as client:
        drip(client, GET % (b"canary?" + b"a" * 200))
        assert_given_up(client, 408)
    assert strict.marks() == []


def test_a_later_head_on_a_connection_has_a_deadline_too(strict: PlainServer) -> None:
    with strict.client() as client:
        assert client.ask(GET % b"a").status == 200
        drip(client, GET % (b"canary?" + b"a" * 200))
        assert_given_up(client, 408)
    assert strict.marks() == []


def test_a_client_that_says_nothing_is_not_waited_for(strict: PlainServer) -> None:
    with strict.client() as client:
        assert_given_up(client, 408)


@pytest.mark.parametrize("framing", [b"Content-Length: 200", CHUNKED])
def test_a_body_has_a_deadline_however_steadily_it_drips(strict: PlainServer, framing: bytes) -> None:
    with strict.client() as client:
        client.send(HEAD % (b"canary", framing))
        drip(client, b"c8\r\n" + b"a" * 196)
        answers = client.last_answers(GIVEN_UP_SECONDS)
    assert [answer.status for answer in answers] == [408]
    assert strict.marks() == []


def test_a_body_that_never_comes_has_a_deadline(strict: PlainServer) -> None:
    with strict.client() as client:
        client.send(HEAD % (b"canary", b"Content-Length: 5\r\nExpect: 100-continue"))
        assert [answer.status for answer in client.last_answers(GIVEN_UP_SECONDS)] == [100, 408]
    assert strict.marks() == []


def test_an_application_that_takes_longer_than_the_deadlines_is_waited_for(strict: PlainServer) -> None:
    with strict.client() as client:
        assert client.ask(GET % b"busy?ms=1500").status == 200
        assert client.ask(GET % b"a").status == 200


def test_a_client_that_does_not_read_its_answer_is_dropped(strict: PlainServer) -> None:
    before = strict.descriptors()
    strict.clear_marks()
    with strict.client(receive_buffer=4096) as client:
        client.send(GET % b"noted?pieces=400")
        assert wait_for(lambda: strict.marks() == ["closed"], seconds=GIVEN_UP_SECONDS)
        assert wait_for(lambda: strict.descriptors() <= before, seconds=GIVEN_UP_SECONDS)
        assert len(client.rest()) < 400 * 65536
    strict.clear_marks()


def test_an_idle_connection_is_closed_when_keep_alive_is_over(strict: PlainServer) -> None:
    with strict.client() as client:
        for _ in range(3):
            assert client.ask(GET % b"a").status == 200
            assert not client.is_closed(0.4)
        assert client.is_closed(GIVEN_UP_SECONDS)


def test_a_body_at_the_limit_is_served(strict: PlainServer) -> None:
    body = b"a" * LIMIT
    with strict.client() as client:
        for _ in range(2):
            client.send(HEAD % (b"a", b"Content-Length: %d" % LIMIT) + body)
            assert client.answer().json()["body"] == LIMIT
        assert client.ask(HEAD % (b"a", CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (LIMIT, body)).json()["body"] == LIMIT
        assert client.ask(GET % b"a").status == 200


@pytest.mark.parametrize("sent", [LIMIT + 1, LIMIT + 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_cut_and_the_client_reads_the_answer(
    strict: PlainServer, sent: int, chunked: bool
) -> None:
    strict.clear_marks()
    body = (b"a" * sent)[: -len(GET % b"canary")] + GET % b"canary"
    if chunked:
        request = HEAD % (b"a", CHUNKED) + b"%x\r\n%s\r\n0\r\n\r\n" % (sent, body)
    else:
        request = HEAD % (b"a", b"Content-Length: %d" % sent) + body
    with strict.client() as client:
        client.send(request + GET % b"canary")
        (answer,) = client.last_answers()
    seen = answer.json()
    assert seen["body"] == 0 and LIMIT < int(seen["environ"]["CONTENT_LENGTH"]) <= sent
    assert answer.headers["connection"] == "close"
    assert strict.marks() == []


def test_a_body_over_the_limit_is_answered_before_it_is_sent(strict: PlainServer) -> None:
    with strict.client() as client:
        client.send(HEAD % (b"a", b"Content-Length: %d" % 10**12) + b"a" * (LIMIT + 1))
        seen = client.answer(seconds=DEADLINE_SECONDS + 1).json()
        assert seen["body"] <= LIMIT + 1 and seen["environ"]["CONTENT_LENGTH"] == str(10**12)
        drip(client, b"a" * 200)
        assert_given_up(client)


def test_an_endless_chunked_body_is_cut_off(strict: PlainServer) -> None:
    with strict.client() as client:
        client.send(HEAD % (b"a", CHUNKED))
        deadline = time.monotonic() + 10
        while not client.data and not client.ended and time.monotonic() < deadline:
            client.send(b"4000\r\n%s\r\n" % (b"a" * 0x4000))
            client.read(0.001)
        (answer,) = client.last_answers(GIVEN_UP_SECONDS)
    assert int(answer.json()["environ"]["CONTENT_LENGTH"]) > LIMIT


def test_a_hundred_heads_that_drip_hold_up_nobody(patient: PlainServer) -> None:
    with crowd(patient, 100) as clients:
        for at in range(5):
            for client in clients:
                client.send((GET % b"echo")[at : at + 1])
            assert_prompt(patient, 2)
        for client in clients:
            client.send((GET % b"echo")[5:])
        for client in clients:
            assert client.answer().status == 200


def test_a_hundred_bodies_that_drip_hold_up_nobody(patient: PlainServer) -> None:
    with crowd(patient, 100) as clients:
        for client in clients:
            client.send(HEAD % (b"echo", b"Content-Length: 5"))
        for letter in (b"h", b"e", b"l", b"l", b"o"):
            assert_prompt(patient, 2)
            for client in clients:
                client.send(letter)
        for client in clients:
            assert client.answer().body == b"hello"


def test_a_hundred_slow_readers_hold_up_nobody(patient: PlainServer) -> None:
    with crowd(patient, 100, receive_buffer=4096) as clients:
        for client in clients:
            client.send(GET % b"noted?pieces=200")
        assert_prompt(patient, 20)
        for _ in range(3):
            for client in clients:
                client.socket.settimeout(PROMPT_SECONDS)
                assert client.socket.recv(1000)
            assert_prompt(patient, 2)


def processor_seconds(pid: int) -> float:
    """Return how long the process has computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_three_hundred_idle_connections_cost_no_processor_time(patient: PlainServer) -> None:
    (worker,) = patient.workers()
    with crowd(patient, 300) as clients:
        for client in clients:
            assert client.ask(GET % b"empty").status == 204
        before = processor_seconds(worker)
        time.sleep(2)
        assert processor_seconds(worker) - before < 0.1
        for client in clients[::50]:
            assert client.ask(GET % b"empty").status == 204


def says_nothing(client: Client) -> None:
    pass


def leaves_in_the_head(client: Client) -> None:
    client.send(GET[:15])


def leaves_in_the_body(client: Client) -> None:
    client.send(HEAD % (b"canary", b"Content-Length: 5000") + b"a" * 4999)


def leaves_in_a_chunk(client: Client) -> None:
    client.send(HEAD % (b"canary", CHUNKED) + b"5\r\nhel")


def leaves_when_told_to_go_on(client: Client) -> None:
    client.ask(HEAD % (b"canary", b"Content-Length: 5\r\nExpect: 100-continue"))


def leaves_while_the_application_works(client: Client) -> None:
    client.send(GET % b"busy?ms=20" + GET % b"noted?pieces=40")


def leaves_in_the_answer(client: Client) -> None:
    client.send(GET % b"noted?pieces=200")
    client.read(5)


def leaves_between_requests(client: Client) -> None:
    client.ask(GET % b"a")


def leaves_a_pipeline(client: Client) -> None:
    client.send(GET % b"noted?pieces=20" * 20)
    client.read(5)


LEAVERS = [
    says_nothing,
    leaves_in_the_head,
    leaves_in_the_body,
    leaves_in_a_chunk,
    leaves_when_told_to_go_on,
    leaves_while_the_application_works,
    leaves_in_the_answer,
    leaves_between_requests,
    leaves_a_pipeline,
]


@pytest.mark.parametrize("leave", LEAVERS)
def test_a_client_that_leaves_leaves_nothing_behind(patient: PlainServer, leave: Callable[[Client], None]) -> None:
    patient.clear_marks()
    assert wait_for(lambda: patient.descriptors() < 40, seconds=GIVEN_UP_SECONDS)  # other tests have left
    before = patient.descriptors()
    for ending in (Client.finish, Client.reset, lambda client: client.socket.close()):
        for _ in range(5):
            with patient.client() as client:
                leave(client)
                ending(client)
    assert_prompt(patient)
    assert wait_for(lambda: patient.descriptors() <= before, seconds=GIVEN_UP_SECONDS)
    assert "Traceback" not in patient.text()
    assert set(patient.marks()) <= {"closed"}


def test_over_the_number_of_connections_the_oldest_idle_one_makes_room(tmp_path: Path) -> None:
    with plain(tmp_path, "--worker-connections", "5", "--keep-alive", "60") as server, crowd(server, 5) as clients:
        for client in clients:
            assert client.ask(GET % b"empty").status == 204
        assert clients[0].ask(GET % b"empty").status == 204  # no longer the one that has been idle longest
        with server.client() as sixth:
            sixth.send(GET % b"empty")
            assert sixth.answer(seconds=PROMPT_SECONDS).status == 204
            assert clients[1].is_closed(PROMPT_SECONDS)
            for client in (clients[0], *clients[2:]):
                assert client.ask(GET % b"empty").status == 204
        assert_prompt(server)


def test_over_the_number_of_connections_one_that_is_answered_is_not_closed(tmp_path: Path) -> None:
    with plain(tmp_path, "--worker-connections", "2", "--keep-alive", "60") as server:
        with crowd(server, 2, receive_buffer=4096) as clients:
            for client in clients:
                client.send(GET % b"big?mb=2")
                assert client.read(5)
            with server.client() as third:
                third.send(GET % b"echo")
                for client in clients:
                    assert len(client.answer().body) == 2 * 2**20
                assert third.answer().status == 200


def test_clients_that_have_begun_to_send_make_room_too_when_none_is_idle(tmp_path: Path) -> None:
    with plain(tmp_path, "--worker-connections", "5", SERVEKIT_HEADER_SECONDS="60") as server, crowd(server, 5) as clients:
        for client in clients:
            client.send(b"G")
        time.sleep(0.2)
        assert_prompt(server)
        assert any(client.is_closed(PROMPT_SECONDS / 5) for client in clients)


def test_without_keep_alive_every_answer_says_that_it_is_the_last(tmp_path: Path) -> None:
    with plain(tmp_path, "--keep-alive", "0") as server, server.client() as client:
        assert client.ask(GET % b"empty").headers["connection"] == "close"
        assert client.is_closed()


def test_bodies_that_are_never_finished_are_bounded_and_leave_with_their_connections(tmp_path: Path) -> None:
    limit = 2**20
    with plain(tmp_path, SERVEKIT_MAX_BODY_BYTES=str(limit), SERVEKIT_BODY_SECONDS="60") as server:
        [worker] = server.workers()
        assert_prompt(server)
        before = resident(worker)
        unfinished = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % limit + b"x" * (limit - 1)
        for _ in range(100):
            with server.client() as client:
                client.send(unfinished)
        assert_prompt(server)
        assert resident(worker) - before < 40 * limit
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(server.client()) for _ in range(24)]
            for client in clients:
                client.send(unfinished)
            refused = [client for client in clients if client.read(1) and client.answer().status == 503]
            assert len(refused) >= 24 - 16 - 1
            assert_prompt(server)


def test_large_bodies_that_are_never_finished_do_not_shut_out_small_ones(tmp_path: Path) -> None:
    limit = 2**20
    with plain(tmp_path, SERVEKIT_MAX_BODY_BYTES=str(limit), SERVEKIT_BODY_SECONDS="60") as server:
        unfinished = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % limit + b"x" * (limit - 1)
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(server.client()).send(unfinished)
            time.sleep(0.5)
            with server.client() as small:
                small.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
                time.sleep(0.1)
                small.send(b"x" * 500)
                assert small.answer().status == 200


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
