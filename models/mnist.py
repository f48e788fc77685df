"""The digit classifier: two convolutions and two dense layers, 421 642 weights."""

from torch import Tensor, nn


class MnistCNN(nn.Module):
    """`(rows, 1, 28, 28)`, light digits on black between 0 and 1 -> `(rows, 10)` logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of the ten digits for each image."""
        return self.layers(image)
