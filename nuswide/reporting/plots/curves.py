"""Curves and histograms of scores.

Owns precision and recall, histograms, reliability and AP by frequency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from numpy.typing import NDArray

from nuswide.reporting.plots.style import BLUE, GREY, ORANGE, SKY, cut, new_figure, open_axis

Floats = NDArray[np.float64]
_COLUMNS = 4
_SIGNS = ("o", "X", "s")  # one an operating point, so that colour is not needed
_TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


@dataclass(frozen=True)
class PrecisionRecall:
    """A panel: recall, precision (K,) rising in recall; the share that is positive; named points.

    points: name -> (recall, precision) at a threshold.
    """

    title: str
    recall: Floats
    precision: Floats
    share: float
    points: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Histogram:
    """A panel: the shares of positives and of negatives (B,) in each bin, and a threshold."""

    title: str
    positives: Floats
    negatives: Floats
    threshold: float | None


def precision_recall(panels: Sequence[PrecisionRecall]) -> Figure:
    """Plot precision over recall in panels, with the operating points marked."""
    figure, axes = _panels(len(panels), 2.5)
    for axis, panel in zip(axes, panels, strict=False):
        axis.axhline(panel.share, color=GREY, linewidth=1, linestyle=":")
        axis.step(panel.recall, panel.precision, where="pre", color=BLUE, linewidth=1.5)
        for sign, (x, y) in zip(_SIGNS, panel.points.values(), strict=False):
            axis.plot(x, y, sign, color=ORANGE, markersize=7, markeredgecolor="white")
        axis.set_title(panel.title, fontsize=9, parse_math=False)
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    _outer_labels(axes[: len(panels)], "recall", "precision")
    names = [*panels[0].points, "chance: the share of positives"]
    handles = [Line2D([], [], color=ORANGE, marker=sign, linestyle="") for sign in _SIGNS]
    handles = [*handles[: len(names) - 1], Line2D([], [], color=GREY, linestyle=":")]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def score_histograms(panels: Sequence[Histogram]) -> Figure:
    """Plot histograms of the scores of positives and negatives in panels, each adding up to 1."""
    figure, axes = _panels(len(panels), 2.3)
    for axis, panel in zip(axes, panels, strict=False):
        edges = np.linspace(0, 1, len(panel.positives) + 1)
        positives = axis.stairs(panel.positives, edges, color=SKY, fill=True)
        axis.stairs(panel.positives, edges, color=BLUE, linewidth=1.5)
        negatives = axis.stairs(
            panel.negatives, edges, color=ORANGE, hatch="////", fill=False, linewidth=1.5
        )
        if panel.threshold is not None:
            axis.axvline(panel.threshold, color="black", linewidth=1, linestyle="--")
        axis.set_title(panel.title, fontsize=9, parse_math=False)
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.5)
        axis.set(xlim=(0, 1), ylim=(0, 1.1))
        axis.yaxis.set_major_locator(FixedLocator([0, 0.01, 0.1, 1]))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axis.minorticks_off()
    _outer_labels(axes[: len(panels)], "score", "share of images")
    line = Line2D([], [], color="black", linewidth=1, linestyle="--")
    figure.legend(
        [positives, negatives, line], ["have the label", "lack it", "the label's threshold"],
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    return figure


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a grid of axes; surplus ones are hidden."""
    columns = min(_COLUMNS, max(1, count))
    rows = -(-count // columns)
    figure = new_figure(max(4.5, 2.6 * columns), height * rows + 0.5)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel())
    for axis in axes:
        open_axis(axis)
        axis.tick_params(labelsize=8)
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes


def _outer_labels(axes: Sequence[Axes], x: str, y: str) -> None:
    """Label the axes at the bottom and at the left of the grid."""
    for axis in axes[-_COLUMNS:]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(x, fontsize=9)
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel(y, fontsize=9)


