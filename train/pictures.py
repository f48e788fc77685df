"""The pictures of a run: how it learnt and what it confuses."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from train.loop import Point

INK, ACCENT, SOFT = "#1f2933", "#c2410c", "#9aa5b1"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def learning_curve(curve: Sequence[Point], title: str) -> bytes:
    """Return a PNG of the error (1 - accuracy, on a logarithmic axis) on training and test images by epoch."""
    epochs = [point.epoch for point in curve]
    train = [max(1 - point.train_accuracy, 1e-4) for point in curve]
    test = [max(1 - point.test_accuracy, 1e-4) for point in curve]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.subplots()
        axes.semilogy(epochs, train, color=SOFT, marker="o", markersize=4)
        axes.semilogy(epochs, test, color=ACCENT, marker="o", markersize=4, linewidth=2)
        axes.annotate("training, distorted", (epochs[-1], train[-1]), (8, 0), textcoords="offset points", va="center")
        last = f"test: {1 - test[-1]:.2%} right"
        axes.annotate(last, (epochs[-1], test[-1]), (8, 0), textcoords="offset points", va="center", color=ACCENT)
        axes.set(xlabel="epochs", ylabel="wrong answers", title=title)
        axes.margins(x=0.28)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", color=SOFT, alpha=0.3)
        return _png(figure)


def confusion_counts(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return `(classes, classes)`: how often a label (row) was taken for a class (column)."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def confusion_matrix(counts: NDArray[np.int64], names: Sequence[str], title: str) -> bytes:
    """Return a PNG of the mistakes by label and answer; the diagonal shows the share that is right."""
    mistakes = counts * (1 - np.eye(len(counts), dtype=np.int64))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 6), layout="constrained")
        axes = figure.subplots()
        axes.imshow(mistakes, cmap="Oranges", vmax=max(mistakes.max() * 1.3, 1))
        for row, column in np.ndindex(*counts.shape):
            if row == column:
                share = counts[row, row] / max(counts[row].sum(), 1)
                axes.text(column, row, f"{share:.1%}", ha="center", va="center", color=SOFT, fontsize=9)
            elif counts[row, column]:
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=10)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="answer", ylabel="digit", title=title)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _png(figure)


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    # No date and no version inside: the same run gives the same file.
    figure.savefig(stream, format="png", dpi=130, metadata={"Software": None})
    return stream.getvalue()
