"""The handler that others derive from: it loads a model of any format and answers by preprocess, inference, postprocess."""

import abc
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servekit.ts.handler_utils.timer import timed
from servekit.ts.torch_handler import formats
from servekit.ts.utils.util import PredictionException, load_label_mapping

log = logging.getLogger(__name__)

# what handlers ask TorchServe's module of this name for
PROFILER_AVAILABLE = PT2_AVAILABLE = True
IPEX_AVAILABLE = XLA_AVAILABLE = False


class BaseHandler(abc.ABC):  # noqa: B024  (what derives from it may be told apart by its metaclass)
    """Override `preprocess`, `inference` or `postprocess`; `handle` calls one after the other."""

    def __init__(self) -> None:
        """Begin without a model; `initialize` loads it."""
        self.model: Any = None
        self.mapping: dict[str, str] | None = None
        self.device: Any = None
        self.initialized: bool | None = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the model that the manifest names onto the device of the context, and the names of its classes.

        A state dict with a model file, TorchScript (.pt, .pth), ONNX (.onnx) or an AOTInductor package (.so, .pt2);
        raise RuntimeError, ValueError or what the format's library raises for one that cannot be loaded.
        """
        import torch

        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        properties = context.system_properties
        self.map_location, device = _device_of(properties.get("gpu_id"))
        self.device = torch.device(device)
        self.manifest = context.manifest
        model = self.manifest["model"]
        folder = str(properties.get("model_dir"))
        if model.get("serializedFile"):
            self.model_pt_path = os.path.join(folder, model["serializedFile"])
        self._check_trust(properties, model)
        self.model = self._load_model(folder, model.get("modelFile"))
        self._compile()
        self.mapping = load_label_mapping(os.path.join(folder, "index_to_name.json"))
        self.initialized = True

    def _check_trust(self, properties: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        """Refuse what runs code of the archive's, if the server says so."""
        file = model.get("modelFile") or self.model_pt_path or ""
        # A model file is Python, whatever its name ends with.
        if properties.get("trusted_only") and (model.get("modelFile") or not file.endswith(".onnx")):
            raise PermissionError(
                f"{Path(file).name} can run code of its own, which this server refuses; serve the model as ONNX."
            )

    def _load_model(self, folder: str, model_file: str | None) -> Any:
        path = self.model_pt_path or ""
        if model_file:
            model = self._load_pickled_model(folder, model_file, self.model_pt_path)
            return model.to(self.device).eval()
        if path.endswith((".pt", ".pth")):
            return self._load_torchscript_model(path).eval()
        if path.endswith(".onnx"):
            return formats.load_onnx(path, self.device.type)
        if path.endswith((".so", ".pt2")):
            return self._load_torch_export_aot_compile(path)
        raise RuntimeError("No model weights could be loaded: name a .pt, .pth, .onnx, .so or .pt2 file, or a model file.")

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Return the one network of `model_file` with the state dict of `model_pt_path` in it."""
        return formats.load_eager(Path(model_dir), model_file, model_pt_path, self.device)

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """Return the TorchScript module of a file."""
        return formats.load_torchscript(model_pt_path, self.device)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """Return the function that an AOTInductor package holds."""
        return formats.load_compiled(model_so_path, self.device)

    def _compile(self) -> None:
        options = formats.compile_options(self.model_yaml_config.get("pt2"))
        if options is not None:
            import torch

            self.model = torch.compile(self.model, **options)
            log.info("The model is compiled at its first requests, with %s.", options)

    @timed
    def preprocess(self, data: Any) -> Any:
        """Return the requests as one tensor: the numbers that each has as `data` or `body`, a row each."""
        import torch

        rows = [row.get("data") or row.get("body") if isinstance(row, dict) else row for row in data]
        return torch.as_tensor(rows, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what the model makes of `data`."""
        import torch

        if formats.is_onnx(self.model):
            return formats.run_onnx(self.model, data, *args)
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """Return a list with an answer for each row."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer the requests in `data`; their headers in `context` say whether they ask for explanations."""
        started = time.perf_counter()
        self.context = context
        if self._is_describe():
            output: Any = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = self._infer_with_profiler(data)
        else:
            output = self._answer(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - started) * 1000, 2), None, "ms")
        return output

    def _answer(self, data: Any) -> Any:
        prepared = self.preprocess(data)
        if self._is_explain():
            return self.explain_handle(prepared, data)
        return self.postprocess(self.inference(prepared))

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """Return the answers and the profile of their making; `self.profiler_args` go to torch.profiler.profile."""
        import torch

        self.profiler_args.setdefault("record_shapes", True)
        with torch.profiler.profile(**self.profiler_args) as profile:
            output = self._answer(data)
        log.info("%s", profile.key_averages().table(sort_by="cpu_time_total", row_limit=10))
        return output, profile

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Return the explanations that `get_insights`, a method of the handlers that have them, gives for `data`."""
        insights = getattr(self, "get_insights", None)
        if insights is None:
            raise PredictionException("This model explains nothing; ask for predictions.", 501)
        row = raw_data[0] if isinstance(raw_data[0], dict) else {}
        return insights(data_preprocess, row.get("data") or row.get("body"), row.get("target") or 0)

    def _is_explain(self) -> bool:
        if not self._header_says("explain"):
            return False
        self.explain = True
        return True

    def _is_describe(self) -> bool:
        return self._header_says("describe")

    def _header_says(self, name: str) -> bool:
        return self.context is not None and self.context.get_request_header(0, name) == "True"

    def describe_handle(self) -> Any:
        """Return what the description of the model says beside what the server knows."""
        return None

    def get_device(self) -> Any:
        """Return the device that the model is on."""
        return self.device


def _device_of(gpu_id: Any) -> tuple[str, str]:
    """Return the kind of the device for `gpu_id` (None: the CPU), and its full name."""
    import torch

    if gpu_id is not None:
        if torch.cuda.is_available():
            return "cuda", f"cuda:{gpu_id}"
        if torch.xpu.is_available():
            return "xpu", f"xpu:{gpu_id}"
        if torch.backends.mps.is_available():
            return "mps", "mps"
    return "cpu", "cpu"
