"""The handler of networks that say what is in a picture."""

from typing import Any

from servekit.ts.handler_utils.timer import timed
from servekit.ts.torch_handler.pictures import imagenet
from servekit.ts.torch_handler.vision_handler import VisionHandler
from servekit.ts.utils.util import map_class_to_label


class ImageClassifier(VisionHandler):
    """Answers each picture with the likeliest classes and their probabilities: {label: probability}."""

    topk = 5
    image_processing = imagenet()

    def set_max_result_classes(self, topk: int) -> None:
        """Answer with `topk` classes at most."""
        self.topk = topk

    def get_max_result_classes(self) -> int:
        """Return how many classes there are in an answer at most."""
        return self.topk

    @timed
    def postprocess(self, data: Any) -> Any:
        """Return the `topk` likeliest classes of each row of logits (N, classes), all if there are fewer."""
        import torch

        probabilities = torch.softmax(data, dim=1)
        values, classes = torch.topk(probabilities, min(self.topk, probabilities.shape[1]), dim=1)
        return map_class_to_label(values.tolist(), self.mapping, classes.tolist())
