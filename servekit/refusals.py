"""The log lines of requests that the application never saw: who was refused what, and under which id.

Whoever sends rubbish may send a lot of it: a second has a few such lines, and one that counts the others. They hold the
client's address and a sentence of ours, and nothing that a client has written.
"""

import logging
import time
from collections.abc import Callable
from http import HTTPStatus

from servekit.middleware import new_id
from servekit.record import Record, record

LINES_PER_SECOND = 10

log = logging.getLogger(__name__)


class Refusals:
    """Notes the refusals of one worker."""

    def __init__(
        self,
        observe: Callable[[int], None],
        observe_shed: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`observe` counts a status in the metrics, `observe_shed` why one was refused for want of room; `clock` gives
        seconds.
        """
        self._observe = observe
        self._observe_shed = observe_shed
        self._clock = clock
        self._began = -1.0  # the second that is counted
        self._lines = self._unsaid = 0

    def note(self, status: HTTPStatus, message: str, client: str) -> str:
        """Count a refusal and write its line, if the second has room for it; return the id of the request."""
        self._observe(status)
        if status is HTTPStatus.SERVICE_UNAVAILABLE:  # which has this one reason here
            self._observe_shed("bodies")
        self.flush()
        identity = new_id()
        if self._lines < LINES_PER_SECOND:
            self._lines += 1
            taken = Record()
            taken.identity = identity
            token = record.set(taken)
            log.info("%s was refused with %d: %s", client or "A client", status, message)
            record.reset(token)
        else:
            self._unsaid += 1
        return identity

    def flush(self) -> None:
        """Say how many lines were left out, once their second is over."""
        if (now := self._clock()) - self._began < 1.0:
            return
        if self._unsaid:
            log.info("%d more requests were refused within a second; servekit_requests_total counts them.", self._unsaid)
        self._began, self._lines, self._unsaid = now, 0, 0
