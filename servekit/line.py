"""Who may join those that wait for a model: a request that would wait too long is refused at once, not answered late.

How long a request would wait follows from the rows before it and from how fast they go. Past saturation a line is as
long as it may be, whatever its length, and all who are served have waited through all of it; so where a line had to
refuse somebody, that model's lines in all workers are kept short until a second has passed without that.
"""

import math
import time
from collections.abc import Callable, MutableSequence
from contextvars import ContextVar
from typing import TypeAlias

from servekit import metrics
from servekit.batcher import FULL, Backlog
from servekit.errors import Overloaded

SHARE = 0.5  # of the time to its deadline that a request may wait: what it takes after that is not known
SHORT_SECONDS = 0.25  # that the last of a line waits while somebody is being refused
CALM_SECONDS = 1.0  # without a refusal, until lines may grow again

_PASSES = 0.9  # how much of what is known of the speed is kept at each pass: it is that of the last ten or so


Cell: TypeAlias = "MutableSequence[float] | memoryview[float]"  # of one number


class Line:
    """The rows of one model that a worker has taken in and not yet answered."""

    def __init__(
        self,
        backlog: Backlog,
        fits: int,
        on_refusal: Callable[[str], None] = metrics.observe_shed,
        clock: Callable[[], float] = time.monotonic,
        on_repeat: Callable[[], None] = lambda: None,
    ) -> None:
        """A pass takes `fits` rows at most; `backlog` may be shared with other lines.

        `on_refusal` is told of each request that is refused: "rows" if too many wait, "deadline" if it would wait too
        long; `on_repeat` of each that is so without the model being asked.
        """
        self._backlog, self._fits, self._on_refusal, self._clock = backlog, fits, on_refusal, clock
        self._on_repeat = on_repeat
        self._rows = 0
        self._was_full = False  # at the last pass a whole pass more was waiting: the next shows how fast rows can go
        self._passed_at = 0.0
        self._seconds = self._passed = 0.0  # of the last passes and their rows; old ones count less
        self.refused_at: Cell = [-math.inf]  # the time; shared with its lines in other workers

    @property
    def seconds(self) -> float:
        """How long the rows that are there will take; 0 as long as that is not known."""
        return self._rows * self._seconds / self._passed if self._passed else 0.0

    def enter(self, rows: int, deadline: float) -> None:
        """Take in a request of `rows` rows; raise Overloaded if too many wait, or if it would wait for too long.

        `deadline` is a time of the monotonic clock. What comes into the pass that runs or the next one is not refused
        for its waiting unless it must miss its deadline: full passes are what makes a line go fast.
        """
        with self._backlog.lock:
            if not (reason := self._why_not(rows, deadline)):
                self._backlog.add(rows)
                self._rows += rows
                return
        self._on_refusal(reason)
        refused_by.set(self)
        error = Overloaded(FULL)
        error.retry_after = self.retry_after
        raise error

    def leave(self, rows: int) -> None:
        """Let a request of `rows` rows go, answered or not."""
        with self._backlog.lock:
            self._backlog.remove(rows)
            self._rows -= rows

    def refuses(self, deadline: float) -> bool:
        """Return True, and count it, if a request of one row is refused now."""
        with self._backlog.lock:
            reason = self._why_not(1, deadline)
        if reason:
            self._on_refusal(reason)
            self._on_repeat()
        return bool(reason)

    @property
    def retry_after(self) -> int:
        """The whole seconds after which a client that was refused should try again."""
        return max(1, math.ceil(self.seconds))

    def note_pass(self, rows: int) -> None:
        """Learn from a pass of `rows` rows, which has just ended, how fast rows go while there are enough of them."""
        now = self._clock()
        with self._backlog.lock:
            if self._was_full:
                self._seconds = _PASSES * self._seconds + now - self._passed_at
                self._passed = _PASSES * self._passed + rows
            else:
                self._seconds *= _PASSES  # a jam is forgotten while there is none: it may have been another's
            self._was_full, self._passed_at = self._rows - rows >= self._fits, now

    def _why_not(self, rows: int, deadline: float) -> str:
        if not self._backlog.has_room(rows):
            reason = "rows"
        elif crowded.get():
            reason = "deadline"
        elif not self._rows or self._is_in_time(rows, deadline):
            return ""
        else:
            reason = "deadline"
        self.refused_at[0] = self._clock()
        return reason

    def _is_in_time(self, rows: int, deadline: float) -> bool:
        now, wait = self._clock(), self.seconds
        left = deadline - now
        if left <= 0:
            return True  # to be told that it is late, which is another thing
        if wait > left:
            return False
        if self._rows + rows <= 2 * self._fits:
            return True
        limit = SHARE * left
        if now - self.refused_at[0] < CALM_SECONDS:
            limit = min(limit, SHORT_SECONDS)
        return wait <= limit


# The line that refused the request that runs, for whoever answers the next one like it; see servekit/shedding.py.
refused_by: ContextVar[Line | None] = ContextVar("refused_by", default=None)

# Whether the request that runs is one too many for its worker, whatever it wants to join.
crowded: ContextVar[bool] = ContextVar("crowded", default=False)
