"""The Gunicorn worker class: one event loop that reads whole requests, runs each in a greenlet, and batches by turn.

A client that is slow to send or to read costs a buffer, never a thread. The heartbeat is the loop itself, so Gunicorn's
`timeout` replaces a worker that hangs; before that, the watchdog answers those who wait, or the guardian beside it.

The master process imports this module, so what starts threads or looks at the environment is imported after the fork.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from greenlet import getcurrent
from gunicorn.config import Config, PreRequest
from gunicorn.workers import base

from servekit.board import Board
from servekit.clients import Clients
from servekit.config import ARRIVED, CROWDED, Settings
from servekit.connection import ClientGone, Connection, Phase
from servekit.descriptors import Shortage, is_shortage, room_for
from servekit.gateway import Gateway, Response, refusal
from servekit.guardian import AN_ANSWER, NOTHING, SAY_WHERE, STUCK, THE_REST, Guardian
from servekit.hooks import refuse_unusable, worker_stops
from servekit.http1 import Limits, Refused, Request
from servekit.keys import JUDGES
from servekit.memory import return_freed_memory
from servekit.roster import say_why
from servekit.watchdog import Watchdog

TICK_SECONDS = 0.5  # between two looks at the clock, for deadlines and for the heartbeat
CLOSING_SECONDS = 2.0  # for a client to read the last answer
TURN_SECONDS = 0.25  # after which a turn takes up no more requests: the heartbeat and the passes are due
DEAF_SECONDS = 0.05  # after a turn this long, requests had arrived some time before they were read
ACCEPT_AT_ONCE = 64  # connections in one turn, so that those that are open are served, too
YIELD_SECONDS = 0.002  # a worker leaves a new connection to those that hold fewer for so long, then takes it
LEFT_OVER_SECONDS = 0.001  # what is found so soon after that has been there meanwhile
GARBAGE_OBJECTS = 10_000  # between two collections; a turn makes thousands of objects that reference counting frees
STUCK_SHARE = 0.9  # of Gunicorn's timeout: the watchdog answers before Gunicorn kills
LAST_WORDS_SECONDS = 1.0

FAILED = "The server failed; its log says why."


class Worker(base.Worker):
    """Serves a WSGI application from one event loop."""

    board: Board | None = None  # made in the master, so that all workers share it
    leaves = True  # it says itself when it takes no more requests; see servekit/hooks.py

    @classmethod
    def check_config(cls, cfg: Config, log: Any) -> None:
        """Refuse, in the master and before anything is served, what this worker does not do."""
        refuse_unusable(cfg)
        settings = Settings.from_environ(os.environ)
        most = settings.max_workers if settings.torchserve else 1
        # Sockets of their own are balanced by the kernel.
        cls.board = None if cfg.reuse_port else Board(max(most, cfg.workers))

    def load_wsgi(self) -> None:
        """Prepare the loop and load the application; Gunicorn calls this once signals are heard."""
        from servekit.batcher import use_runner
        from servekit.intake import Intake
        from servekit.metrics import observe_connections, observe_refusal, observe_shed
        from servekit.refusals import Refusals
        from servekit.turns import Turns

        return_freed_memory()
        settings, cfg = Settings.from_environ(os.environ), self.cfg
        patience = max(cfg.timeout - 2 * TICK_SECONDS, cfg.timeout / 2)
        self.stuck_seconds = STUCK_SHARE * patience if cfg.timeout else float("inf")
        faulthandler.enable(all_threads=False)  # a crash says where; so does what holds the interpreter, if it is asked
        faulthandler.register(SAY_WHERE, all_threads=False)
        self.guardian = Guardian()  # now: there are no threads yet
        self.guardian.start(self.sockets, (self.stuck_seconds + cfg.timeout) / 2)
        limits = Limits(
            cfg.limit_request_line, cfg.limit_request_fields, cfg.limit_request_field_size, settings.max_body_bytes
        )
        seconds = {
            Phase.IDLE: cfg.keepalive,
            Phase.HEAD: settings.header_seconds,
            Phase.BODY: settings.body_seconds,
            Phase.BUSY: float("inf"),
            Phase.WRITING: settings.write_seconds,
            Phase.CLOSING: CLOSING_SECONDS,
        }
        self.selector = selectors.DefaultSelector()
        self.gateway = Gateway(cfg)
        self.turns = Turns(self.wake)
        self.refusals, self.shortage = Refusals(observe_refusal, observe_shed), Shortage()
        self.intake = Intake(settings.deadline_seconds, self.start)
        turns, note = self.turns, self.refusals.note
        self.clients = Clients(self.selector, limits, seconds, self.arrive, note, turns.park, turns.resume, turns.abandon)
        # Gunicorn's configuration looks names up slowly, and these are needed for every request.
        self.pre_request, self.post_request = cfg.pre_request, cfg.post_request
        if self.pre_request is PreRequest.pre_request and self.log.loglevel > logging.DEBUG:
            self.pre_request = _nothing  # Gunicorn's own writes a line for debugging
        self.logs_access, self.keeps_alive = self.log.access_log_enabled, cfg.keepalive > 0
        self.observe_connections, self.observe_shed = observe_connections, observe_shed
        use_runner(self.turns)
        super().load_wsgi()
        self.clients.judges = getattr(self.wsgi, "extensions", {}).get(JUDGES, {})

    def wake(self) -> None:
        """Make the loop turn; called from any thread."""
        with contextlib.suppress(BlockingIOError):  # it is full of wake-ups already
            os.write(self.PIPE[1], b"1")

    def run(self) -> None:
        """Turn until told to stop, then answer what has been accepted."""
        os.register_at_fork(after_in_child=self._let_go)
        self.is_accepting = False
        self.accept_again_at = 0.0
        self.most_connections = room_for(self.cfg.worker_connections)
        if self.most_connections < self.cfg.worker_connections:
            words = "A worker has descriptors for %d connections, not for the %d of worker_connections; raise ulimit -n."
            self.log.warning(words, self.most_connections, self.cfg.worker_connections)
        if self.board:
            self.board.join(self.age)
        self.was_deaf = False  # the last turn was long
        self.left_over: list[tuple[selectors.SelectorKey, int]] = []  # events of the last turn that it had no time for
        self.next_tick = self.turn_began = time.monotonic()
        self.guardian.learn(self.sockets, refusal)
        self.watchdog = Watchdog(self.stuck_seconds, self.give_up)
        self.selector.register(self.PIPE[0], selectors.EVENT_READ, None)
        self._accept_again()
        if self.timeout:
            self.watchdog.start()
        # What is loaded stays; looking through it for garbage would stall the loop.
        gc.freeze()
        gc.set_threshold(GARBAGE_OBJECTS, 20, 50)
        while self.alive:
            self._turn()
        self._stop()
        end = time.monotonic() + self.cfg.graceful_timeout
        while self.clients and time.monotonic() < end:
            self._turn()

    # One turn.

    def _turn(self) -> None:
        self.watchdog.turn_began = None
        self.guardian.begin(0.0)
        before = time.monotonic()
        self.was_deaf = before - self.turn_began > DEAF_SECONDS
        # What is left over comes first, alone: the selector would give it again, and the list would only grow.
        events = self.left_over or self.selector.select(self._patience())
        self.watchdog.turn_began = self.turn_began = time.monotonic()
        self.guardian.begin(self.turn_began)
        self.left_over = self._attend(events)
        if self.turn_began >= self.next_tick:  # not before: what had arrived in time is read by now
            self._tick(self.turn_began)
        self.clients.advance_ready()
        self.intake.run()
        self.turns.turn(more_come=bool(self.intake))
        if self.alive and not self.is_accepting and self.turn_began >= self.accept_again_at:
            self._accept_again()

    def _attend(self, events: list[tuple[selectors.SelectorKey, int]]) -> list[tuple[selectors.SelectorKey, int]]:
        """Go on with the connections where something has happened; return those that the turn had no time for."""
        for number, (key, mask) in enumerate(events):
            client = key.data
            if type(client) is not Connection:
                self._be_woken() if client is None else self._accept(client)
                continue
            if mask & selectors.EVENT_WRITE and not client.is_gone:
                self.clients.attend(client, self.clients.on_writable)
                if client.phase is Phase.IDLE:  # all of its answer has been taken
                    self.guardian.note(client.sock.fileno(), NOTHING)
            if mask & selectors.EVENT_READ and not client.is_gone:
                self.clients.attend(client, self.clients.on_readable)
            if time.monotonic() - self.turn_began > TURN_SECONDS:
                return events[number + 1 :]
        return []

    def _be_woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)

    def _patience(self) -> float:
        """Return for how many seconds the loop may block."""
        if self.clients.has_work or self.turns.has_work or self.intake:
            return 0.0
        until = min(self.next_tick, self.turns.next_deadline)
        if self.alive and not self.is_accepting:
            until = min(until, self.accept_again_at)
        return max(0.0, until - time.monotonic())

    def _tick(self, now: float) -> None:
        self.next_tick = now + TICK_SECONDS
        self.notify()
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        self.clients.expire(now)
        self.observe_connections(len(self.clients))
        self.refusals.flush()
        if self.board and self.alive:
            self.board.note(len(self.clients), now)
        began, seconds = self.turns.long_pass
        if now - began > (self.stuck_seconds if seconds is None else seconds):
            self.give_up(now - began)

    # Connections come and go.

    def _accept_again(self) -> None:
        for listener in self.sockets:
            listener.setblocking(False)
            self.selector.register(listener, selectors.EVENT_READ, listener)
        self.is_accepting, self.accepting_since = True, time.monotonic()

    def _accept_no_more(self, seconds: float) -> None:
        """Leave new connections where they are for some time; others may take them."""
        self.accept_again_at = time.monotonic() + seconds
        if self.is_accepting:
            for listener in self.sockets:
                self.selector.unregister(listener)
            self.is_accepting = False

    def _accept(self, listener: Any) -> None:
        """Take new connections as long as no other worker holds fewer, and one that nobody else took."""
        if not self.is_accepting:
            return
        is_left_over = self.turn_began - self.accepting_since < LEFT_OVER_SECONDS
        for _ in range(ACCEPT_AT_ONCE):
            if self.board and not is_left_over and not self.board.is_least(len(self.clients), self.turn_began):
                self._accept_no_more(YIELD_SECONDS)
                return
            is_left_over = False
            if len(self.clients) >= self.most_connections and not self.clients.can_make_room():
                self._accept_no_more(TICK_SECONDS)
                return
            if not self._accept_one(listener):
                return

    def _accept_one(self, listener: Any) -> bool:
        """Take one new connection, or make room for it; return False if there is none, or none can be taken now."""
        try:
            sock, peer = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:  # no descriptors or no memory are left
            self.shortage.note(error)
            if is_shortage(error) and self._make_room():
                return True
            self._accept_no_more(TICK_SECONDS)
            return False
        sock.setblocking(False)
        if len(self.clients) >= self.most_connections:
            self._make_room()
        self.guardian.note(sock.fileno(), NOTHING)
        self.clients.add(sock, self.gateway.environ_of(peer, listener.getsockname()))
        if self.board and self.alive:
            self.board.note(len(self.clients), self.turn_began)
        return True

    def _make_room(self) -> bool:
        if made := self.clients.make_room():
            self.observe_shed("connections")
        return made

    def _let_go(self) -> None:
        """Close the listening sockets in a process that a model's code has forked: it would keep the port when we end."""
        for listener in self.sockets:
            listener.close()

    def _stop(self) -> None:
        """Take what waits in the accept queue, which this worker may be the last to see, and nothing after it."""
        if self.board:
            self.board.leave()
        self.clients.stop()
        for listener in self.sockets:
            for _ in range(self.cfg.backlog):
                if not self._accept_one(listener):
                    break
        self._accept_no_more(0.0)
        for listener in self.sockets:
            listener.close()
        worker_stops()  # not before: who connects after a change is not to meet what was

    # A request.

    def arrive(self, connection: Connection, request: Request) -> None:
        """Take a request that has been read."""
        self.guardian.note(connection.sock.fileno(), AN_ANSWER)
        self.intake.add(connection, request, connection.arrived() if self.was_deaf else self.turn_began)

    def start(self, connection: Connection, request: Request, arrived: float, is_crowded: bool) -> None:
        """Run `request` until it is answered or waits; `is_crowded`: there are too many before it."""
        self.turns.start(self._serve, connection, request, arrived, is_crowded)

    def _serve(self, connection: Connection, request: Request, arrived: float, is_crowded: bool) -> None:
        connection.request = getcurrent()
        try:
            self._answer(connection, request, arrived, is_crowded)
        except SystemExit:  # this process ends, and its guardian answers
            raise
        except BaseException:  # a connection without a request that answers it would stay for ever
            self.clients.drop(connection)
            raise
        if not connection.out and connection.phase is Phase.IDLE:
            self.guardian.note(connection.sock.fileno(), NOTHING)

    def _answer(self, connection: Connection, request: Request, arrived: float, is_crowded: bool) -> None:
        def send(data: bytes, is_last: bool) -> None:
            self.guardian.note(connection.sock.fileno(), THE_REST)
            self.clients.send(connection, data, is_last)

        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self.wake()
        try:
            environ = self.gateway.environ(connection.environ, request)
        except Refused as error:
            self.clients.refuse(connection, error.status, error.message)
            return
        environ[ARRIVED] = arrived
        if is_crowded:
            environ[CROWDED] = True
        response = Response(request, request.keep_alive and self.alive and self.keeps_alive, send)
        try:
            self.pre_request(self, request)
            response.run(self.wsgi, environ)
        except ClientGone:
            self.clients.drop(connection)
        except Exception:
            self.log.exception("Error handling request %s %s", request.method, request.path)
            self._fail(connection, request, response)
        self._log(request, environ, response, arrived)
        self.clients.finished(connection, response.keep_alive)

    def _fail(self, connection: Connection, request: Request, response: Response) -> None:
        """Answer 500 for an application that raised, or break off the answer that it has begun."""
        response.keep_alive = False
        if response.has_begun:
            self.clients.drop(connection)
            return
        response.status = f"{HTTPStatus.INTERNAL_SERVER_ERROR.value} {HTTPStatus.INTERNAL_SERVER_ERROR.phrase}"
        with contextlib.suppress(ClientGone):
            port = connection.environ["SERVER_PORT"]
            connection.write(refusal(HTTPStatus.INTERNAL_SERVER_ERROR, FAILED, port, request.method))

    def _log(self, request: Request, environ: dict[str, Any], response: Response, arrived: float) -> None:
        if self.logs_access:
            self.log.access(response, request, environ, timedelta(seconds=time.monotonic() - arrived))
        try:
            self.post_request(self, request, environ, response)
        except Exception:
            self.log.exception("Exception in post_request hook")

    # When nothing comes back.

    def give_up(self, seconds: float) -> None:
        """Answer everyone who waits, say where the code hangs, and end this process: Gunicorn starts another.

        Called in the watchdog's thread while the loop hangs, or in the loop while a pass beside it does.
        """
        try:
            say_why("stuck")
            for connection in self.clients.waiting():
                with contextlib.suppress(OSError):
                    connection.sock.send(refusal(HTTPStatus.GATEWAY_TIMEOUT, STUCK, connection.environ["SERVER_PORT"]))
                    connection.sock.shutdown(socket.SHUT_RDWR)
            stacks = [
                "".join(traceback.format_stack(frame))
                for thread, frame in sys._current_frames().items()
                if thread != self.watchdog.thread_id
            ]
            where = "\n".join(stacks)
            words = f"Nothing has come back for {seconds:.1f} s; this worker ends. It was here:\n{where}"

            def speak() -> None:
                self.turns.blame(words)
                self.log.critical("%s", words)

            writer = threading.Thread(target=speak, daemon=True)  # what hangs may hold the lock of the log
            writer.start()
            writer.join(LAST_WORDS_SECONDS)
        finally:
            os._exit(1)


def _nothing(worker: Worker, request: Request) -> None:
    pass
