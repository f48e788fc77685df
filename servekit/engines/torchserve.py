"""The torchserve engine: the handler of a model archive, called as TorchServe calls it."""

import contextlib
import copy
import logging
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from servekit import ts
from servekit.errors import HandlerFailed, ModelLoadError
from servekit.imports import Modules
from servekit.tensors import Tensors
from servekit.ts.answers import to_bytes
from servekit.ts.blame import describe, traceback_of
from servekit.ts.context import Context
from servekit.ts.entry import Entry, envelope, find_entry
from servekit.ts.exchange import HandlerRequest, HandlerResponse, Parameter, processor_of, response_of, row_of
from servekit.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from servekit.ts.metrics.sinks import Sink, drop, using
from servekit.ts.place import working_in

__all__ = ["HandlerRequest", "HandlerResponse", "Parameter", "Sink", "TorchServeEngine", "to_bytes"]

log = logging.getLogger(__name__)

FAILED = "Prediction failed"
NO_LIST = "Invalid model predict output"
WRONG_LENGTH = "number of batch response mismatched"
UNWRITABLE = "Unsupported model output data type."
NO_MEMORY = "Out of resources"
DIED = "Worker died."
LOAD_TIME = "WorkerLoadTime"  # the metric of the milliseconds that a handler takes to load
MAX_TOLD = 20_000  # characters of what is told about a failure
# words of torch's CPU allocator, which has no exception of its own
_MEMORY_WORDS = ("CUDA", "can't allocate memory")


