"""One loaded version of a model, and a request's way through it: preprocess, batched inference, postprocess."""

import textwrap
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from servekit.batcher import Batcher, remaining
from servekit.engines import Engine
from servekit.errors import InvalidInput, ModelLoadError
from servekit.handlers.base import Handler
from servekit.metrics import ModelMeter
from servekit.spec import FILE_NAME, ModelSpec, read_spec, resolve
from servekit.tensors import Tensors, concatenate, row_count, slice_rows


class Model:
    """A version of a model, ready to predict; made once a worker, used by all its threads."""

    def __init__(self, name: str, version: str, spec: ModelSpec, handler: Handler, engine: Engine) -> None:
        self.name = name
        self.version = version
        self.spec = spec
        self.device = engine.device
        self._handler = handler
        self._batcher = Batcher(engine, spec.max_batch_rows)

    @cached_property
    def meter(self) -> ModelMeter:
        """The metrics of this version. They appear when it is first asked for, so not for a model that is not served."""
        return ModelMeter(self.name, self.version)

    def predict(self, tensors: Tensors, deadline: float) -> Tensors:
        """Return the answer for every row of `tensors`; `deadline` is a time of the monotonic clock, in seconds.

        Raises InvalidInput for what the handler cannot read, DeadlineExceeded, or MemoryError.
        """
        return self._handler.postprocess(self._infer(self._handler.preprocess(tensors), deadline))

    def predict_each(self, requests: Sequence[Tensors], deadline: float) -> list[Tensors | InvalidInput]:
        """Return an answer, or what is wrong with it, for each of `requests`: a bad one fails alone.

        Those that can be read go through the network together.
        """
        prepared = []
        for tensors in requests:
            remaining(deadline)  # reading a thousand large images takes time too
            prepared.append(_attempt(self._handler.preprocess, tensors))
        readable = [tensors for tensors in prepared if not isinstance(tensors, InvalidInput)]
        if not readable:
            return prepared
        outputs = self._infer(concatenate(readable), deadline)
        answers: list[Tensors | InvalidInput] = []
        start = 0
        for request in prepared:
            if isinstance(request, InvalidInput):
                answers.append(request)
                continue
            stop = start + row_count(request)
            answers.append(_attempt(self._handler.postprocess, slice_rows(outputs, slice(start, stop))))
            start = stop
        return answers

    def _infer(self, tensors: Tensors, deadline: float) -> Tensors:
        started = time.monotonic()
        outputs = self._batcher(tensors, deadline)
        self.meter.observe(row_count(tensors), time.monotonic() - started)
        return outputs


def load_model(name: str, version: str, folder: Path) -> Model:
    """Load and warm up the version in `folder`; raise ModelLoadError naming the file and the remedy."""
    # Imported here so that nothing of torch is loaded by a process that loads no model.
    from servekit.engines.torch import TorchEngine

    spec = read_spec(folder)
    handler = _make_handler(folder, spec)
    engine = TorchEngine(folder, spec)
    _warm_up(engine, folder, spec)
    return Model(name, version, spec, handler, engine)


def _attempt(step: Callable[[Tensors], Tensors], tensors: Tensors) -> Tensors | InvalidInput:
    try:
        return step(tensors)
    except InvalidInput as error:
        return error


def _make_handler(folder: Path, spec: ModelSpec) -> Handler:
    try:
        handler = resolve(spec.handler)(spec, **spec.options)
        if not isinstance(handler, Handler):
            raise TypeError("it is not a servekit.Handler")
    except Exception as error:  # a handler may be the user's code, which may fail in any way
        raise ModelLoadError(
            f"{folder / FILE_NAME}: the handler {spec.handler} cannot be made: {error}; correct its options or its class."
        ) from error
    return handler


def _warm_up(engine: Engine, folder: Path, spec: ModelSpec) -> None:
    """Run a row of zeros, so that the first client does not pay for first-time work, and compare with the spec."""
    try:
        outputs = engine({tensor.name: np.zeros((1, *tensor.shape[1:]), tensor.dtype) for tensor in spec.inputs})
    except Exception as error:
        reason = textwrap.shorten(str(error), 300)
        raise ModelLoadError(
            f"{folder / FILE_NAME}: the network {spec.network} fails on its inputs: {reason}; correct one of them."
        ) from error
    for tensor in spec.outputs:
        array = outputs[tensor.name]
        if (array.dtype.name, array.shape) != (tensor.dtype, (1, *tensor.shape[1:])):
            raise ModelLoadError(
                f"{folder / FILE_NAME} promises {tensor.name} as {tensor.dtype} {list(tensor.shape)}, but the network "
                f"{spec.network} gives {array.dtype.name} {[-1, *array.shape[1:]]}; correct one of them."
            )
