"""Bars and dots: how many, how good, how far apart.

Owns what compares numbers along one scale.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nuswide.reporting.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INCH_A_CHARACTER,
    ORANGE,
    SKY,
    add_legend,
    cut,
    new_figure,
    open_axis,
)

_BARS = (BLUE, ORANGE, GREEN, SKY, "#E69F00", "#CC79A7", GREY)
_MOST_LABELS = 200  # a bar each; more would not fit a picture file


def label_distribution(
    labels: Sequence[str], counts: Mapping[str, NDArray[np.int64]], most: int = _MOST_LABELS
) -> Figure:
    """Plot each label's images as bars, a panel for each split, most frequent labels on top.

    counts: split -> (C,) images with the label. most: so many labels are shown, the most frequent.
    """
    order = np.argsort(next(iter(counts.values())), kind="stable")[-most:]
    names = [cut(labels[i], 40) for i in order]
    width = 2.4 + 2.6 * len(counts) + INCH_A_CHARACTER * max(map(len, names))
    figure = new_figure(width, 1.2 + 0.19 * len(names))
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, (split, values) in zip(axes, counts.items(), strict=True):
        bars = axis.barh(np.arange(len(names)), values[order], color=BLUE)
        axis.bar_label(bars, padding=2, fontsize=7, color="#333333")
        axis.margins(x=0.15, y=0.01)
        axis.set_title(split, parse_math=False)
        axis.set_xlabel("images with the label")
        open_axis(axis)
    axes[0].set_yticks(np.arange(len(names)), names, fontsize=8, parse_math=False)
    if len(names) < len(labels):
        axes[0].set_ylabel(f"the {len(names)} most frequent of {len(labels)} labels")
    return figure


def metric_bars(bars: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Plot grouped bars: a group for each metric, a bar for each name.

    bars: name -> metric -> value in [0, 1].
    """
    metrics = list(dict.fromkeys(metric for values in bars.values() for metric in values))
    width = 0.8 / max(1, len(bars))
    figure = new_figure(max(6, 1.6 * len(metrics)), 4)
    axis = figure.subplots()
    for index, values in enumerate(bars.values()):
        heights = [values.get(metric, np.nan) for metric in metrics]
        x = np.arange(len(metrics)) - 0.4 + width * (index + 0.5)
        colour = _BARS[index % len(_BARS)]
        hatch = "" if index < len(_BARS) else "///"
        drawn = axis.bar(x, heights, width * 0.92, label=str(index), color=colour, hatch=hatch,
                        edgecolor="white", linewidth=0)  # fmt: skip
        if len(bars) <= 4:
            axis.bar_label(drawn, fmt="%.2f", fontsize=7, padding=1)
    axis.set_xticks(np.arange(len(metrics)), metrics)
    axis.set_ylim(0, 1.05)  # room for the number above a bar of 1
    axis.set_title(title, parse_math=False)
    open_axis(axis)
    add_legend(figure, list(bars))
    return figure


def prevalence_change(
    labels: Sequence[str],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Plot two shares of images for each label, joined by a line."""
    positions = np.arange(len(labels))[::-1]
    shown = [cut(label, 40) for label in labels]
    figure = new_figure(8, 1.4 + 0.2 * len(labels))
    axis = figure.subplots()
    axis.hlines(positions, before, after, color=GREY, linewidth=1)
    axis.plot(before, positions, "o", color=BLUE, label="before", markersize=5)
    axis.plot(after, positions, "D", color=ORANGE, label="after", markersize=5)
    axis.set_yticks(positions, shown, fontsize=8, parse_math=False)
    axis.set_xlim(left=0)
    axis.set_xlabel("share of images with the label")
    axis.margins(y=0.02)
    open_axis(axis)
    add_legend(figure, list(names))
    return figure


def interval_dots(
    intervals: Mapping[str, tuple[float, float, float]],
    others: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Plot a row for each metric: its value and interval, and other taggers' values as other signs.

    intervals: metric -> value, low, high. others: tagger -> metric -> value.
    """
    positions = np.arange(len(intervals))[::-1]
    values, lows, highs = np.array(list(intervals.values())).reshape(-1, 3).T
    figure = new_figure(8, 1.3 + 0.32 * len(intervals))
    axis = figure.subplots()
    axis.hlines(positions, 0, 1, color="#eeeeee", linewidth=1, zorder=0)
    errors = np.maximum([values - lows, highs - values], 0)
    handles: list[Any] = [
        axis.errorbar(values, positions, xerr=errors, fmt="o", color=BLUE, capsize=4)
    ]
    for metrics, sign, colour in zip(others.values(), "Ds^v", _BARS[1:], strict=False):
        shown = [metrics.get(key, np.nan) for key in intervals]
        handles += axis.plot(shown, positions, sign, color=colour, markersize=7, fillstyle="none")
    axis.set_yticks(positions, list(intervals), fontsize=9)
    axis.set(xlim=(-0.01, 1.01), ylim=(-0.6, len(intervals) - 0.4))
    open_axis(axis)
    add_legend(figure, ["this model, with its 95 % interval", *others], handles)
    return figure
