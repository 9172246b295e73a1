"""Plots of a comparison, a panel each, so that a page can lay them out to its width.

Owns the look of models side by side. A verdict has a sign and a colour, a model a colour and a dash
or a marker, so that they can be told apart in print and by colour-blind readers.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from nuswide.reporting.plots.style import BLUE, GREEN, GREY, ORANGE, SKY, new_figure, open_axis

_Model = TypeVar("_Model")
Curve = tuple[NDArray[np.int64], NDArray[np.float64]]  # steps, values
_STYLES = (
    (BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "D"), (SKY, ":", "^"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#E69F00", (0, (8, 2)), "P"),
    ("#333333", (0, (1, 1)), "X"),
)  # fmt: skip
_OTHERS = ("#bbbbbb", "-", "o")  # those past the last style, unnamed
_VERDICTS = {
    "better": ("^", BLUE), "worse": ("v", ORANGE), "tie": ("o", GREY), "unknown": ("x", GREY),
}  # fmt: skip
_LEAST_SPAN = 0.005  # a smaller difference is not drawn larger
_WIDTH = 4.9  # inches
_INK, _GRID = "#333333", "#e4e4e4"


@dataclass(frozen=True)
class IntervalRow:
    """A value with its interval, NaN if there is none, under a name.

    verdict: better, worse, tie or unknown, of a difference. seeds: the values of single runs.
    """

    name: str
    value: float
    low: float
    high: float
    verdict: str = "unknown"
    seeds: Sequence[float] = ()


def metric_intervals(rows: Sequence[IntervalRow], title: str) -> Figure:
    """Plot each model's metric with its interval, and each seed's as a small ring."""
    figure, axis = _rows_axis([row.name for row in rows])
    for index, row in enumerate(rows):
        axis.hlines(index, row.low, row.high, color=_INK, linewidth=1.5)
        seeds = list(row.seeds)
        axis.plot(seeds, [index + 0.25] * len(seeds), "o", mfc="none", color=GREY, markersize=4)
        axis.plot(row.value, index, "D", color=BLUE, markersize=6)
    axis.set_title(title, fontsize=11)
    axis.margins(x=0.08)
    return figure


def difference_intervals(
    rows: Sequence[IntervalRow], title: str, *, row_inches: float = 0.42
) -> Figure:
    """Plot differences from a baseline with their intervals, marked by their verdicts."""
    figure, axis = _rows_axis([row.name for row in rows], row_inches)
    for index, row in enumerate(rows):
        sign, colour = _VERDICTS[row.verdict]
        axis.hlines(index, row.low, row.high, color=colour, linewidth=1.8)
        axis.plot(row.value, index, sign, color=colour, markersize=7)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -_LEAST_SPAN), max(high, _LEAST_SPAN))
    axis.set_title(textwrap.fill(title, 60), fontsize=10, parse_math=False)
    axis.axvline(0, color=_INK, linewidth=1)
    words = {"better": "better", "worse": "worse", "tie": "no difference shown"}
    handles = [axis.plot([], [], _VERDICTS[v][0], color=_VERDICTS[v][1])[0] for v in words]
    figure.legend(handles, list(words.values()), loc="outside lower center", ncols=3, frameon=False,
                  fontsize=8, handletextpad=0.1, columnspacing=1.0)  # fmt: skip
    return figure


def _rows_axis(names: Sequence[str], row_inches: float = 0.42) -> tuple[Figure, Axes]:
    """An axis with a row for each name, the first on top."""
    wrapped = ["\n".join(textwrap.wrap(n, 24, max_lines=4, placeholder=" …")) for n in names]
    most = max((name.count("\n") for name in wrapped), default=0)
    height = 1.3 + (row_inches + 0.1 * most) * max(2, len(names))
    figure = new_figure(_WIDTH, height)
    axis = figure.subplots()
    axis.set_yticks(np.arange(len(names)), wrapped, fontsize=9, parse_math=False)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.locator_params(axis="x", nbins=6)
    _plain(axis)
    axis.grid(visible=False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    return figure, axis


def _plain(axis: Axes) -> None:
    open_axis(axis)
    axis.grid(color=_GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def learning_curves(curves: Mapping[str, Sequence[Curve]], title: str) -> Figure:
    """Plot a metric by step. curves: model -> a curve for each of its runs."""
    figure = new_figure(_WIDTH, 3.4)
    axis = figure.subplots()
    named: dict[str, Artist] = {}
    for (name, runs), (colour, dashes, _), is_named in _styled(list(curves.items())):
        for steps, values in runs:
            (line,) = axis.plot(steps, values, linestyle=dashes, color=colour, linewidth=1.3,
                                zorder=3 if is_named else 1)  # fmt: skip
            if is_named and len(steps):
                named[name] = line
    axis.set_title(title, fontsize=11)
    axis.set_xlabel("step")
    _plain(axis)
    _add_names(figure, named)
    return figure


def cost_points(
    costs: Sequence[float | None], rows: Sequence[IntervalRow], cost: str, metric: str
) -> Figure:
    """Plot a metric with its interval against a cost. costs: None for not recorded."""
    figure = new_figure(_WIDTH, 3.4)
    axis = figure.subplots()
    named: dict[str, Artist] = {}
    for (x, row), (colour, _, sign), is_named in _styled(list(zip(costs, rows, strict=True))):
        if x is not None and not np.isnan(row.value):
            axis.vlines(x, row.low, row.high, color=colour, linewidth=1.5)
            (point,) = axis.plot(x, row.value, sign, color=colour, markersize=7)
            if is_named:
                named[row.name] = point
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.set_xlabel(cost)
    axis.set_ylabel(metric)
    axis.margins(x=0.15)
    axis.locator_params(axis="x", nbins=6)
    _plain(axis)
    _add_names(figure, named)
    return figure


def _styled(models: Sequence[_Model]) -> Iterator[tuple[_Model, tuple, bool]]:
    """Each model with its colour, dashes and sign, and whether these are its own."""
    for index, model in enumerate(models):
        is_named = index < len(_STYLES)
        yield model, _STYLES[index] if is_named else _OTHERS, is_named


def _add_names(figure: Figure, named: dict[str, Artist]) -> None:
    """Put the names below, one a line."""
    if not named:
        return
    shown = ["\n".join(textwrap.wrap(n, 62, max_lines=2, placeholder=" …")) for n in named]
    lines = sum(name.count("\n") + 1 for name in shown)
    figure.set_figheight(figure.get_figheight() + 0.19 * lines)
    legend = figure.legend(list(named.values()), [str(i) for i in range(len(shown))], fontsize=8,
                           frameon=False, loc="outside lower left", handlelength=3)  # fmt: skip
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(name)  # only here: matplotlib leaves out labels that begin with _
        text.set_parse_math(False)
