"""Notices that the event loop does not come back, which the loop itself cannot."""

import threading
import time
from collections.abc import Callable

CHECKS = 20  # of the clock within the time that a turn may take


class Watchdog:
    """Calls `on_stuck`, once and in a thread of its own, when a turn of the loop takes longer than `seconds`.

    It needs the interpreter: when the code that hangs does not let go of it, the guardian is what is left.
    """

    def __init__(self, seconds: float, on_stuck: Callable[[float], None]) -> None:
        self.turn_began: float | None = None  # written by the loop: None while it waits for clients, which is not stuck
        self._seconds = seconds
        self._on_stuck = on_stuck
        self._thread = threading.Thread(target=self._watch, name="servekit-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        """The identity of the thread that watches."""
        return self._thread.ident

    def _watch(self) -> None:
        while True:
            time.sleep(self._seconds / CHECKS)
            began = self.turn_began
            if began is not None and time.monotonic() - began > self._seconds:
                self._on_stuck(time.monotonic() - began)
                return
