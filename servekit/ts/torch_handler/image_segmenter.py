"""The handler of networks that say what each pixel of a picture belongs to."""

from typing import Any

from servekit.ts.torch_handler.pictures import imagenet
from servekit.ts.torch_handler.vision_handler import VisionHandler


class ImageSegmenter(VisionHandler):
    """Answers each picture with the likeliest class of each pixel and its probability: height x width x 2."""

    image_processing = imagenet()

    def postprocess(self, data: Any) -> Any:
        """Return class and probability of each pixel; `data["out"]` are logits (N, classes, height, width)."""
        import torch

        values, classes = torch.softmax(data["out"], dim=1).max(dim=1)
        return torch.stack([classes.to(values.dtype), values], dim=3).tolist()
