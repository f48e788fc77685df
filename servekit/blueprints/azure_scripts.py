"""What Azure ML's scoring scripts find of Flask, and of the packages of Azure that they import for it.

As azureml-inference-server-http does, this puts modules of its own in the place of `azureml.contrib.services`.
"""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import flask
from flask import Flask, Request, Response

from servekit.engines.azure import FAILED, JSON, use_web
from servekit.exchange import RawRequest, RawResponse


class AMLRequest(Request):
    """The class of requests that scripts import for its name; what they get is Flask's own."""


class AMLResponse(Response):
    """A response that a script makes: bytes, text or, with `json_str`, what is to be written as JSON."""

    def __init__(
        self,
        message: Any,
        status_code: int,
        response_headers: Mapping[str, str] | None = None,
        json_str: bool = False,
        run_function_failed: bool = False,
    ) -> None:
        """`response_headers` may name one several times, by values with commas; None as message is an empty object."""
        if json_str or message is None:
            super().__init__(json.dumps({} if message is None else message), status=status_code, mimetype=JSON)
        else:
            super().__init__(message, status=status_code)
        self.headers[FAILED] = str(run_function_failed)
        given = response_headers or {}
        if "Content-Type" in given:
            self.headers.remove("Content-Type")
        for name, value in given.items():
            for part in value.split(","):
                self.headers.add(name, part.strip())


class FlaskForScripts:
    """What scoring scripts find of Flask while they run, whichever thread that is."""

    def __init__(self) -> None:
        self._app = Flask("score", static_folder=None)  # without routes: it makes flask.request, g and jsonify work
        self.raw_marks = 0
        requests, responses = ModuleType("aml_request"), ModuleType("aml_response")
        vars(requests).update(AMLRequest=AMLRequest, rawhttp=self.rawhttp)
        vars(responses).update(AMLResponse=AMLResponse)
        self.modules: Mapping[str, ModuleType] = {
            f"{package}.{module.__name__}": module
            for package in ("azureml.contrib.services", "azureml_inference_server_http.api")
            for module in (requests, responses)
        }

    def rawhttp(self, function: Any) -> Any:
        """Mark `run` as one that takes Flask's request (a decorator of Azure's)."""
        self.raw_marks += 1
        return function

    @contextlib.contextmanager
    def request(self, made: RawRequest) -> Iterator[Request]:
        """Make `made` the current request of Flask."""
        with self._app.request_context(_environ(made)):
            yield flask.request._get_current_object()  # type: ignore[attr-defined]

    def response(self, value: Any) -> RawResponse | None:
        """Return what a response of Flask holds, a stream as a whole; None for anything else."""
        if not isinstance(value, flask.Response):
            return None
        value.direct_passthrough = False
        body = value.get_data()
        value.close()
        headers = {name: ", ".join(value.headers.getlist(name)) for name in value.headers.keys()}
        return RawResponse(body, headers.pop("Content-Type", ""), value.status_code, headers)


def _environ(made: RawRequest) -> dict[str, Any]:
    fields = {name.upper().replace("-", "_"): value for name, value in made.headers.items()}
    kind, _ = fields.pop("CONTENT_TYPE", ""), fields.pop("CONTENT_LENGTH", "")
    return {f"HTTP_{name}": value for name, value in fields.items()} | {
        "REQUEST_METHOD": made.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": made.path.encode().decode("latin-1"),
        "QUERY_STRING": made.query,
        "CONTENT_TYPE": kind,
        "CONTENT_LENGTH": str(len(made.body)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": io.BytesIO(made.body),
        "wsgi.url_scheme": "http",
        "wsgi.input_terminated": True,
    }


def install() -> None:
    """Let the scripts that this process loads find it."""
    use_web(FlaskForScripts())
