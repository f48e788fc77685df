"""The handler of networks that find things in a picture."""

from typing import Any

from servekit.ts.torch_handler.pictures import Compose, to_rgb, to_tensor
from servekit.ts.torch_handler.vision_handler import VisionHandler


class ObjectDetector(VisionHandler):
    """Answers each picture with what is in it: a list of {label: [x1, y1, x2, y2], "score": probability}."""

    image_processing = Compose([to_rgb, to_tensor])
    threshold = 0.5

    def preprocess(self, data: Any) -> Any:
        """Return the pictures as one tensor, or as a list of tensors if they are not of one size."""
        import torch

        tensors = [self._tensor_of(row).to(self.device) for row in data]
        return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Return for each picture a dict of boxes, labels and scores."""
        import torch

        if isinstance(data, torch.Tensor):
            return super().inference(data, *args, **kwargs)
        with torch.inference_mode():
            return self.model([image.to(self.device) for image in data], *args, **kwargs)

    def postprocess(self, data: Any) -> Any:
        """Return of each picture what has at least the score `threshold`."""
        return [self._found(each) for each in data]

    def _found(self, each: Any) -> list[dict[str, Any]]:
        keep = each["scores"] >= self.threshold
        boxes, labels, scores = (each[name][keep].tolist() for name in ("boxes", "labels", "scores"))
        names = self.mapping or {}
        return [
            {names.get(str(label), str(label)): box, "score": score}
            for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
