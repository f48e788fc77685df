"""Triton's Python backend: the network on ONNX Runtime, all requests that wait together in one forward pass."""

import json
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as utils


class TritonPythonModel:
    """One instance: a session on one thread."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Load the file that the model's configuration names."""
        path = json.loads(arguments["model_config"])["parameters"]["onnx"]["string_value"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return one response for each request."""
        images = [utils.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        logits = self.session.run(None, {self.name: np.concatenate(images)})[0]
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        ends = np.cumsum([len(image) for image in images])[:-1]
        return [
            utils.InferenceResponse(
                [
                    utils.Tensor("predicted_class", rows.argmax(axis=1)[:, None].astype(np.int64)),
                    utils.Tensor("probabilities", rows),
                ]
            )
            for rows in np.split(probabilities, ends)
        ]
