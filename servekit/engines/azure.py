"""The azure engine: a scoring script with `init()` and `run()`, called as Azure ML's inference server calls it.

The server that it stands in for is azureml-inference-server-http 1.5.
"""

import contextlib
import ctypes
import inspect
import json
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np

from servekit.codecs import swagger
from servekit.codecs.values import require_shallow
from servekit.errors import InvalidInput, ModelLoadError
from servekit.exchange import RawRequest, RawResponse
from servekit.imports import Modules
from servekit.tensors import Tensors
from servekit.ts.blame import describe, traceback_of

JSON = "application/json"
FAILED = "x-ms-run-function-failed"  # the header that says whether the script is to blame
EXEC_MS = "x-ms-run-fn-exec-ms"
GRACE_SECONDS = 2.0  # for a script to notice that its time is over, before its worker ends with it
MAX_ARGUMENTS = 1000  # of a query
NETWORK = "servekit.engines.azure:AzureEngine"  # what the spec of a script's model names
SCHEMAS = "/schemas"  # a request with this path asks what the script says of itself

_FAILURE = "An unexpected error occurred in scoring script. Check the logs for more info."
_UNWRITABLE = "An unexpected internal error occurred. Check the logs for more info."
_NO_SCRIPT_FUNCTION = "the script does not define {name}(), which Azure ML calls"

log = logging.getLogger(__name__)
print_log = logging.getLogger("servekit.azure.print")


class Web(Protocol):
    """What scripts expect of Flask, which engines do not know; see `use_web`."""

    modules: Mapping[str, ModuleType]  # that scripts import, by name
    raw_marks: int  # how many functions have been decorated with `rawhttp`

    def request(self, made: RawRequest) -> contextlib.AbstractContextManager[Any]:
        """Make Flask's request the current one within a `with` block, which gets it."""

    def response(self, value: Any) -> RawResponse | None:
        """Return what a response of Flask holds, or None if `value` is no such thing."""


_web: Web | None = None


def use_web(web: Web) -> None:
    """Let the scripts of this process have what `web` gives them; done once, before one is loaded."""
    global _web
    _web = web


