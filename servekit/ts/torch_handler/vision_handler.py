"""The handler of models that look at pictures."""

import abc
import base64
import binascii
import importlib
import io
import threading
from typing import Any

from servekit.ts.handler_utils.timer import timed
from servekit.ts.torch_handler.base_handler import BaseHandler
from servekit.ts.utils.util import PredictionException

_unlimited = threading.Lock()


class VisionHandler(BaseHandler, abc.ABC):
    """Gives the network the pictures of a batch as one tensor; `image_processing` makes a tensor of a PIL image."""

    image_processing: Any
    # handlers that initialise themselves do not pass by here
    _limits_pixels = True
    _gradients: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model."""
        super().initialize(context)
        self._limits_pixels = bool(context.system_properties.get("limit_max_image_pixels", True))

    @property
    def ig(self) -> Any:
        """The integrated gradients of the model; made when explanations are asked for first."""
        if self._gradients is None:
            try:
                captum = importlib.import_module("captum.attr")
            except ImportError:
                sentence = "Explanations need the package captum, which is not installed on the server."
                raise PredictionException(sentence, 501) from None
            self._gradients = captum.IntegratedGradients(self.model)
        return self._gradients

    @timed
    def preprocess(self, data: Any) -> Any:
        """Return the pictures as one tensor, a row each.

        A request brings the bytes of an image file, their base64 as text, or nested lists of numbers.
        """
        import torch

        return torch.stack([self._tensor_of(row) for row in data]).to(self.device)

    def _tensor_of(self, row: Any) -> Any:
        import torch

        image = row.get("data") or row.get("body") if isinstance(row, dict) else row
        if isinstance(image, str):
            try:
                image = base64.b64decode(image, validate=False)
            except binascii.Error as error:
                raise ValueError(f"A picture sent as text must be base64: {error}.") from error
        if isinstance(image, bytes | bytearray):
            return self.image_processing(self._open(image))
        return torch.FloatTensor(image)

    def _open(self, content: bytes | bytearray) -> Any:
        from PIL import Image

        if self._limits_pixels:
            return Image.open(io.BytesIO(content))
        with _unlimited:  # Pillow has one limit for the process, and looks at it when it opens a file
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(io.BytesIO(content))
            finally:
                Image.MAX_IMAGE_PIXELS = limit

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> Any:
        """Return how much each value of each picture speaks for the class `target`."""
        return self.ig.attribute(tensor_data, target=int(target), n_steps=15).tolist()