def reliability(
    scores: Floats, shares: Floats, lows: Floats, highs: Floats, counts: NDArray[np.int64]
) -> Figure:
    """Plot the share of positives over the mean score of each bin, and the entries of each bin.

    scores, shares, lows, highs, counts: (B,) of bins of equal width; lows and highs bound shares.
    """
    figure = new_figure(6.5, 6.5)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    used = counts > 0
    top.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="calibrated")
    errors = np.maximum([(shares - lows)[used], (highs - shares)[used]], 0)
    top.errorbar(
        scores[used], shares[used], errors, fmt="o-", color=BLUE, capsize=3, linewidth=1.5,
        label="this model, with 95 % intervals",
    )  # fmt: skip
    top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is true")
    top.legend(frameon=False, fontsize=9, loc="upper left")
    edges = np.linspace(0, 1, len(counts) + 1)
    bars = bottom.bar(edges[:-1], counts, 1 / len(counts), align="edge", color=BLUE,
                      edgecolor="white")  # fmt: skip
    bottom.bar_label(bars, [short_count(n) for n in counts], fontsize=7, padding=1)
    bottom.set_yscale("symlog", linthresh=1)
    bottom.set_ylim(0, max(10, 8 * counts.max(initial=1)))
    bottom.yaxis.set_major_locator(FixedLocator([0, 10, 1000, 100_000, 10_000_000]))
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short_count(int(y))))
    bottom.minorticks_off()
    bottom.set(xlabel="score", ylabel="entries")
    for axis in (top, bottom):
        open_axis(axis)
    return figure


def short_count(n: int) -> str:
    """Write a count in few characters: 7, 950, 12k, 3.4M."""
    for unit, size in (("M", 1_000_000), ("k", 1000)):
        if n >= size:
            return f"{n / size:.2g}{unit}" if n < 10 * size else f"{n / size:.0f}{unit}"
    return str(n)


def precision_by_frequency(
    labels: Sequence[str], positives: NDArray[np.int64], precision: Floats, bounds: tuple[int, int]
) -> Figure:
    """Plot a dot for each label: average precision over its images in train. A few are named.

    positives: (C,) in train. precision: (C,) in [0, 1]. bounds: between rare, middling, frequent.
    """
    figure = new_figure(8, 4.6)
    axis = figure.subplots()
    axis.plot(positives, precision, "o", color=BLUE, markersize=5, alpha=0.7, markeredgewidth=0)
    axis.set_xscale("symlog", linthresh=1)
    most, least = max(10, int(positives.max(initial=1))), int(positives.min(initial=100))
    axis.set(xlim=(least * 0.8 - 0.2, most * 1.6), ylim=(-0.03, 1.08))
    axis.xaxis.set_major_locator(FixedLocator([0, *_TICKS]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{int(x):,}"))
    axis.minorticks_off()
    for bound in bounds:
        axis.axvline(bound, color=GREY, linewidth=1, linestyle=":")
    for i in _worth_naming(np.log10(positives + 1), precision):
        axis.annotate(cut(labels[i], 24), (positives[i], precision[i]), (4, 4), fontsize=8,
                      textcoords="offset points", parse_math=False)  # fmt: skip
    axis.set(xlabel="images with the label in train", ylabel="average precision")
    open_axis(axis)
    return figure


def _worth_naming(x: Floats, y: Floats) -> list[int]:
    """Return the best and worst of each third by x, and the most frequent, if names have room.

    The first of two that are near each other has it.
    """
    if not len(x):
        return []
    thirds = np.array_split(np.argsort(x, kind="stable"), min(3, len(x)))
    wanted = [int(third[pick(y[third])]) for third in thirds for pick in (np.argmax, np.argmin)]
    width = max(float(np.ptp(x)), 0.1)
    chosen: list[int] = []
    for i in [int(x.argmax()), *wanted]:
        if not any(abs(x[i] - x[j]) < width / 6 and abs(y[i] - y[j]) < 0.05 for j in chosen):
            chosen.append(i)
    return chosen
