"""The training loop of classifiers: AdamW, a one-cycle learning rate, fresh distortions for every batch."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional
from tqdm import tqdm

EVALUATION_ROWS = 128  # rows of one pass; more need memory that the kernel must clear each time
BAR = "{l_bar}{bar:24}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long and how fast to learn."""

    epochs: int
    batch_size: int
    learning_rate: float  # the peak, reached after WARM_UP of the steps
    weight_decay: float = 0.01
    label_smoothing: float = 0.0


WARM_UP = 0.2  # of all steps
EVALUATIONS = 10  # points of the learning curve, evenly spaced


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of the learning curve: the losses and accuracies (0 to 1) after `epoch` epochs."""

    epoch: float
    train_loss: float
    train_accuracy: float
    test_accuracy: float


def fit(
    network: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    schedule: Schedule,
    distort: Callable[[Tensor], Tensor],
    generator: Generator,
) -> list[Point]:
    """Train `network` in place and return the learning curve.

    `train` and `test` hold images, `(rows, channels, height, width)`, and labels, `(rows,)`, to learn from and to score
    with. `distort` makes a batch of pictures to learn from out of a batch of images. The order is drawn from
    `generator`: with the weights of `network` it decides the outcome.
    """
    images, labels = train
    network.train()
    steps = schedule.epochs * _batches(len(images), schedule.batch_size)
    optimizer = torch.optim.AdamW(
        network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
    )
    curve: list[Point] = []
    running = _Running()
    with tqdm(total=steps, desc="training", bar_format=BAR, mininterval=0.5) as bar:
        for step, rows in enumerate(_batch_rows(len(images), schedule, generator), start=1):
            logits = network(distort(images[rows]).contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=schedule.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cycle.step()
            running.add(loss.item(), (logits.argmax(1) == labels[rows]).float().mean().item())
            if step % math.ceil(steps / EVALUATIONS) == 0 or step == steps:
                curve.append(running.point(schedule.epochs * step / steps, accuracy(network, *test)))
            bar.update()
            bar.set_postfix_str(running.text(curve), refresh=False)
    return curve


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return the most probable class, `(rows,)`, of each image."""
    was_training = network.training
    network.eval()
    with torch.inference_mode():
        classes = torch.cat([network(part).argmax(1) for part in torch.split(images, EVALUATION_ROWS)])
    network.train(was_training)
    return classes


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share, 0 to 1, of `images` whose most probable class is their label."""
    return (predict(network, images) == labels).float().mean().item()


class _Running:
    """Loss and accuracy averaged over the steps since the last point of the curve."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._accuracies: list[float] = []

    def add(self, loss: float, accuracy: float) -> None:
        self._losses.append(loss)
        self._accuracies.append(accuracy)

    def point(self, epoch: float, test_accuracy: float) -> Point:
        steps = len(self._losses)
        point = Point(epoch, sum(self._losses) / steps, sum(self._accuracies) / steps, test_accuracy)
        self._losses.clear()
        self._accuracies.clear()
        return point

    def text(self, curve: list[Point]) -> str:
        test = f", test accuracy {curve[-1].test_accuracy:.2%}" if curve else ""
        if not self._losses:
            return f"loss {curve[-1].train_loss:.3f}{test}"
        steps = len(self._losses)
        return f"loss {sum(self._losses) / steps:.3f}, accuracy {sum(self._accuracies) / steps:.2%}{test}"


def _batches(rows: int, batch_size: int) -> int:
    return max(1, rows // batch_size)


def _batch_rows(rows: int, schedule: Schedule, generator: Generator) -> Iterator[Tensor]:
    """Give the row numbers of each batch, every epoch in a new order; the rest that fills no batch waits its turn."""
    for _ in range(schedule.epochs):
        order = torch.randperm(rows, generator=generator)
        yield from torch.split(order, schedule.batch_size)[: _batches(rows, schedule.batch_size)]