class TorchServeEngine:
    """Runs a handler: a batch of requests in, as many answers out, in the thread that calls it.

    Handlers are written for a process of their own, so one batch runs at a time; the modules of the archive, and while
    its code runs the working directory of the thread, are its own.
    """

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        on_failure: Callable[[str], None] = lambda text: None,
        sink: Sink = drop,
    ) -> None:
        """Load and initialise the handler of the archive that lies unpacked in `folder`.

        `options`: model_name, model_version, manifest (dict), handler, batch_size, model_config (dict),
        service_envelope, gpu_id, requirements (a folder of packages), trusted_only, decode_input, limit_max_image_pixels;
        all may be missing. `on_failure` is given the traceback of each batch that fails, `sink` the handler's metrics.
        Raise ModelLoadError with the error and the line of the archive that it comes from.
        """
        started = time.monotonic()
        self._folder = folder.resolve()
        self._on_failure, self._sink = on_failure, sink
        self._name = str(options.get("model_name") or folder.name)
        self._decode = bool(options.get("decode_input", True))
        self._imports_archive = not options.get("trusted_only")
        self._lock = threading.Lock()
        self.threads: int | None = None  # of torch's arithmetic; None: as many as torch takes by itself
        ts.install()
        packages = [Path(options["requirements"])] if options.get("requirements") and self._imports_archive else []
        self._modules = Modules([self._folder, *packages])
        weakref.finalize(self, self._modules.forget)
        self._context = _context(self._folder, options, sink)
        try:
            with self._running():
                self._entry = _load(self._modules, options, self._context)
        except BaseException as error:  # noqa: B036 - what is not the archive's own goes on in the next line
            _let_the_process_end(error, self._folder)
            self._modules.forget()
            raise ModelLoadError(f"The model {self._name} cannot be loaded: {describe(error, self._folder)}.") from error
        self.device = _device_of(self._entry)
        worker = f"W-9000-{self._context.model_name}_{options.get('model_version') or '1.0'}"  # as TorchServe names it
        sink(LOAD_TIME, "gauge", (time.monotonic() - started) * 1000, "Milliseconds", {"WorkerName": worker})

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return {"response": HandlerResponses (N,)} for {"request": HandlerRequests (N,)}.

        Raise HandlerFailed, for all of them, when the handler gives no answers; `on_failure` has been told why.
        """
        requests: Sequence[HandlerRequest] = tensors["request"].tolist()
        responses = np.empty(len(requests), dtype=object)
        with self._lock:
            responses[:] = self._answer(requests)
        return {"response": responses}

    def _answer(self, requests: Sequence[HandlerRequest]) -> list[HandlerResponse]:
        parts = self._begin(requests)
        data = [row_of(request, self._decode) for request in requests]
        started = time.perf_counter()
        try:
            with self._running():
                results = self._entry.handle(data, self._context)
        except BaseException as error:  # noqa: B036 - what is not the archive's own goes on in the next line
            _let_the_process_end(error, self._folder)
            self._tell(traceback_of(error, self._folder))
            raise _failure(error) from error
        self._check(results, len(requests))
        self._context.metrics.add_time("PredictionTime", round((time.perf_counter() - started) * 1000, 2))
        responses = [self._response(item, index) for index, item in enumerate(results)]
        for response, early in zip(responses, parts, strict=True):
            response.body = b"".join([*early, response.body])
        return responses

    def _begin(self, requests: Sequence[HandlerRequest]) -> list[list[bytes]]:
        """Tell the context of the requests; return lists for the parts of answers whose request takes none."""
        context = self._context
        for request in requests:
            request.begun = time.monotonic()
        context.request_ids = {index: request.id for index, request in enumerate(requests)}
        context.request_processor = [processor_of(request) for request in requests]
        context.metrics.set_request_ids(context.request_ids)
        parts: list[list[bytes]] = [[] for _ in requests]

        def send(index: int, part: bytes) -> None:
            request = requests[index]
            if request.send is None:
                parts[index].append(part)
                return
            request.early_headers = request.early_headers or list(context.get_response_headers(index).items())
            request.send(part)

        context.send_part = send
        return parts

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        torch = sys.modules.get("torch")
        if torch and self.threads and torch.get_num_threads() != self.threads:  # it counts for each thread apart
            torch.set_num_threads(self.threads)
        # A handler of the server's own imports torch by its plain name, which the archive may have, too.
        scope = self._modules.scope() if self._imports_archive else contextlib.nullcontext()
        with scope, using(self._sink), working_in(self._folder):
            yield

    def _check(self, results: Any, expected: int) -> None:
        if not isinstance(results, list):
            text = f"The handler must return a list, but it returned {type(results).__name__}."
            self._tell(text)
            raise HandlerFailed(NO_LIST, 503) from TypeError(text)
        if len(results) != expected:
            text = f"The handler returned {len(results)} answers to a batch of {expected} requests."
            self._tell(text)
            raise HandlerFailed(WRONG_LENGTH, 503) from ValueError(text)

    def _tell(self, text: str) -> None:
        """Say in the log, where no line of `text` looks like the log's own, and to the server why a request has failed.

        Of several that fail together nothing: each is tried alone next, and whichever fails then is told of. If none
        does, the error is, with its cause (see `Batcher`).
        """
        if len(self._context.request_ids or {}) > 1:
            return
        if len(text) > MAX_TOLD:  # an error's message may hold a whole request
            text = f"{text[:MAX_TOLD // 2]}\n...\n{text[-MAX_TOLD // 2:]}"
        lines = ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in text.splitlines()]
        ids = ", ".join((self._context.request_ids or {}).values())
        log.error("The handler of %s failed, request %s:\n%s", self._name, ids, "\n".join(f"  {line}" for line in lines))
        self._on_failure(text)

    def _response(self, item: Any, index: int) -> HandlerResponse:
        try:
            return response_of(item, self._context, index)
        except TypeError as error:
            self._tell(f"The handler's answer number {index} cannot be written: {error}.")
            raise HandlerFailed(UNWRITABLE, 503) from error
        except Exception as error:  # what the handler has set in the context
            self._tell(f"The handler's answer number {index} cannot be sent: {error}.")
            raise HandlerFailed(FAILED, 503) from error


def _context(folder: Path, options: Mapping[str, Any], sink: Sink) -> Context:
    name, version = options.get("model_name") or folder.name, options.get("model_version") or "1.0"
    manifest = copy.deepcopy(dict(options.get("manifest") or {}))
    described = {"modelName": name, "modelVersion": version}
    stated = {key: value for key, value in (manifest.get("model") or {}).items() if value is not None}
    manifest["model"] = stated | {key: value for key, value in described.items() if key not in stated}
    context = Context(
        name,
        str(folder),
        manifest,
        options.get("batch_size") or 1,
        options.get("gpu_id"),
        ts.__version__,
        bool(options.get("limit_max_image_pixels", True)),
        MetricsCacheYamlImpl(model_name=name, sink=sink),
        copy.deepcopy(dict(options.get("model_config") or {})),
    )
    if options.get("trusted_only"):
        context.system_properties["trusted_only"] = True
    return context


def _load(modules: Modules, options: Mapping[str, Any], context: Context) -> Entry:
    handler = options.get("handler") or context.manifest["model"].get("handler")
    if not handler:
        raise ValueError("the archive names no handler; give one when it is registered")
    entry = find_entry(modules, handler, bool(options.get("trusted_only")))
    if options.get("service_envelope"):
        entry.handle = envelope(options["service_envelope"], entry.handle)
    entry.initialize(context)
    return entry


def _device_of(entry: Entry) -> str:
    return "cuda" if str(getattr(entry.owner, "device", "cpu")).startswith("cuda") else "cpu"


def _let_the_process_end(error: BaseException, folder: Path) -> None:
    """Raise on what a signal has raised in the main thread: Gunicorn's handlers SystemExit, ctrl-C KeyboardInterrupt.

    The archive's own end nothing: one that left a worker by Gunicorn's loop would take the master's files with it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if isinstance(error, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise error  # in a worker of Gunicorn ctrl-C does something else
    if isinstance(error, SystemExit):
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        if not Path(file).is_relative_to(folder) and "_sitebuiltins" not in file:  # where exit() is
            raise error


def _failure(error: BaseException) -> HandlerFailed:
    """Return what the clients are told of an error that the handler raised."""
    if not isinstance(error, Exception):  # it would have ended a process of its own
        return HandlerFailed(DIED, 500)
    if isinstance(error, MemoryError) or any(word in str(error) for word in _MEMORY_WORDS):
        return HandlerFailed(NO_MEMORY, 507)
    for home in ("servekit.ts.utils.util", "ts.utils.util"):  # ours, and that of a TorchServe that is installed
        cls = getattr(sys.modules.get(home), "PredictionException", ())
        if isinstance(error, cls):
            code = getattr(error, "error_code", 500)
            is_status = isinstance(code, int) and 200 <= code <= 999
            return HandlerFailed(str(getattr(error, "message", FAILED)), code if is_status else 500)
    return HandlerFailed(FAILED, 503)
