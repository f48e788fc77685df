"""Models whose own code reads requests: TorchServe's archives, SageMaker's functions, Azure ML's scripts."""

import dataclasses
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

from servekit.archive import read_manifest, read_model_config
from servekit.batcher import Backlog
from servekit.config import Settings, visible_gpus
from servekit.desired import Entry
from servekit.engines import Engine
from servekit.errors import ModelLoadError
from servekit.handlers.base import Handler
from servekit.model import Model, ReportMetric
from servekit.spec import ModelSpec, TensorSpec

_REQUESTS = ModelSpec(
    handler="servekit.handlers.base:Handler",
    network="servekit.engines.torchserve:TorchServeEngine",
    inputs=(TensorSpec("request", "bytes", (-1,)),),
    outputs=(TensorSpec("response", "bytes", (-1,)),),
    files={},
)
_STARTUP_SECONDS = 480.0  # for a model's own code to load: SageMaker waits eight minutes for the first healthy answer


def load_archive(
    entry: Entry, settings: Settings, note_failure: Callable[[str], None], report_metric: ReportMetric
) -> Model:
    """Load the handler of an archive. Requests are its rows; they wait in a line of their own, beside the event loop."""
    from servekit.engines.torchserve import TorchServeEngine

    folder = Path(entry.folder)
    config = read_model_config(folder, read_manifest(folder))  # as it stands: JSON would change keys and dates
    options = {**entry.options, "model_config": config, "trusted_only": settings.trusted_models_only}
    gpus, most = visible_gpus(os.environ), entry.options.get("number_of_gpu")
    if gpus := gpus if most is None else min(gpus, most):
        options["gpu_id"] = os.getpid() % gpus  # the workers share them out
    seconds = options["startup_timeout"]
    try:
        engine = _within(seconds, lambda: TorchServeEngine(folder, options, note_failure, report_metric))
    except TimeoutError:
        raise ModelLoadError(
            f"The model {entry.name} was not loaded within {seconds} seconds; raise its startup timeout."
        ) from None
    spec = dataclasses.replace(_REQUESTS, max_batch_rows=options["batch_size"])
    return Model(
        entry.name,
        entry.version,
        spec,
        Handler(spec),
        engine,
        Backlog(options["job_queue_size"] + options["batch_size"]),  # those of the batch that runs wait no more
        takes_requests=True,
        is_long=True,
        max_delay=options["max_batch_delay"] / 1000,
        max_seconds=options["response_timeout"],
        blame=note_failure,
    )


def load_functions(
    entry: Entry, settings: Settings, backlog: Backlog, note_failure: Callable[[str], None]
) -> Model:
    """Load the functions of SageMaker's contract; requests go to them one by one, beside the event loop."""
    from servekit.engines.sagemaker import SageMakerEngine

    def load() -> Engine:
        return SageMakerEngine(entry.name, Path(entry.folder), os.environ, settings.trusted_models_only, note_failure)

    try:
        engine = _within(_STARTUP_SECONDS, load)
    except TimeoutError:
        raise ModelLoadError(f"The model {entry.name} was not loaded within {_STARTUP_SECONDS:.0f} seconds.") from None
    spec = dataclasses.replace(_REQUESTS, max_batch_rows=1)
    return Model(
        entry.name,
        entry.version,
        spec,
        Handler(spec),
        engine,
        backlog,
        takes_requests=True,
        is_long=True,
        max_seconds=settings.deadline_seconds,
        blame=note_failure,
    )


def load_script(entry: Entry, settings: Settings, backlog: Backlog, note_failure: Callable[[str], None]) -> Model:
    """Load a scoring script of Azure ML. Requests are its rows, and each runs alone, as long as its time-outs allow."""
    if settings.trusted_models_only:
        raise ModelLoadError(f"{entry.folder} is code, and SERVEKIT_TRUSTED_MODELS_ONLY forbids that.")
    from servekit.engines.azure import NETWORK, AzureEngine

    engine = AzureEngine(Path(entry.folder), entry.options)
    spec = dataclasses.replace(_REQUESTS, network=NETWORK, max_batch_rows=1)
    batching = {"is_long": True, "max_seconds": engine.max_seconds, "blame": note_failure}
    return Model(*entry.key, spec, Handler(spec), engine, backlog, takes_requests=True, **batching)


def _within(seconds: float, load: Callable[[], Engine]) -> Engine:
    """Call `load` in a thread of its own, whose the working directory can be, unlike the main thread's.

    Raises what it raises, or TimeoutError after `seconds`; what a thread does cannot be stopped, so it is left behind.
    """
    loaded: Future[Engine] = Future()

    def run() -> None:
        try:
            loaded.set_result(load())
        except BaseException as error:  # noqa: B036 - raised again where it is waited for
            loaded.set_exception(error)

    threading.Thread(target=run, name="servekit-load", daemon=True).start()
    return loaded.result(seconds)
