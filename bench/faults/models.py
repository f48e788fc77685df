"""Networks that misbehave when they are asked for one number, and are the linear regressor otherwise.

`model.json` names them like any network: "bench.faults.models:Hang". Their weights are those of models/linear.py.
"""

import ctypes
import os
import signal
import time

from torch import Tensor

from models.linear import LinearRegressor

TRIGGER = 666.0  # the value that sets them off
SECONDS = 600.0  # longer than any time-out
PIECE = 1 << 24  # bytes


class _Triggered(LinearRegressor):
    def forward(self, value: Tensor) -> Tensor:
        """Return the prediction for each value, and misbehave first if one of them is TRIGGER."""
        if bool((value == TRIGGER).any()):
            self.misbehave()
        return super().forward(value)

    def misbehave(self) -> None:
        """Do what the class is named after."""
        raise NotImplementedError


class Hang(_Triggered):
    """Does not come back, and lets other threads run meanwhile."""

    def misbehave(self) -> None:
        """Sleep."""
        time.sleep(SECONDS)


class HoldGil(_Triggered):
    """Does not come back, and no other thread of the process runs meanwhile."""

    def misbehave(self) -> None:
        """Wait in C for a lock that it has itself, without letting go of the interpreter; no signal ends that."""
        library, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)


class Exhaust(_Triggered):
    """Takes memory until there is none: until a MemoryError if the process has a limit (RLIMIT_AS)."""

    def misbehave(self) -> None:
        """Take memory in pieces."""
        taken = []
        while True:
            taken.append(bytearray(PIECE))


class Killed(_Triggered):
    """Ends as the kernel ends a process that has taken the memory of the machine: by SIGKILL, without a last word."""

    def misbehave(self) -> None:
        """End the process."""
        os.kill(os.getpid(), signal.SIGKILL)


class Crash(_Triggered):
    """Reads where no memory is: a segmentation fault."""

    def misbehave(self) -> None:
        """Read at address 0."""
        ctypes.string_at(0)
