"""Answers for a worker that has died: a process beside it that shares its open connections, and nothing else.

A segmentation fault, the kernel that needs memory, or code that does not let go of the interpreter leave a worker no last
word. On Linux a process can share its table of open files with another and keep its memory to itself (CLONE_FILES of
clone(2)): what the worker has accepted stays open until the guardian has answered.
"""

import contextlib
import gc
import json
import logging
import mmap
import os
import platform
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NoReturn

from servekit.roster import say_why
from servekit.watchdog import CHECKS

TEXT_BYTES = 1 << 14  # of the answers, for all ports
MOST_DESCRIPTORS = 1 << 16
LAST_WORDS_SECONDS = 0.2
SAY_WHERE = signal.SIGXCPU  # makes faulthandler, which needs no interpreter, print the stack
LONGEST_SLEEP_SECONDS = 60.0

# What the client of a connection waits for.
NOTHING, AN_ANSWER, THE_REST = range(3)

GONE = "The worker that had this request has ended; try again."
STUCK = "The server did not come to an answer; try again later."

_CLONE_FILES = 0x400  # linux/sched.h
_CLONE = {"x86_64": 56, "aarch64": 220}  # the number of the system call
_BUSY = b" 503 Service Unavailable\r\n"  # of contracts that say it so
_DATE = re.compile(rb"(?<=\r\nDate: )[^\r]*")

log = logging.getLogger("servekit")

Refusal = Callable[[HTTPStatus, str, str], bytes]  # of a status and a sentence, as a port says them


class Guardian:
    """Made in a worker before it has threads. Without `start`, or where that cannot be, it guards nothing."""

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, 8 + TEXT_BYTES + MOST_DESCRIPTORS))
        self._turn = memory[:8].cast("d")
        self._text = memory[8 : 8 + TEXT_BYTES]
        self._waits_for = memory[8 + TEXT_BYTES :]

    def start(self, listeners: Sequence[Any], seconds: float) -> bool:
        """Begin to guard this process; return False if that is not possible here.

        A turn that takes longer than `seconds` ends it. `listeners` are the sockets whose clients are answered.
        """
        names = [listener.getsockname() for listener in listeners]
        worker = os.getpid()
        try:
            watched = os.pidfd_open(worker)
            child = _clone()
        except (AttributeError, ImportError, OSError):  # not Linux, an old one, or one that forbids it
            return False
        if child == 0:
            self._guard(worker, watched, names, seconds)
        return child > 0

    def learn(self, listeners: Sequence[Any], refusal: Refusal) -> None:
        """Note what is to be answered on each of the server's ports: its contract has a form for errors."""
        said = {}
        for port in {port_of(listener.getsockname()) for listener in listeners}:
            gone = refusal(HTTPStatus.SERVICE_UNAVAILABLE, GONE, port).replace(_BUSY, _BUSY + b"Retry-After: 1\r\n", 1)
            said[port] = [gone.decode(), refusal(HTTPStatus.GATEWAY_TIMEOUT, STUCK, port).decode()]
        text = json.dumps(said).encode()
        if len(text) <= TEXT_BYTES:
            self._text[: len(text)] = text

    def begin(self, turn: float) -> None:
        """Note when a turn of the loop has begun; 0 while it waits for clients."""
        self._turn[0] = turn

    def note(self, descriptor: int, what: int) -> None:
        """Note what the client of an open connection waits for now."""
        if 0 <= descriptor < MOST_DESCRIPTORS:
            self._waits_for[descriptor] = what

    # In the process beside the worker. It has the worker's descriptors: whatever it closes is closed there, too.

    def _guard(self, worker: int, watched: int, names: Sequence[Any], seconds: float) -> NoReturn:
        try:
            gc.disable()  # what is freed may be closed
            for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV, signal.SIGBUS}:
                with contextlib.suppress(OSError, ValueError):  # those of the system's library
                    signal.signal(number, signal.SIG_IGN)  # it ends with its worker
            is_stuck = self._watch(watched, seconds)
            answered = self._answer_all(names, is_stuck)
            # Not before: a log that takes no line at once must not come before the clients.
            _tell(worker, seconds, is_stuck, answered)
        finally:
            os._exit(0)

    def _watch(self, watched: int, seconds: float) -> bool:
        """Return once the worker has ended: True if it had to be ended here.

        To be asked where it is can make it come back, for a signal ends many a system call: then it goes on.
        """
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        is_stuck = False
        while not poll.poll(min(seconds / CHECKS, LONGEST_SLEEP_SECONDS) * 1000):
            began = self._turn[0]
            if not is_stuck and began and time.monotonic() - began > seconds:
                with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                    signal.pidfd_send_signal(watched, SAY_WHERE)
                    poll.poll(LAST_WORDS_SECONDS * 1000)
                    if self._turn[0] == began:
                        is_stuck = True
                        say_why("stuck")
                        signal.pidfd_send_signal(watched, signal.SIGKILL)
        return is_stuck

    def _answer_all(self, names: Sequence[Any], is_stuck: bool) -> int:
        """Answer who waits, and close all connections; return how many were answered."""
        text = bytes(self._text).rstrip(b"\0")
        said: Mapping[str, Sequence[str]] = json.loads(text) if text else {}
        answered = 0
        for sock in _connections(names):
            waits_for = self._waits_for[sock.fileno()]
            # One that has sent what the worker had not read waits, too; what comes amid an answer would be read as its rest.
            if waits_for == AN_ANSWER or waits_for == NOTHING and _discard(sock):
                answered += _answer(sock, said[port_of(sock.getsockname())][is_stuck].encode())
            with contextlib.suppress(OSError):  # now: who sends later, and before this process ends, would lose it
                sock.shutdown(socket.SHUT_WR if waits_for == AN_ANSWER else socket.SHUT_RDWR)
        return answered


