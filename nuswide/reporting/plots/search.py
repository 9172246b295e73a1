"""Plots of a hyperparameter search.

Owns the history, the parallel coordinates and the importance of what was searched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nuswide.reporting.plots.style import BLUE, GREY, ORANGE, cut, new_figure, open_axis

_WAYS = 60  # points of a curve between two axes


@dataclass(frozen=True)
class SearchAxis:
    """A searched field: each trial's position on it, from 0 to 1, and its tick labels."""

    name: str
    positions: Sequence[float]
    ticks: Mapping[str, float]


def search_history(
    trials: Sequence[int], values: Sequence[float], is_pruned: Sequence[bool]
) -> Figure:
    """Plot a dot for each trial, in order, and the best so far. values: higher is better."""
    figure = new_figure(8, 4)
    axis = figure.subplots()
    x, y, pruned = np.array(trials), np.array(values), np.array(is_pruned, dtype=bool)
    if (~pruned).any():
        best = np.maximum.accumulate(y[~pruned])
        axis.step(x[~pruned], best, where="post", color=ORANGE, linewidth=1.5, label="best so far")
        axis.plot(x[~pruned], y[~pruned], "o", color=BLUE, markersize=6, label="complete")
    if pruned.any():
        axis.plot(x[pruned], y[pruned], "X", color=GREY, markersize=6, label="pruned, as it stood")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(xlabel="trial", ylabel="mAP on val")
    open_axis(axis)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def parallel_coordinates(axes: Sequence[SearchAxis], values: Sequence[float], what: str) -> Figure:
    """Plot a line for each trial over an axis for each field, coloured by value, the best thick.

    values: (K,) of the trials, higher is better, named `what`.
    """
    figure = new_figure(2.5 + 1.6 * len(axes), 4.6)
    axis = figure.subplots()
    low, high = min(values), max(values)
    norm, colours = Normalize(low, high if high > low else low + 1e-9), colormaps["viridis_r"]
    last = [float(norm(value)) for value in values]
    positions = np.array([*(a.positions for a in axes), last])  # (A + 1, K)
    order = np.argsort(values, kind="stable")
    for trial in order:
        x, y = _curve(positions[:, trial])
        is_best = trial == order[-1]
        axis.plot(x, y, color=colours(norm(values[trial])), linewidth=3 if is_best else 1.2,
                  alpha=1 if is_best else 0.75, solid_capstyle="round")  # fmt: skip
    ticks = [*(a.ticks for a in axes), {f"{v:.3f}": float(norm(v)) for v in (low, high)}]
    for index, texts in enumerate(ticks):
        axis.axvline(index, color="#333333", linewidth=1, zorder=0)
        for text, height in texts.items():
            axis.plot([index - 0.02, index + 0.02], [height, height], color="#333333", linewidth=1)
            axis.text(
                index + 0.04, height, cut(text, 22), fontsize=8, va="center", parse_math=False,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6},
                zorder=5,
            )  # fmt: skip
    axis.set_xticks(range(len(ticks)), [*(cut(a.name, 22) for a in axes), what], parse_math=False)
    axis.set(yticks=[], xlim=(-0.1, len(axes) + 0.45), ylim=(-0.06, 1.06))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


def _curve(heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a smooth curve from axis to axis, level at each, so that crossing lines stay apart."""
    ways = np.linspace(0, 1, _WAYS)
    ease = (1 - np.cos(np.pi * ways)) / 2
    x = np.concatenate([index + ways for index in range(len(heights) - 1)])
    y = np.concatenate([a + (b - a) * ease for a, b in zip(heights, heights[1:], strict=False)])
    return x, y


def importance_bars(shares: Mapping[str, float]) -> Figure:
    """Plot a bar for each field: the share of the variance between trials that it explains."""
    ordered = sorted(shares.items(), key=lambda item: item[1])
    figure = new_figure(7, 1.3 + 0.35 * len(ordered))
    axis = figure.subplots()
    bars = axis.barh(range(len(ordered)), [share for _, share in ordered], color=BLUE)
    axis.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=9)
    names = [cut(name, 40) for name, _ in ordered]
    axis.set_yticks(range(len(ordered)), names, fontsize=9, parse_math=False)
    axis.set(
        xlim=(0, 1.08), xticks=[], xlabel="share of the variance of mAP between trials (fANOVA)"
    )
    open_axis(axis)
    axis.spines["bottom"].set_visible(False)
    return figure
