"""mosec with one stage: workers that decode, run the network, and answer.

MODEL names the file of weights, ENGINE is "torch" or "onnx", WORKERS and BATCH are numbers.
"""

import io
import json
import os
from typing import Any

import numpy as np
from mosec import Server, Worker
from PIL import Image

BATCH = int(os.environ["BATCH"])
WAIT_MS = 1  # how long a batch waits to be filled


def load_onnx(path: str) -> Any:
    """Return a function from pixels to logits that runs on ONNX Runtime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def load_torch(path: str) -> Any:
    """Return a function from pixels to logits that runs on torch, on one thread."""
    import torch

    from models.mnist import MnistCNN

    torch.set_num_threads(1)
    network = MnistCNN()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval().requires_grad_(False)

    def run(pixels: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(pixels)).numpy()

    return run


class Digits(Worker):
    """Classifies PNG bodies, one by one or, with BATCH above 1, those that wait together."""

    def __init__(self) -> None:
        super().__init__()
        load = {"onnx": load_onnx, "torch": load_torch}[os.environ["ENGINE"]]
        self.run = load(os.environ["MODEL"])

    def deserialize(self, data: bytes) -> Any:
        """Decode a PNG."""
        return np.asarray(Image.open(io.BytesIO(data)).convert("L"), np.float32) / 255

    def forward(self, data: Any) -> Any:
        """Return the probabilities of each image."""
        pixels = np.stack(data if BATCH > 1 else [data])[:, None]
        logits = self.run(pixels)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = weights / weights.sum(axis=1, keepdims=True)
        return list(probabilities) if BATCH > 1 else probabilities[0]

    def serialize(self, data: Any) -> bytes:
        """Write the answer as JSON."""
        answer = int(data.argmax())
        return json.dumps(
            {"predicted_class": answer, "confidence": float(data[answer]), "probabilities": data.tolist()}
        ).encode()


if __name__ == "__main__":
    server = Server()
    wait = {"max_batch_size": BATCH, "max_wait_time": WAIT_MS} if BATCH > 1 else {}
    server.append_worker(Digits, num=int(os.environ["WORKERS"]), **wait)
    server.run()
