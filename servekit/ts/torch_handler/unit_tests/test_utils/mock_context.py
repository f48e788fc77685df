"""A context without a server."""

import os
import uuid
from typing import Any

from servekit.ts.metrics.metrics_store import MetricsStore
from servekit.ts.utils.util import get_yaml_config


class MockContext:
    """Enough of a context to initialise a handler with a model from a folder, and to call its `handle`."""

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = "ts/torch_handler/unit_tests/models/tmp",
        model_file: str | None = "model.py",
        gpu_id: str | None = "0",
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        """Describe a model by its files in `model_dir`; the GPU is used if there is one."""
        import torch

        named = {"serializedFile": model_pt_file, "modelFile": model_file}
        self.manifest: dict[str, Any] = {"model": {key: value for key, value in named.items() if value}}
        self.system_properties: dict[str, Any] = {"model_dir": model_dir}
        if torch.cuda.is_available() and gpu_id:
            self.system_properties["gpu_id"] = gpu_id
        self.explain = False
        self.metrics = MetricsStore(uuid.uuid4(), model_name)
        self.model_yaml_config: dict[str, Any] = {}
        if model_yaml_config_file:
            self.model_yaml_config = get_yaml_config(os.path.join(model_dir, model_yaml_config_file))

    def get_request_header(self, idx: int, exp: str) -> bool:
        """Return whether explanations are asked for."""
        return bool(idx and exp and self.explain)
