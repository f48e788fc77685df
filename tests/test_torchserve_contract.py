"""servekit beside what TorchServe 0.12 was recorded to answer: every difference is one that docs/torchserve.md lists.

Each group of requests starts a server, so the small ones are left to `python -m bench.contract`, which asks them all.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from bench.contract import __main__ as script
from bench.contract import golden, targets
from bench.contract.accepted import ACCEPTED
from bench.contract.cases import Group
from bench.contract.compare import differences, sort_out
from bench.contract.exchange import Answer
from bench.contract.groups import GROUPS

MANY = 10  # requests that are worth a server of their own
OWN = {"batches", "context", "died", "queue", "stream", "too_slow"}  # few requests, for what no other group asks
ASKED = [group for group in GROUPS if len(group.cases) >= MANY or group.name in OWN]
SERVERS = 3  # at a time: most of what they do is to start

Answers = Mapping[str, Sequence[Answer]]


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Future[Answers]]]:
    """What servekit answers to each group of requests, each from a server of its own."""
    with ThreadPoolExecutor(SERVERS) as pool:
        yield {group.name: pool.submit(script.asked, targets.servekit(), group) for group in ASKED}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("group", ASKED, ids=lambda group: group.name)
def test_servekit_answers_as_torchserve_does(group: Group, answers: dict[str, Future[Answers]]) -> None:
    found = differences(group.name, golden.read(group), answers[group.name].result())
    left, _ = sort_out(found, ACCEPTED)
    assert not left, "\n".join(map(str, left))
