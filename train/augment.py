"""Random distortion of pictures of digits, and the upscaling of the small digits.

Every tensor of images is float32 `(rows, 1, 28, 28)` between 0 and 1, light ink on black. Coordinates of a sampling grid
run from -1 to 1 across the picture, as `grid_sample` takes them.
"""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

SIZE = 28  # pixels of a side
BOX = 20  # MNIST fits every digit into a box of 20x20 pixels before it is centred

Range = tuple[float, float]


def upscale_digits(digits: Tensor) -> Tensor:
    """Turn `(rows, 8, 8)` digits with values from 0 to 16 into soft pictures.

    As in MNIST the digit fills the box and its centre of mass is that of the picture. Its edges stay soft; `sharpen`
    makes them crisp.
    """
    ink = digits / 16
    side = torch.linspace(-1, 1, 9)
    middles = (side[:-1] + side[1:]) / 2  # centres of the eight pixels
    mass = ink.sum(dim=(1, 2))
    theta = torch.zeros(len(ink), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = SIZE / BOX
    theta[:, 0, 2] = (ink.sum(dim=1) * middles).sum(dim=1) / mass
    theta[:, 1, 2] = (ink.sum(dim=2) * middles).sum(dim=1) / mass
    grid = functional.affine_grid(theta, [len(ink), 1, SIZE, SIZE], align_corners=False)
    soft = functional.grid_sample(ink[:, None], grid, mode="bicubic", align_corners=False)
    return soft.clamp(0, 1)  # bicubic interpolation overshoots


def distort(
    images: Tensor,
    generator: Generator,
    *,
    rotation: float,
    shear: float,
    width: Range,
    height: Range,
    shift: float,
    elastic: float,
    cells: int = 5,
    threshold: Range | None = None,
    contrast: Range = (1.0, 1.0),
) -> Tensor:
    """Distort each picture on its own; the functions below say what the strengths mean."""
    rows = len(images)
    theta = random_affine(rows, generator, rotation=rotation, shear=shear, width=width, height=height, shift=shift)
    grid = functional.affine_grid(theta, [rows, 1, SIZE, SIZE], align_corners=False)
    grid = grid + random_elastic(rows, generator, pixels=elastic, cells=cells)
    images = functional.grid_sample(images, grid, align_corners=False)
    if threshold is None:
        return images
    level = uniform(rows, threshold, generator).view(-1, 1, 1, 1)
    slope = uniform(rows, contrast, generator).view(-1, 1, 1, 1)
    return sharpen(images, level, slope)


def random_affine(
    rows: int, generator: Generator, *, rotation: float, shear: float, width: Range, height: Range, shift: float
) -> Tensor:
    """Return random `(rows, 2, 3)` matrices from output to input coordinates.

    `rotation` is in degrees, `shear` in pixels of slant per pixel of height, `shift` in pixels: each is drawn between
    minus and plus its value. `width` and `height` are ranges of scale.
    """
    angle = uniform(rows, (-rotation, rotation), generator) * (math.pi / 180)
    slant = uniform(rows, (-shear, shear), generator)
    x_scale = 1 / uniform(rows, width, generator)
    y_scale = 1 / uniform(rows, height, generator)
    move = 2 * shift / SIZE * (2 * torch.rand(rows, 2, generator=generator) - 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    # Rows of scale @ shear @ rotation: the last acts first on the output coordinates.
    x_row = torch.stack([x_scale * (cos + slant * sin), x_scale * (slant * cos - sin), move[:, 0]], 1)
    y_row = torch.stack([y_scale * sin, y_scale * cos, move[:, 1]], 1)
    return torch.stack([x_row, y_row], 1)


def random_elastic(rows: int, generator: Generator, *, pixels: float, cells: int) -> Tensor:
    """Return a random smooth displacement, `(rows, 28, 28, 2)` in grid coordinates.

    Noise with a standard deviation of `pixels` on `cells` x `cells` points is interpolated to every pixel, so
    neighbours move together and strokes bend without breaking.
    """
    noise = torch.randn(rows, 2, cells, cells, generator=generator) * (2 * pixels / SIZE)
    field = functional.interpolate(noise, (SIZE, SIZE), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def sharpen(images: Tensor, threshold: Tensor | float, contrast: Tensor | float) -> Tensor:
    """Give soft strokes crisp edges: a ramp of slope `contrast` that is 0.5 at `threshold`.

    A low threshold makes strokes thicker, a high one thinner.
    """
    return ((images - threshold) * contrast + 0.5).clamp(0, 1)


def uniform(rows: int, limits: Range, generator: Generator) -> Tensor:
    """Draw `rows` values evenly between `limits`."""
    low, high = limits
    return low + (high - low) * torch.rand(rows, generator=generator)