class AzureEngine:
    """Runs a scoring script, one request at a time, in the thread that calls it."""

    device = "cpu"

    def __init__(self, script: Path, options: Mapping[str, Any]) -> None:
        """Load `script` and call its `init()`.

        `options`: folders (where else its modules are looked for), scoring_timeout_ms (None: no limit but that of the
        worker), worker_timeout (seconds). Raise ModelLoadError with the error and the line of the script that it comes from.
        """
        if _web is None:
            raise ModelLoadError("Scoring scripts are served on the platform azure; set SERVEKIT_PLATFORM=azure.")
        self._web, self._script = _web, script.resolve()
        self._limit_ms: int | None = options.get("scoring_timeout_ms")
        self._seconds = None if self._limit_ms is None else self._limit_ms / 1000
        # After so many its worker is given up: the script has not noticed that its time is over.
        self.max_seconds = min(options["worker_timeout"], math.inf if self._seconds is None else self._seconds + GRACE_SECONDS)
        self.threads: int | None = None  # of torch's arithmetic; None: as many as torch takes by itself
        self.on_error: Callable[[], None] = _nothing  # called for each error of the script, which it answers by itself
        self._lock = threading.Lock()
        sys.modules.update(self._web.modules)
        own = self._script.parent
        others = [Path(folder) for folder in options.get("folders", ()) if Path(folder).resolve() != own]
        self._modules = Modules([own, *others])
        self._modules.builtins["print"] = _print_to_log
        weakref.finalize(self, self._modules.forget)
        try:
            with self._modules.scope():
                self._load()
        except BaseException as error:  # noqa: B036 - the next line raises on what is not the script's own
            _let_the_process_end(error)
            self._modules.forget()
            raise ModelLoadError(f"The scoring script {script} cannot be used: {describe(error, own)}.") from error

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return {"response": RawResponses (N,)} for {"request": RawRequests (N,)}."""
        responses = np.empty(len(tensors["request"]), dtype=object)
        with self._lock:
            for index, request in enumerate(tensors["request"].tolist()):
                responses[index] = self._describe() if request.path == SCHEMAS else self._answer(request)
        return {"response": responses}

    def _load(self) -> None:
        marks = self._web.raw_marks
        module = self._modules.load(self._script.stem)
        for name in ("init", "run"):
            if not callable(getattr(module, name, None)):
                raise AttributeError(_NO_SCRIPT_FUNCTION.format(name=name))
        # Azure's SDK may have put a driver before the script: its init() does more, its run() hands arguments on wrongly.
        driven = getattr(module, "driver_module", None)
        self._run = driven.run if isinstance(driven, ModuleType) and hasattr(driven, "run") else module.run
        self._schemas = _schemas_of(self._run)
        self._arguments, self._takes_headers = _arguments_of(self._run)
        self._is_raw = self._web.raw_marks > marks
        if self._is_raw and self._schemas.is_decorated:
            raise TypeError("run() cannot be decorated with both @rawhttp and @input_schema")
        module.init()

    def _answer(self, request: RawRequest) -> RawResponse:
        if not self._is_raw and request.method not in ("GET", "POST"):
            # A browser asks by OPTIONS whether it may send; who may is said in headers, where any are set.
            is_question = request.method == "OPTIONS"
            return RawResponse(b"", "text/html; charset=utf-8", headers={FAILED: "False"}) if is_question else message(
                405, "Method not allowed"
            )
        torch = sys.modules.get("torch")
        if torch and self.threads and torch.get_num_threads() != self.threads:  # it counts for each thread apart
            torch.set_num_threads(self.threads)
        with self._modules.scope(), self._web.request(request) as sent:
            try:
                arguments = self._arguments_from(request, sent)
            except _Refused as error:
                return message(error.status, str(error))
            return self._call(arguments)

    def _arguments_from(self, request: RawRequest, sent: Any) -> dict[str, Any]:
        first = self._arguments[0].name
        if self._is_raw:
            arguments: dict[str, Any] = {first: sent}
        elif self._schemas.is_decorated:
            arguments = _take(_object_of(request), self._arguments)
        elif request.method == "GET":
            arguments = {first: json.dumps(query_values(request.query))}
        else:
            try:
                arguments = {first: request.body.decode()}
            except UnicodeDecodeError:
                raise _Refused("Input cannot be decoded as UTF-8.") from None
        return arguments | ({"request_headers": dict(request.headers)} if self._takes_headers else {})

    def _call(self, arguments: dict[str, Any]) -> RawResponse:
        started = time.perf_counter()
        try:
            value = _within(self._seconds, lambda: self._run(**arguments))
            elapsed = (time.perf_counter() - started) * 1000
        except _TimeIsOver:
            log.error("The scoring script was stopped after %s ms.", self._limit_ms)
            return message(500, f"Scoring timeout after {self._limit_ms} ms", is_scripts=True)
        except BaseException as error:  # noqa: B036 - the next line raises on what is not the script's own
            _let_the_process_end(error)
            self._tell(error)
            return message(500, _FAILURE, is_scripts=True)
        try:
            made = self._web.response(value) or RawResponse(_json(value), JSON, headers={FAILED: "False"})
        except Exception as error:
            self._tell(error)
            return message(500, _UNWRITABLE)
        headers = dict(made.headers) | {EXEC_MS: f"{elapsed:.3f}"}
        if made.status >= 500:
            headers[FAILED] = "True"
        return RawResponse(made.body, made.content_type, made.status, headers)

    def _describe(self) -> RawResponse:
        """Return what the script says of itself, as JSON: the versions of Swagger that can, its input and its output."""
        schemas = self._schemas
        said = {"versions": schemas.versions, "input": schemas.input, "output": schemas.output}
        return RawResponse(json.dumps(said).encode(), JSON)

    def _tell(self, error: BaseException) -> None:
        """Say in the log, where no line looks like the log's own, why there is no answer."""
        self.on_error()
        text = traceback_of(error, self._script.parent)
        lines = ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in text.splitlines()]
        log.error("The scoring script failed:\n%s", "\n".join(f"  {line}" for line in lines))


def _nothing() -> None:
    pass


def message(status: int, text: str, is_scripts: bool = False) -> RawResponse:
    """Return an error as Azure ML's server writes it; `is_scripts`: the scoring script is to blame."""
    return RawResponse(json.dumps({"message": text}).encode(), JSON, status, {FAILED: str(is_scripts)})


def query_values(query: str) -> dict[str, Any]:
    """Return the arguments of a query, each as the JSON that it is or else as text; one that is sent twice is a list.

    Raises InvalidInput for too many, and for JSON that is nested too deep.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_ARGUMENTS)
    except ValueError:
        raise InvalidInput(f"The query has too many arguments; at most {MAX_ARGUMENTS} are read.") from None
    found: dict[str, list[Any]] = {}
    for name, text in pairs:
        require_shallow(text.encode(errors="replace"))
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


class _Refused(Exception):
    """A request that the script is not asked about; the message is for its client."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text, status)
        self.status = status

    def __str__(self) -> str:
        return str(self.args[0])


