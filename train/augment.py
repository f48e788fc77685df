"""Random distortion of 28x28 digit images, and the upscaling of the 8x8 digits.

Every image tensor here is float32 (N, 1, 28, 28) in 0..1, white ink on black.
Coordinates handed to ``grid_sample`` run from -1 to +1 across the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIZE = 28  # pixels per side of an image
BOX = 20  # MNIST fits every digit into a 20x20 box before centring it


def upscale_digits(digits: Tensor) -> Tensor:
    """Turn (N, 8, 8) digits with values 0..16 into soft (N, 1, 28, 28) images in 0..1.

    As in MNIST the digit fills a 20x20 box and its centre of mass is the image centre.
    The edges stay soft; ``sharpen`` makes them crisp.
    """
    ink = digits.float() / 16
    side = torch.linspace(-1, 1, 9)
    middles = (side[:-1] + side[1:]) / 2  # pixel centres of the 8x8 image
    mass = ink.sum(dim=(1, 2)).clamp(min=1e-6)
    theta = torch.zeros(len(ink), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = SIZE / BOX
    theta[:, 0, 2] = (ink.sum(dim=1) * middles).sum(dim=1) / mass
    theta[:, 1, 2] = (ink.sum(dim=2) * middles).sum(dim=1) / mass
    grid = F.affine_grid(theta, [len(ink), 1, SIZE, SIZE], align_corners=False)
    soft = F.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)
    return soft.clamp(0, 1)  # bicubic overshoots


def uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    """Draw ``count`` values evenly from low..high, shape (N,)."""
    return low + (high - low) * torch.rand(count, generator=generator)


def random_affine(
    count: int,
    generator: Generator,
    *,
    rotation: float,
    shear: float,
    width: tuple[float, float],
    height: tuple[float, float],
    shift: float,
) -> Tensor:
    """Random (N, 2, 3) matrices from output to input coordinates.

    ``rotation`` is in degrees, ``shear`` in pixels of slant per pixel of height, ``shift`` in
    pixels: each is drawn from -limit..+limit. ``width`` and ``height`` are ranges of scale.
    """
    angle = uniform(count, -rotation, rotation, generator) * (math.pi / 180)
    slant = uniform(count, -shear, shear, generator)
    x_scale = 1 / uniform(count, *width, generator)
    y_scale = 1 / uniform(count, *height, generator)
    move = 2 * shift / SIZE * (2 * torch.rand(count, 2, generator=generator) - 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rows of scale @ shear @ rotation: the last acts first on the output coordinates.
    x_row = torch.stack([x_scale * (cos + slant * sin), x_scale * (slant * cos - sin), move[:, 0]], 1)
    y_row = torch.stack([y_scale * sin, y_scale * cos, move[:, 1]], 1)
    return torch.stack([x_row, y_row], 1)


def random_elastic(count: int, generator: Generator, *, pixels: float, cells: int) -> Tensor:
    """Random smooth displacement (N, 28, 28, 2) in grid coordinates.

    Noise with a standard deviation of ``pixels`` on a grid of ``cells`` x ``cells`` points is
    interpolated to every pixel, so neighbours move together and strokes bend without breaking.
    """
    noise = torch.randn(count, 2, cells, cells, generator=generator) * (2 * pixels / SIZE)
    field = F.interpolate(noise, (SIZE, SIZE), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def sharpen(images: Tensor, threshold: Tensor | float, contrast: Tensor | float) -> Tensor:
    """Give soft strokes crisp edges: a ramp of slope ``contrast`` that is 0.5 at ``threshold``.

    A low threshold thickens the strokes, a high one thins them.
    """
    return ((images - threshold) * contrast + 0.5).clamp(0, 1)


def distort(
    images: Tensor,
    generator: Generator,
    *,
    rotation: float = 0.0,
    shear: float = 0.0,
    width: tuple[float, float] = (1.0, 1.0),
    height: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    elastic: float = 0.0,
    cells: int = 5,
    threshold: tuple[float, float] | None = None,
    contrast: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Distort each of (N, 1, 28, 28) images on its own; see the helpers for the units."""
    count = len(images)
    theta = random_affine(
        count, generator, rotation=rotation, shear=shear, width=width, height=height, shift=shift
    )
    grid = F.affine_grid(theta, [count, 1, SIZE, SIZE], align_corners=False)
    if elastic:
        grid = grid + random_elastic(count, generator, pixels=elastic, cells=cells)
    images = F.grid_sample(images, grid, align_corners=False)
    if threshold is None:
        return images
    level = uniform(count, *threshold, generator).view(-1, 1, 1, 1)
    slope = uniform(count, *contrast, generator).view(-1, 1, 1, 1)
    return sharpen(images, level, slope)
