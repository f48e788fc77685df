"""`servekit grpc` in a process of its own, gRPC calls to it by name, and a server of V2's HTTP interface that tests script."""

import contextlib
import dataclasses
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc

from servekit.grpc.messages import message, methods
from servekit.grpc.service import HEALTH, INFERENCE
from tests.server import ROOT, environment, wait_for

SECONDS = 20.0  # no honest call takes as long


class Gateway:
    """A running `servekit grpc`, and what tests ask it."""

    def __init__(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        self.process = process
        self.port = port
        self.channel = grpc.insecure_channel(f"{host}:{port}")
        self._methods = {
            name: (service, kinds) for service in (INFERENCE, HEALTH) for name, *kinds in methods(service)
        }

    def stub(self, name: str, channel: grpc.Channel | None = None) -> Any:
        """Return gRPC's own callable for a method."""
        service, (request, answer, reads, writes) = self._methods[name]
        make = getattr(channel or self.channel, f"{'stream' if reads else 'unary'}_{'stream' if writes else 'unary'}")
        return make(f"/{service}/{name}", request.SerializeToString, answer.FromString)

    def call(self, name: str, fields: Any = None, **options: Any) -> Any:
        """Call a method with a request, or with one that has these fields; return its answer."""
        fields = {} if fields is None else fields
        request = self._methods[name][1][0](**fields) if isinstance(fields, dict) else fields
        return self.stub(name)(request, timeout=options.pop("timeout", SECONDS), **options)

    def refusal(self, name: str, fields: Any = None, **options: Any) -> tuple[grpc.StatusCode, str]:
        """Call a method that must fail; return its status and the words."""
        try:
            answer = self.call(name, fields, **options)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"{name} answered {answer}")


@contextlib.contextmanager
def serving(log: Path, server: str, *arguments: str, bind: str = "127.0.0.1:0", **variables: str) -> Iterator[Gateway]:
    """Run `servekit grpc` in front of `server` for the length of a `with` block."""
    command = [sys.executable, "-m", "servekit", "grpc", "--bind", bind, "--server", server, *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(**variables), stdout=output, stderr=subprocess.STDOUT
        )
    found = wait_for(lambda: re.search(r"gRPC  (\S+):(\d+)", log.read_text()), process)
    assert found, log.read_text()
    gateway = Gateway(process, found[1], int(found[2]))
    try:
        yield gateway
    finally:
        gateway.channel.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=40)


@dataclasses.dataclass
class Seen:
    """A request that the fake has received; `connection` numbers those that it came on."""

    connection: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


Answers = Callable[[Seen], tuple[int, dict[str, str], bytes] | None]


class Fake:
    """A server whose answers a test chooses: (status, header, body), or None to close the connection without one."""

    def __init__(self) -> None:
        self.answers: Answers = lambda seen: (404, {}, b"")
        self.seen: list[Seen] = []
        self.lost = threading.Event()  # set when a client closes a connection
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            connections = 0

            def setup(self) -> None:
                super().setup()
                Handler.connections += 1
                self.number = Handler.connections

            def finish(self) -> None:
                fake.lost.set()
                super().finish()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                seen = Seen(self.number, self.command, self.path, dict(self.headers.items()), body)
                fake.seen.append(seen)
                answer = fake.answers(seen)
                if answer is None:
                    self.close_connection = True
                    return
                status, headers, content = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *arguments: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


def request(model: str = "mnist", **fields: Any) -> Any:
    """Return a ModelInferRequest with one raw input of one float."""
    call = message("inference.ModelInferRequest")(model_name=model, **fields)
    call.inputs.add(name="value", datatype="FP32", shape=[1, 1])
    call.raw_input_contents.append(b"\0\0\x80\x3f")
    return call
