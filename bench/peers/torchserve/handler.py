"""The handler in the model archive: PNG bodies in, class and probabilities out, on one thread of torch."""

import io
import logging
import os
from typing import Any

import numpy as np
import torch
from PIL import Image


class Digits:
    """Loads the network from the archive once and answers a list of requests in one forward pass."""

    def initialize(self, context: Any) -> None:
        """Load the weights that lie in the archive beside the network's own file."""
        from mnist import MnistCNN  # models/mnist.py, which the archive carries

        logging.getLogger("ts.metrics").setLevel(logging.WARNING)  # a line a request, which the front end would parse
        torch.set_num_threads(1)
        path = os.path.join(context.system_properties["model_dir"], "model.pth")
        self.network = MnistCNN()
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self.network.eval().requires_grad_(False)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """Return one answer for each request."""
        bodies: list[bytes] = [request["body"] for request in data]
        pixels = [np.asarray(Image.open(io.BytesIO(body)).convert("L"), np.float32) / 255 for body in bodies]
        with torch.inference_mode():
            rows = torch.softmax(self.network(torch.from_numpy(np.stack(pixels)[:, None])), dim=1).tolist()
        return [
            {"predicted_class": max(range(10), key=row.__getitem__), "confidence": max(row), "probabilities": row}
            for row in rows
        ]
