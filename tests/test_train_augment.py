import torch

from train.augment import BOX, SIZE, distort, sharpen, upscale_digits
from train.mnist import EMBEDDED_RECIPE, MNIST_RECIPE

STILL = {"rotation": 0.0, "shear": 0.0, "width": (1.0, 1.0), "height": (1.0, 1.0), "shift": 0.0, "elastic": 0.0}


def square() -> torch.Tensor:
    """A square of 8x8 pixels in the middle."""
    image = torch.zeros(1, 1, SIZE, SIZE)
    image[:, :, 10:18, 10:18] = 1
    return image


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centre(image: torch.Tensor) -> tuple[float, float]:
    """The centre of mass in pixels: row, column."""
    positions = torch.arange(SIZE).float()
    mass = image.sum()
    return (image.sum(1) @ positions / mass).item(), (image.sum(0) @ positions / mass).item()


def test_without_strength_nothing_changes() -> None:
    assert torch.allclose(distort(square(), seeded(), **STILL), square(), atol=1e-5)


def test_the_same_generator_gives_the_same_pictures() -> None:
    images = square().repeat(8, 1, 1, 1)
    for recipe in (MNIST_RECIPE, EMBEDDED_RECIPE):
        first = distort(images, seeded(1), **recipe.distortion)
        assert torch.equal(first, distort(images, seeded(1), **recipe.distortion))
        assert not torch.equal(first, distort(images, seeded(2), **recipe.distortion))
        assert first.shape == images.shape and 0 <= first.min() and first.max() <= 1
        assert len({image.sum().item() for image in first}) == 8  # each picture on its own


def test_a_shift_moves_by_at_most_its_pixels() -> None:
    moved = distort(square().repeat(200, 1, 1, 1), seeded(), **STILL | {"shift": 3.0})
    rows = torch.tensor([centre(image[0])[0] for image in moved]) - 13.5
    assert 2.5 < rows.abs().max() <= 3.01
    assert rows.min() < -2 and rows.max() > 2


def test_width_and_height_scale_their_side() -> None:
    wide = distort(square(), seeded(), **STILL | {"width": (2.0, 2.0)})[0, 0]
    assert (wide.amax(0) > 0.5).sum() == 16 and (wide.amax(1) > 0.5).sum() == 8
    flat = distort(square(), seeded(), **STILL | {"height": (0.5, 0.5)})[0, 0]
    assert (flat.amax(0) > 0.5).sum() == 8 and (flat.amax(1) > 0.5).sum() == 4


def test_a_rotation_keeps_the_ink() -> None:
    turned = distort(square().repeat(50, 1, 1, 1), seeded(), **STILL | {"rotation": 45.0})
    assert torch.allclose(turned.sum(dim=(1, 2, 3)), torch.tensor(64.0), rtol=0.03)
    assert max((image[0].amax(0) > 0.5).sum() for image in turned) >= 10  # the diagonal of the square


def test_sharpening_makes_a_ramp_at_the_threshold() -> None:
    assert sharpen(torch.tensor([0.0, 0.4, 0.5, 1.0]), 0.4, 5.0).tolist() == [0.0, 0.5, 1.0, 1.0]


def test_small_digits_become_pictures_like_those_of_mnist() -> None:
    digits = torch.zeros(1, 8, 8)
    digits[0, 1:7, 0:2] = 16  # a bar at the left edge
    image = upscale_digits(digits)[0, 0]
    assert image.shape == (SIZE, SIZE) and image.max() <= 1
    row, column = centre(image)
    assert abs(row - 13.5) < 0.3 and abs(column - 13.5) < 0.3
    assert abs((image.amax(1) > 0.5).sum() - BOX * 6 / 8) <= 1
