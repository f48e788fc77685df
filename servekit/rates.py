"""How often a key may ask: windows of the package `limits`, counted for all workers together."""

import math
import time
from collections.abc import Callable
from functools import cache

from limits import RateLimitItem, parse
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from servekit.tally import Tally


class SharedStorage(Storage):
    """Where `limits` counts: in a `Tally`."""

    STORAGE_SCHEME = None

    def __init__(self, tally: Tally, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._tally, self._clock = tally, clock

    @property
    def base_exceptions(self) -> type[Exception]:
        """What counting may raise."""
        return OSError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Return the count of `key` with `amount` added; its window lasts `expiry` seconds."""
        return self._tally.add(key, amount, self._clock(), expiry)

    def get(self, key: str) -> int:
        """Return the count of `key`."""
        return self._tally.read(key, self._clock())[0]

    def get_expiry(self, key: str) -> float:
        """Return when the window of `key` ends, a time of the clock."""
        return self._tally.read(key, self._clock())[1]

    def check(self) -> bool:
        """Say that memory can be counted in."""
        return True

    def reset(self) -> int:
        """Forget all counts; return how many there were."""
        return self._tally.reset()

    def clear(self, key: str) -> None:
        """Forget the count of `key`."""
        self._tally.clear(key)


class Rates:
    """Counts the requests of each name against its rate."""

    def __init__(self, tally: Tally, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._windows = FixedWindowRateLimiter(SharedStorage(tally, clock))

    def wait_of(self, name: str, rate: str) -> int:
        """Count a request of `name`, whose `rate` is a text such as 100/second.

        Returns 0, or, if that is one too many, for how many seconds to wait before the next, at least 1.
        """
        item = _parsed(rate)
        if self._windows.hit(item, name):
            return 0
        return max(1, math.ceil(self._windows.get_window_stats(item, name).reset_time - self._clock()))


@cache
def _parsed(rate: str) -> RateLimitItem:
    return parse(rate)
