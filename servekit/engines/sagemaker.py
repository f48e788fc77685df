"""The sagemaker engine: the functions of a model's `inference.py`, called as SageMaker's PyTorch toolkit calls them.

`model_fn`, `input_fn`, `predict_fn` and `output_fn`, or `transform_fn` in the place of the last three; each that is
missing is the toolkit's default. Unlike the toolkit's, the defaults unpickle nothing, and a client sees no traceback.
"""

import inspect
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from servekit import ts
from servekit.codecs import scoring
from servekit.codecs.arrays import dump_json, load_json, to_array
from servekit.codecs.npy import dump_npy, load_npy
from servekit.codecs.tables import read_numbers
from servekit.errors import (
    HandlerFailed,
    InvalidInput,
    ModelLoadError,
    NotAcceptable,
    RequestError,
    UnsupportedMediaType,
)
from servekit.exchange import RawRequest, RawResponse
from servekit.imports import Modules
from servekit.platforms import program_of
from servekit.tensors import Tensors
from servekit.ts.blame import describe, traceback_of
from servekit.ts.context import Context, RequestProcessor

log = logging.getLogger(__name__)

FAILED = "The code of the model failed; the log of the server says why."
WEIGHTS = "model.pt"

_TEXTS = (scoring.JSON, scoring.CSV)  # bodies that `input_fn` gets as text
_OFFERS = (scoring.JSON, scoring.CSV, scoring.NPY)
_MEMORY_WORDS = ("can't allocate memory", "out of memory")  # of torch's allocators, of the CPU and of CUDA
_CANNOT_BE_CSV = "This answer is no table of numbers; ask for application/json."


