from collections.abc import Iterable
from uuid import UUID

import pytest

from servekit.config import Settings
from servekit.logs import request_id
from servekit.middleware import DEADLINE, RequestId, stack
from servekit.record import NO_REQUEST
from tests.server import Server


@pytest.mark.parametrize("given", ["abc", "A-1_b.2:3/4+5=", "x" * 128])
def test_a_sane_request_id_is_kept(server: Server, given: str) -> None:
    assert server.request("GET", "/health", headers={"X-Request-Id": given})[1]["X-Request-Id"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", 'a"b', "<a>", "a\tb", "caf\u00e9"])
def test_any_other_request_id_is_replaced(server: Server, given: str) -> None:
    made = server.request("GET", "/health", headers={"X-Request-Id": given})[1]["X-Request-Id"]
    assert UUID(made).version == 4 and str(UUID(made)) == made


def test_every_answer_has_an_id_of_its_own(server: Server) -> None:
    paths = ["/health", "/nothing", "/metrics", "/predict"]
    assert len({server.get(path)[1]["X-Request-Id"] for path in paths}) == len(paths)


def test_the_id_is_known_during_the_request_only() -> None:
    seen = []

    def app(environ: object, start_response: object) -> Iterable[bytes]:
        seen.append(request_id())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        RequestId(app)({"HTTP_X_REQUEST_ID": "mine"}, lambda *_: None)
    assert (seen, request_id()) == (["mine"], NO_REQUEST)


def test_the_stack_sets_the_deadline_inside_the_id() -> None:
    import time

    def app(environ: dict[str, object], start_response: object) -> Iterable[bytes]:
        assert request_id() == "mine"
        assert environ[DEADLINE] == pytest.approx(time.monotonic() + 7, abs=1)
        return [b"done"]

    app = stack(app, Settings(deadline_seconds=7.0))
    assert app({"HTTP_X_REQUEST_ID": "mine", "REQUEST_METHOD": "GET"}, lambda *_: None) == [b"done"]
