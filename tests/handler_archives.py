"""Unpacked model archives that tests make, and requests to their handlers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from servekit.engines.torchserve import HandlerRequest, HandlerResponse, Parameter, TorchServeEngine

PREDICT = {"url_path": "", "explain": "False", "describe": "False"}

LINEAR = """
    import torch

    class Doubler(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x):
            return self.layer(x)
    """


def write(folder: Path, **modules: str) -> Path:
    """Write Python files into the archive's folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(dedent(text))
    return folder


def start(folder: Path, handler: str = "handler", model: Mapping[str, str] | None = None, **options: Any) -> TorchServeEngine:
    """Load the archive in `folder`; `model` is the manifest's part of that name, `options` the engine's."""
    arguments = {name: options.pop(name) for name in ("on_failure", "sink") if name in options}
    manifest = {"model": {"modelName": "m", "modelVersion": "1.0", "handler": handler, **(model or {})}}
    return TorchServeEngine(folder, {"model_name": "m", "manifest": manifest, **options}, **arguments)


def request(
    value: bytes = b"", content_type: str | None = None, name: str = "body", headers: Mapping[str, str] | None = None, **fields: Any
) -> HandlerRequest:
    """Return a request whose whole body is `value`."""
    parameters = [Parameter(name, content_type, value)]
    return HandlerRequest(fields.pop("id", "id-0"), {**PREDICT, **(headers or {})}, parameters, **fields)


def ask(engine: TorchServeEngine, *requests: HandlerRequest) -> Sequence[HandlerResponse]:
    """Return the answers of one batch."""
    rows = np.empty(len(requests), dtype=object)
    rows[:] = requests
    answers: Sequence[HandlerResponse] = engine({"request": rows})["response"].tolist()
    return answers
