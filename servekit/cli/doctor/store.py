"""The model store: what would be served, and whether it can be: each version is loaded as a worker would load it.

That happens in a process of its own, since a model's files may be code, which may do anything to its process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from servekit.cli.doctor.report import Section, size
from servekit.config import MULTIPROCESS_DIR, Settings, seal_keys

_MARK = "servekit-doctor:"  # before the lines that count: a model's code may print others
_SECONDS = 300.0  # for all models to load, as a reload allows them
_RESERVE = 0.8  # of the memory that is free, for workers; the rest is for requests and the system


def load_all(environ: Mapping[str, str], folder: Path, seconds: float = _SECONDS) -> dict[str, Any]:
    """Load what a start in `folder` would serve; return its `models`, the `memory` of a process that holds them, `error`."""
    command = [sys.executable, "-m", __name__]
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environ, "PYTHONDONTWRITEBYTECODE": "1"}
    variables.pop(MULTIPROCESS_DIR, None)  # what is counted here is nobody's
    seal_keys(variables)
    try:
        ended = subprocess.run(
            command, cwd=folder, env=variables, capture_output=True, text=True, errors="replace", timeout=seconds
        )
        output, words, status = ended.stdout, ended.stderr, ended.returncode
    except subprocess.TimeoutExpired as error:
        output, words, status = (error.stdout or b"").decode(errors="replace"), "", None
    found: dict[str, Any] = {"models": [], "memory": None, "error": ""}
    for line in output.splitlines():
        if line.startswith(_MARK):
            told = json.loads(line.removeprefix(_MARK))
            if "name" in told:
                found["models"].append(told)
            else:
                found.update(told)
    if status is None:
        found["error"] = f"The models did not load within {seconds:.0f} seconds."
    elif status and not found["error"]:
        last = (words.strip().splitlines() or ["without a word"])[-1]
        found["error"] = f"Loading a model ended its process with status {status}: {last}"
    return found


def section_of(
    found: Mapping[str, Any], settings: Settings, workers: int, free: int, gpus: int
) -> Section:
    """Return what `load_all` has found; `free` is the memory that is free, in bytes, or 0 if that is not known."""
    section = Section("Model store")
    section.add("folder", str(settings.model_store))
    for model in found["models"]:
        name = f"{model['name']}/{model['version']}"
        if model["error"]:
            section.add(name, model, f"{model['format']}, cannot be served")
            section.stops(model["error"])
            continue
        text = f"{model['format']}, {model['engine']} on {model['device']}, loaded in {model['seconds']:.1f} s"
        section.add(name, model, text)
    if found["error"]:
        section.stops(found["error"])
    if archives := sorted(path.name for path in settings.model_store.glob("*.mar")):
        section.add("archives", archives, ", ".join(archives))
        section.consider("The store holds archives, which `servekit torchserve` serves; look at each with `servekit check`.")
    _memory(section, found["memory"], workers, free)
    on_cpu = [f"{model['name']}/{model['version']}" for model in found["models"] if model.get("device") == "cpu"]
    if gpus and on_cpu:
        section.consider(
            f"There is a GPU, and {', '.join(on_cpu)} would compute on the CPU; install a build of its engine for the GPU "
            "(onnxruntime-gpu, or torch with CUDA and SERVEKIT_ENGINE=torch)."
        )
    return section


def _memory(section: Section, each: int | None, workers: int, free: int) -> None:
    if not each:
        return
    section.add("memory of a worker", each, f"{size(each)} with all of them loaded")
    if free and each * workers > free * _RESERVE:
        fitting = max(1, int(free * _RESERVE / each))
        section.change(
            f"{workers} workers of {size(each)} each need {size(each * workers)}, and {size(free)} are free; set "
            f"WEB_CONCURRENCY={fitting}."
        )


def _main() -> None:
    """Load what a start would serve, telling of each model and of the whole in a line of JSON."""
    sys.path.insert(0, os.getcwd())  # as Gunicorn does
    import servekit.app  # noqa: F401 - a worker holds it, too
    from servekit.errors import ServekitError
    from servekit.memory import memory_of
    from servekit.platforms import SAGEMAKER
    from servekit.stores import entries_of

    settings = Settings.from_environ(os.environ)
    try:
        if settings.tracing:
            import servekit.tracing  # noqa: F401 - whose packages are an extra
        entries = entries_of(settings)
    except ServekitError as error:
        _tell({"error": str(error)})
        return
    if not entries and not settings.multi_model and not settings.torchserve:
        _tell({"error": f"There is no model in {settings.model_store}; run `make train`, or set SERVEKIT_MODEL_STORE."})
        return
    for entry in sorted(entries, key=lambda entry: entry.key):
        kind = "SageMaker's toolkit" if entry.format == SAGEMAKER else entry.format
        _tell({"name": entry.name, "version": entry.version, "format": kind, **_trial(entry.key)})
    _tell({"memory": memory_of(os.getpid())})


def _trial(key: tuple[str, str]) -> dict[str, Any]:
    """Load one version; return its engine, device and seconds, or its error."""
    import time

    from servekit.errors import ServekitError

    started = time.monotonic()
    try:
        model = _loaded(*key)
        model.require_ready()
    except ServekitError as error:
        return {"error": str(error)}
    engine = getattr(model, "_engine", model)  # by its module, as servekit_model_info names it
    name, seconds = type(engine).__module__.rpartition(".")[2], time.monotonic() - started
    return {"error": "", "engine": name, "device": model.device, "seconds": seconds}


@cache
def _loaded(name: str, version: str | None) -> Any:
    """Return a version of the store, or its default one, loaded; what an ensemble is made of is found by it, too."""
    from servekit.batcher import Backlog
    from servekit.errors import ModelNotFound
    from servekit.loading import load_entry
    from servekit.stores import entries_of

    settings = Settings.from_environ(os.environ)
    entries = [each for each in entries_of(settings) if each.name == name and version in (None, each.version)]
    if not entries:
        raise ModelNotFound("That model is not in the model store.")
    return load_entry(entries[0], settings, Backlog(settings.max_waiting), find=_loaded)


def _tell(what: Mapping[str, Any]) -> None:
    print(_MARK + json.dumps(what), flush=True)


if __name__ == "__main__":
    _main()
