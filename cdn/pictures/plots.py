"""Plot the curves of a training run and the reliability of its probabilities."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cdn.errors import CDNError
from cdn.evaluation.metrics import Reliability, reliability
from cdn.pictures.style import BLUE, GREY, ORANGE, SEQUENCE, named, save, tidy
from cdn.run_folder.journal import read_rows

# Width of the smoothing window, as a share of the run.
SMOOTHING = 0.02
# The accuracy of fewer images than this is not worth a point.
FEWEST = 10

# A row of metrics.jsonl.
Row = dict[str, Any]
# Steps and values, float [n, 2], their colour and their label.
Line = tuple[np.ndarray, str, str]


def curves_picture(metrics_path: str | Path, path: str | Path) -> None:
    """Plot the training losses, the accuracies and the gain of denoising of one run.

    Args:
        metrics_path: ``metrics.jsonl``: one JSON object per line, of kind "train" or "evaluation", with a
            step. A torn last line is ignored, and so is what a row lacks.
        path: the picture, .png, .pdf or .svg.

    Raises:
        CDNError: the file cannot be read or holds nothing to plot.
    """
    rows = read_rows(metrics_path)
    train = [row for row in rows if row.get("kind") == "train"]
    evaluation = [row for row in rows if row.get("kind") == "evaluation"]
    accuracies = _by_sigma(evaluation, "accuracy", "accuracy_sigma_")
    panels: list[tuple[str, list[Line], Callable[[Axes, list[Line]], None]]] = [
        (
            "training loss",
            [
                (_series(train, "classification"), BLUE, "cross-entropy (nats)"),
                (_series(train, "denoising"), ORANGE, "denoising (identity = 1)"),
            ],
            _draw_losses,
        ),
        (
            "test accuracy (%)",
            [(_scaled(_series(evaluation, key), 100), color, label) for key, color, label in accuracies],
            _draw_lines,
        ),
        (
            "test PSNR, gain over noisy (dB)",
            [(_gain(evaluation, key), color, label) for key, color, label in _by_sigma(evaluation, None, "psnr_")],
            _draw_lines,
        ),
    ]
    panels = [(title, [line for line in lines if line[0].size], draw) for title, lines, draw in panels]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise CDNError(f"{metrics_path}: expected rows of losses or evaluations, found none")
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for axes, (title, lines, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        draw(axes, lines)
        tidy(axes, title=title, xlabel="step")
        axes.legend(frameon=False, fontsize=8)
    save(figure, path)


def reliability_picture(probabilities: Tensor, labels: Tensor, path: str | Path, bins: int = 15) -> None:
    """Plot accuracy against confidence, and how often each confidence occurs.

    Args:
        probabilities: [N, classes].
        labels: int64 [N].
        path: the picture, .png, .pdf or .svg.
        bins: number of bins of equal width over [0, 1].
    """
    data = reliability(probabilities, labels, bins)
    used = (data.count > 0).numpy()
    centre = (np.arange(bins) + 0.5) / bins
    figure = Figure(figsize=(4.2, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    above.bar(centre[used], data.accuracy.numpy()[used], 0.94 / bins, color=BLUE, label="accuracy")
    above.plot(
        data.confidence.numpy()[used],
        data.accuracy.numpy()[used],
        "o",
        color=ORANGE,
        markersize=4,
        label="at the mean confidence",
    )
    tidy(above, title=f"calibration error {data.error():.3f}", ylabel="accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False, fontsize=8, loc="upper left")
    below.bar(centre, data.count.numpy() / len(labels), 0.94 / bins, color=GREY)
    tidy(below, xlabel="confidence", ylabel="share of images")
    figure.align_ylabels()
    save(figure, path)


def reliability_comparison(runs: Mapping[str, Reliability], path: str | Path) -> None:
    """Plot the reliability of several models: accuracy against confidence, and how often each confidence occurs.

    Args:
        runs: a dict from names to :class:`cdn.evaluation.metrics.Reliability`.
        path: the picture, .png, .pdf or .svg.
    """
    figure = Figure(figsize=(5.4, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.2))
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfectly calibrated")
    for number, (name, data) in enumerate(runs.items()):
        used, color = (data.count >= FEWEST).numpy(), f"C{number}"
        label = f"{name}: error {data.error():.3f}"
        above.plot(
            data.confidence.numpy()[used],
            data.accuracy.numpy()[used],
            "o-",
            color=color,
            markersize=3.5,
            linewidth=1.3,
            label=named(label),
        )
        share = data.count.numpy() / max(int(data.count.sum()), 1)
        below.stairs(share, np.linspace(0, 1, len(share) + 1), color=color, linewidth=1.3)
    tidy(above, title=f"calibration on clean test images, in bins of at least {FEWEST} images", ylabel="accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1))
    above.legend(frameon=False, fontsize=8, loc="lower right")
    below.set_yscale("log")
    tidy(below, xlabel="confidence (probability of the class that is named)", ylabel="share of images")
    figure.align_ylabels()
    save(figure, path)


def _series(rows: Sequence[Row], key: str) -> np.ndarray:
    """Return [n, 2]: steps and finite values of a key."""
    pairs = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return np.array([pair for pair in pairs if math.isfinite(pair[1])], dtype=float).reshape(-1, 2)


def _scaled(series: np.ndarray, factor: float) -> np.ndarray:
    return series * (1, factor)


def _gain(rows: Sequence[Row], key: str) -> np.ndarray:
    noisy = key.replace("psnr_", "psnr_noisy_")
    return _series(
        [
            row | {"gain": row[key] - row[noisy]}
            for row in rows
            if row.get(key) is not None and row.get(noisy) is not None
        ],
        "gain",
    )


def _by_sigma(rows: Sequence[Row], clean: str | None, prefix: str) -> list[tuple[str, str, str]]:
    """Return (key, colour, label) of the clean figure, unless None, and of each noise level found."""
    suffixes = {key.removeprefix(prefix) for row in rows for key in row if key.startswith(prefix)}
    sigmas = sorted((s for s in suffixes if s.replace(".", "").isdigit()), key=float)
    keys = [(clean, "clean")] + [(prefix + s, f"σ = {s}/255") for s in sigmas]
    # A noise level has the same colour in every panel, whether or not the panel has clean images.
    return [(key, SEQUENCE[i % len(SEQUENCE)], label) for i, (key, label) in enumerate(keys) if key]


def _draw_losses(axes: Axes, lines: Sequence[Line]) -> None:
    for series, color, label in lines:
        width = max(1, round(SMOOTHING * len(series)))
        axes.plot(*series.T, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(series[:, 0], _smooth(series[:, 1], width), color=color, linewidth=1.8, label=named(label))
    axes.set_yscale("log")


def _draw_lines(axes: Axes, lines: Sequence[Line]) -> None:
    for series, color, label in lines:
        axes.plot(*series.T, "o-", color=color, markersize=3, linewidth=1.5, label=named(label))


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Average over a centred window, which shrinks at both ends."""
    ones = np.ones(2 * width + 1)
    return np.convolve(values, ones)[width:-width] / np.convolve(np.ones(len(values)), ones)[width:-width]