class _Schemas:
    """What the decorators of inference-schema say of `run`; the defaults are those of a function without them."""

    def __init__(self) -> None:
        self.is_decorated = False
        self.input: Mapping[str, Any] = {"type": "object", "example": {}}
        self.output: Mapping[str, Any] = {"type": "object", "example": {}}
        self.versions: tuple[str, ...] = swagger.VERSIONS


def _schemas_of(run: Callable[..., Any]) -> _Schemas:
    schemas, util = _Schemas(), sys.modules.get("inference_schema.schema_util")  # imported by the script, if it needs it
    if util is not None and util.is_schema_decorated(run):
        schemas.is_decorated = True
        schemas.input, schemas.output = util.get_input_schema(run), util.get_output_schema(run)
        supported = [version.removesuffix(".0") for version in util.get_supported_versions(run)]
        schemas.versions = tuple(version for version in swagger.VERSIONS if version in supported)
    return schemas


def _arguments_of(run: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """Return the parameters of `run`, and whether it takes the headers, too; raise TypeError for those it may not have."""
    parameters = list(inspect.signature(run).parameters.values())
    if any(each.kind not in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters):
        raise TypeError("run() cannot accept positional-only arguments, *args, or **kwargs")
    data = [each for each in parameters if each.name != "request_headers"]
    if not data:
        raise TypeError("run() needs to accept an argument for the input data")
    return data, len(data) < len(parameters)


def _object_of(request: RawRequest) -> Any:
    """Return the members that a decorated `run` is called with."""
    if request.method == "GET":
        return _checked(lambda: query_values(request.query))
    kind = request.content_type.partition(";")[0].strip().lower()
    if kind != JSON and not (kind.startswith("application/") and kind.endswith("+json")):
        raise _Refused("Expects Content-Type to be application/json", 415)
    if not request.body:
        raise _Refused("POST body is empty. Expecting a JSON dictionary.")
    _checked(lambda: require_shallow(request.body))
    try:
        value = json.loads(request.body)
    except json.JSONDecodeError as error:
        raise _Refused(f"POST body could not be decoded as JSON: {error}") from None
    except ValueError:  # bad UTF-8, or an integer of thousands of digits
        raise _Refused("POST body could not be decoded as JSON.") from None
    if not isinstance(value, dict):
        raise _Refused("POST body should be a JSON dictionary.")
    return value


def _checked(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except InvalidInput as error:
        raise _Refused(str(error)) from None


def _take(members: Mapping[str, Any], parameters: list[inspect.Parameter]) -> dict[str, Any]:
    missing = [each.name for each in parameters if each.name not in members and each.default is each.empty]
    if missing:
        raise _Refused(f"A value is not provided for the {missing[0]!r} parameter.")
    return {each.name: members.get(each.name, each.default) for each in parameters}


def _json(value: Any) -> bytes:
    return json.dumps({} if value is None else value).encode()


def _print_to_log(*objects: Any, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False) -> None:
    """Do what `print` does for scripts: what would go to the standard output goes to the log."""
    if file is None or file is sys.stdout:
        print_log.info("%s", (" " if sep is None else sep).join(map(str, objects)))
    else:
        print(*objects, sep=sep, end=end, file=file, flush=flush)


def _let_the_process_end(error: BaseException) -> None:
    """Raise on what a signal has raised in the main thread, where the sync worker runs requests and all workers load."""
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and isinstance(error, KeyboardInterrupt):
        raise error
    if is_main and isinstance(error, SystemExit):
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith(("gunicorn.", "servekit.")):
            raise error


class _TimeIsOver(BaseException):
    """Raised in a script that runs too long; no `except Exception` of its own holds it."""


def _within(seconds: float | None, run: Callable[[], Any]) -> Any:
    """Return what `run` returns, or raise _TimeIsOver where it is after `seconds`.

    A call into C code, such as a long sleep, ends first.
    """
    if seconds is None:
        return run()
    interrupt = _Interrupt()
    timer = threading.Timer(seconds, interrupt.send)
    timer.daemon = True
    timer.start()
    try:
        try:
            return run()
        finally:
            timer.cancel()
            interrupt.stop()
    finally:
        interrupt.clear()


class _Interrupt:
    """Raises _TimeIsOver in the thread that made it, unless that has finished; any thread may ask for it."""

    def __init__(self) -> None:
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._lock = threading.Lock()
        self._is_over = False

    def send(self) -> None:
        """Interrupt the thread."""
        with self._lock:
            if not self._is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(_TimeIsOver))

    def stop(self) -> None:
        """Interrupt it no more."""
        with self._lock:
            self._is_over = True

    def clear(self) -> None:
        """Take back an interrupt that has not come through."""
        ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)