class SageMakerEngine:
    """Runs the functions of one model, one request at a time."""

    def __init__(
        self,
        name: str,
        folder: Path,
        environ: Mapping[str, str],
        trusted_only: bool = False,
        on_failure: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Load the model that lies in `folder`: what SAGEMAKER_PROGRAM of `environ` names in `code/`, or TorchScript.

        `on_failure` is given the traceback of each request that fails. Raises ModelLoadError with what is wrong; with
        `trusted_only` always, since either can run code.
        """
        if trusted_only:
            raise ModelLoadError(f"The model {name} brings code, and only trusted models are served.")
        self._name, self._folder, self._on_failure = name, folder.resolve(), on_failure
        self._lock = threading.Lock()
        self.threads: int | None = None  # of torch's arithmetic; None: as many as torch takes by itself
        program = program_of(self._folder, environ)
        code = self._folder / "code"
        self._modules = Modules([code if code.is_dir() else self._folder])
        weakref.finalize(self, self._modules.forget)
        self._context = Context(name, str(self._folder), {}, 1, None, ts.__version__)
        if (code / "requirements.txt").is_file():
            log.warning("The packages of code/requirements.txt of %s are not installed; install them with the server.", name)
        try:
            with self._modules.scope():
                self._functions = _functions_of(_module_of(self._modules, program, code))
                self._load()
        except (Exception, SystemExit) as error:
            self._modules.forget()
            raise ModelLoadError(f"The model {name} cannot be loaded: {describe(error, self._folder)}.") from error
        self.device = "cuda" if "torch" in sys.modules and sys.modules["torch"].cuda.is_available() else "cpu"

    def __call__(self, tensors: Tensors) -> Tensors:
        """Return {"response": RawResponses (N,)} for {"request": RawRequests (N,)}.

        Raises what the default functions refuse, or HandlerFailed when the model's own fail; `on_failure` knows why.
        """
        requests: list[RawRequest] = tensors["request"].tolist()
        responses = np.empty(len(requests), dtype=object)
        with self._lock:
            for row, request in enumerate(requests):
                responses[row] = self._answer(request)
        return {"response": responses}

    def _load(self) -> None:
        folder = str(self._folder)
        if "pre_model_fn" in self._functions:
            self._run("pre_model_fn", folder)
        self._model = self._run("model_fn", folder)
        if "model_warmup_fn" in self._functions:
            self._run("model_warmup_fn", folder, self._model)

    def _answer(self, request: RawRequest) -> RawResponse:
        torch = sys.modules.get("torch")
        if torch and self.threads and torch.get_num_threads() != self.threads:  # it counts for each thread apart
            torch.set_num_threads(self.threads)
        processor = RequestProcessor({"Content-Type": request.content_type, "Accept": request.accept, **request.headers})
        self._context.request_processor = [processor]
        self._context.request_ids = {0: request.headers.get("X-Request-Id", "")}
        try:
            with self._modules.scope():
                return self._transform(request, processor)
        except RequestError:
            raise  # of the defaults: they know what was wrong with the request
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and threading.current_thread() is threading.main_thread():
                raise  # of Gunicorn, which ends a worker so
            self._tell(error)
            if isinstance(error, MemoryError) or any(word in str(error) for word in _MEMORY_WORDS):
                raise MemoryError(f"the model {self._name} found none") from error
            raise _failure(error) from error

    def _transform(self, request: RawRequest, processor: RequestProcessor) -> RawResponse:
        body: bytes | str = request.body
        if scoring.media_type(request.content_type) in _TEXTS:
            try:
                body = request.body.decode()
            except UnicodeDecodeError:
                raise InvalidInput("The body is not UTF-8.") from None
        if "transform_fn" in self._functions:
            answer = self._run("transform_fn", self._model, body, request.content_type, request.accept)
        else:
            data = self._run("input_fn", body, request.content_type)
            answer = self._run("output_fn", self._run("predict_fn", data, self._model), request.accept)
        content, kind = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, request.accept)
        status = processor.get_response_status_code()
        headers = {str(name): str(value) for name, value in processor.get_response_headers().items()}
        return RawResponse(_to_bytes(content), _one_type(str(kind)), status, headers)

    def _run(self, name: str, *arguments: Any) -> Any:
        """Call a function with `arguments`, and the context if it takes one more."""
        function = self._functions[name]
        takes = len(inspect.signature(function).parameters)
        if takes == len(arguments) + 1:
            return function(*arguments, self._context)
        if takes != len(arguments):
            raise TypeError(f"{name} takes {takes} arguments, and must take {len(arguments)} or {len(arguments) + 1}")
        return function(*arguments)

    def _tell(self, error: BaseException) -> None:
        text = traceback_of(error, self._folder)
        lines = ["".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in text.splitlines()]
        log.error("The code of the model %s failed:\n%s", self._name, "\n".join(f"  {line}" for line in lines))
        self._on_failure(text)


def _module_of(modules: Modules, program: Path | None, code: Path) -> ModuleType:
    if program is None:
        return ModuleType("inference")
    return modules.load(".".join(program.relative_to(code).with_suffix("").parts))


def _functions_of(module: ModuleType) -> dict[str, Callable[..., Any]]:
    """Return the functions of `module`, and the defaults of those that it lacks; raise ValueError if they do not go together."""
    names = ("model_fn", "input_fn", "predict_fn", "output_fn", "transform_fn", "pre_model_fn", "model_warmup_fn")
    own = {name: getattr(module, name) for name in names if getattr(module, name, None) is not None}
    if "transform_fn" in own and not own.keys().isdisjoint(("input_fn", "predict_fn", "output_fn")):
        raise ValueError("transform_fn takes the place of input_fn, predict_fn and output_fn; leave one side out")
    defaults = {"model_fn": _load_script, "input_fn": _read, "predict_fn": _predict, "output_fn": _write}
    return {**defaults, **own}


def _load_script(folder: str) -> Any:
    """Load `model.pt`, or the only .pt or .pth that there is, which must be TorchScript."""
    import torch

    path = Path(folder, WEIGHTS)
    if not path.exists():
        files = sorted(each for suffix in ("*.pt", "*.pth") for each in Path(folder).glob(suffix))
        if len(files) != 1:
            raise ValueError(f"there must be exactly one .pt or .pth file, or a model_fn; there are {len(files)}")
        path = files[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the format, which these models have all the same
            return torch.jit.load(str(path), map_location=_device()).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{path.name} is not TorchScript; save it with torch.jit, or write a model_fn") from error


def _read(body: bytes | str, content_type: str) -> Any:
    """Return a tensor: of float32 for JSON and CSV, of its own dtype for .npy."""
    import torch

    kind = scoring.media_type(content_type)
    content = body.encode() if isinstance(body, str) else body
    if kind == scoring.NPY:
        return torch.from_numpy(load_npy(content).copy()).to(_device())
    if kind == scoring.CSV:
        return torch.from_numpy(read_numbers(content).astype(np.float32)).to(_device())
    if kind != scoring.JSON:
        raise UnsupportedMediaType(f"That content type is not read; send one of: {', '.join(_OFFERS)}.")
    return torch.from_numpy(to_array(load_json(content), np.dtype(np.float32))).to(_device())


def _predict(data: Any, model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(data)


def _write(prediction: Any, accept: str) -> tuple[bytes, str]:
    kind = scoring.choose(accept, scoring.JSON, _OFFERS)
    value = _plain(prediction)
    if kind == scoring.JSON:
        return dump_json(value), kind
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.ndim < 1 or kind == scoring.CSV and array.ndim > 2:
        raise NotAcceptable(_CANNOT_BE_CSV)
    if kind == scoring.NPY:
        return dump_npy(array), kind
    rows = array.astype(str).reshape(len(array), -1).tolist()
    return "".join(",".join(row) + "\n" for row in rows).encode(), kind


def _plain(value: Any) -> Any:
    """Return `value` with arrays in the place of tensors, however deep they are."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _to_bytes(answer: Any) -> bytes:
    if isinstance(answer, bytes | bytearray | memoryview):
        return bytes(answer)
    return answer.encode() if isinstance(answer, str) else dump_json(_plain(answer))


def _one_type(accept: str) -> str:
    """Return the content type that an answer has whose code says only what the client accepts."""
    first = accept.split(",")[0].split(";")[0].strip()
    return scoring.JSON if not first or "*" in first else first


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _failure(error: BaseException) -> HandlerFailed:
    """Return what the client is told: a status and a message that the code chose, as the toolkit's errors have them."""
    status, message = getattr(error, "status_code", None), getattr(error, "message", None)
    if isinstance(status, int) and 400 <= status <= 599 and isinstance(message, str):
        return HandlerFailed(message.splitlines()[0] if message else FAILED, status)
    return HandlerFailed(FAILED, 500)