def port_of(name: Any) -> str:
    """Return the SERVER_PORT of a socket's own address."""
    return str(name[1]) if isinstance(name, tuple) else "80"


def _tell(worker: int, seconds: float, is_stuck: bool, answered: int) -> None:
    """Say in the log what became of the worker and of who waited for it."""
    if is_stuck:
        log.critical("Worker %s has not come back for %.1f s and holds the interpreter; it was ended.", worker, seconds)
    if answered:
        status = HTTPStatus.GATEWAY_TIMEOUT if is_stuck else HTTPStatus.SERVICE_UNAVAILABLE
        log.error("Worker %s has died; %d requests that it held were answered %d.", worker, answered, status)


def _clone() -> int:
    """Fork, but share the table of open files; return 0 in the child, whom no wait for children finds."""
    import ctypes

    number = _CLONE.get(platform.machine())
    if number is None:
        raise OSError("unknown architecture")
    child = int(ctypes.PyDLL(None).syscall(number, _CLONE_FILES, 0, 0, 0, 0))  # without letting go of the interpreter
    if child < 0:
        raise OSError("clone")
    return child


def _connections(names: Sequence[Any]) -> Iterator[socket.socket]:
    """Give the open connections of clients to addresses; the sockets are not to be closed."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            descriptor = int(entry)
            if descriptor < MOST_DESCRIPTORS and os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                sock = socket.socket(fileno=descriptor)
                try:
                    sock.getpeername()  # a listener has none
                    if any(_is_at(sock.getsockname(), name) for name in names):
                        yield sock
                finally:
                    sock.detach()


def _is_at(own: Any, name: Any) -> bool:
    """Return whether a connection's own address is one that a listener at `name` takes."""
    if not isinstance(own, tuple) or not isinstance(name, tuple):
        return bool(own == name)
    return own[1] == name[1] and (own[0] == name[0] or name[0] in ("0.0.0.0", "::"))


def _discard(sock: socket.socket) -> int:
    """Throw away what has arrived; return how many bytes it was."""
    count = 0
    with contextlib.suppress(OSError):
        while data := sock.recv(1 << 16, socket.MSG_DONTWAIT):
            count += len(data)
    return count


def _answer(sock: socket.socket, answer: bytes) -> bool:
    """Send a whole answer, the last one; return False if the client has gone."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()
    with contextlib.suppress(OSError):
        _discard(sock)
        sock.send(_DATE.sub(date, answer), socket.MSG_DONTWAIT)
        return True
    return False
