"""What handlers do to pictures before the network sees them, defined as torchvision's transforms are."""

from collections.abc import Callable, Sequence
from typing import Any

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue


class Compose:
    """One step after the other."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        """Take the steps."""
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        """Return what the last step gives."""
        for transform in self.transforms:
            image = transform(image)
        return image


def to_rgb(image: Any) -> Any:
    """Return a PIL image in red, green and blue."""
    return image if image.mode == "RGB" else image.convert("RGB")


class Resize:
    """Makes the shorter edge of a PIL image `size` pixels long; bilinear, with antialiasing."""

    def __init__(self, size: int) -> None:
        """Take the length of the shorter edge."""
        self.size = size

    def __call__(self, image: Any) -> Any:
        """Return the scaled image; the longer edge is rounded down."""
        from PIL import Image

        width, height = image.size
        if width <= height:
            target = self.size, int(self.size * height / width)
        else:
            target = int(self.size * width / height), self.size
        return image if target == image.size else image.resize(target, Image.Resampling.BILINEAR)


class CenterCrop:
    """Cuts a square out of the middle of a PIL image; what is too small is black around it."""

    def __init__(self, size: int) -> None:
        """Take the length of the edges."""
        self.size = size

    def __call__(self, image: Any) -> Any:
        """Return the square."""
        from PIL import ImageOps

        width, height = image.size
        if width < self.size or height < self.size:
            left, top = max(self.size - width, 0) // 2, max(self.size - height, 0) // 2
            right, bottom = max(self.size - width + 1, 0) // 2, max(self.size - height + 1, 0) // 2
            image = ImageOps.expand(image, (left, top, right, bottom))
            width, height = image.size
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def to_tensor(image: Any) -> Any:
    """Return a PIL image as a tensor of float32, (channels, height, width), values from 0 to 1."""
    import numpy as np
    import torch

    array = np.array(image)  # a copy, which torch may write to
    tensor = torch.from_numpy(array[:, :, None] if array.ndim == 2 else array).permute(2, 0, 1).contiguous()
    return tensor.to(torch.float32).div(255) if array.dtype == np.uint8 else tensor.to(torch.float32)


class Normalize:
    """Subtracts a mean from each channel of a tensor and divides it by a deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take a number for each channel."""
        self.mean, self.std = mean, std

    def __call__(self, tensor: Any) -> Any:
        """Return the normalised tensor, of the shape of `tensor`."""
        import torch

        mean, std = (torch.tensor(values, dtype=tensor.dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        return (tensor - mean) / std


def imagenet() -> Compose:
    """Return what networks trained on ImageNet expect: the middle 224 x 224 pixels of an edge of 256, normalised."""
    return Compose([to_rgb, Resize(256), CenterCrop(224), to_tensor, Normalize(MEAN, DEVIATION)])
