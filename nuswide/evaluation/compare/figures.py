"""Drawings of a comparison, a panel each, so that a page can lay them out to its width.

Owns what they look like. Computes no statistic. A verdict has a sign and a colour, an entrant a
colour and a dash or a marker, so that they can be told apart in print and by colour-blind readers.

    drawn = draw_all(comparison)  # "differences/map" -> picture
"""

import textwrap
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from nuswide.evaluation.compare.entrants import COSTS, Entrant
from nuswide.evaluation.compare.paired import Compared, Comparison, Estimate, Result
from nuswide.evaluation.evaluate import HEADLINE
from nuswide.reporting.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    new_figure,
    open_axis,
    to_image,
)
from nuswide.tracking.reader import fetch_curve

MOST_ENTRANTS = 24  # in one drawing
MOST_DETAILED = 6  # entrants whose labels are drawn
MOST_LABELS = 20
CURVES = ("train/loss", "val/map")
_STYLES = (
    (BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "D"), (SKY, ":", "^"),
    ("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "v"), ("#E69F00", (0, (8, 2)), "P"),
    ("#333333", (0, (1, 1)), "X"),
)  # fmt: skip
_OTHERS = ("#bbbbbb", "-", "o")  # those past the last style, unnamed
_VERDICTS = {
    "better": ("^", BLUE), "worse": ("v", ORANGE), "tie": ("o", GREY), "unknown": ("x", GREY),
}  # fmt: skip
_UNITS = {
    "train/images_per_s": "images/s in training", "train/seconds": "seconds of training",
    "model.parameters": "parameters",
}  # fmt: skip
_WIDTH = 4.9  # inches
_INK, _GRID = "#333333", "#e4e4e4"


def draw_all(comparison: Comparison) -> dict[str, Image.Image]:
    """Every drawing that there is something for: kind/what -> picture."""
    shown = list(zip(comparison.entrants, comparison.results, strict=True))
    paired = [(entrant, result) for entrant, result in shown if result.differences]
    drawn = {f"figures/{_file(name)}": draw_figure(name, shown) for name in HEADLINE}
    if paired:
        drawn |= {f"differences/{_file(name)}": draw_difference(name, paired) for name in HEADLINE}
    for place, (entrant, result) in enumerate(paired[:MOST_DETAILED], start=1):
        chosen = top_labels(comparison, result.labels or ())
        drawn[f"labels/{place}"] = draw_labels(entrant.name, chosen)
    curves, costs = ([k for k in keys if any(entrant.values(k) for entrant in comparison.entrants)]
                     for keys in (CURVES, COSTS))  # fmt: skip
    # What costs the same everywhere is in the table, and would be one line here.
    costs = [k for k in costs if len({entrant.mean(k) for entrant in comparison.entrants}) > 1]
    drawn |= {f"curves/{_file(key)}": draw_curves(key, comparison.entrants) for key in curves}
    drawn |= {f"cost/{_file(key)}": draw_cost(key, shown) for key in costs}
    return {name: to_image(figure) for name, figure in drawn.items()}


def _file(name: str) -> str:
    return name.replace("/", "_").replace(".", "_")


def draw_figure(name: str, shown: Sequence[tuple[Entrant, Result]]) -> Figure:
    """A figure of each entrant with its interval, and each seed's as a small ring."""
    shown = shown[:MOST_ENTRANTS]
    figure, axis = _lines([entrant.name for entrant, _ in shown])
    for place, (entrant, result) in enumerate(shown):
        if estimate := result.estimates.get(name):
            axis.hlines(place, estimate.low, estimate.high, color=_INK, linewidth=1.5)
            seeds = entrant.values(f"test/{name}") if len(entrant.runs) > 1 else []
            axis.plot(seeds, [place + 0.25] * len(seeds), "o", mfc="none", color=GREY, markersize=4)
            axis.plot(estimate.value, place, "D", color=BLUE, markersize=6)
    axis.set_title(f"{name} on test", fontsize=11)
    axis.margins(x=0.08)
    return figure


def draw_difference(name: str, shown: Sequence[tuple[Entrant, Result]]) -> Figure:
    """How much higher than the baseline's a figure of each entrant is, with the interval."""
    shown = shown[:MOST_ENTRANTS]
    figure, axis = _lines([entrant.name for entrant, _ in shown])
    for place, (_, result) in enumerate(shown):
        _whisker(axis, place, (result.differences or {})[name])
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -0.005), max(high, 0.005))
    axis.set_title(f"{name} less the baseline's", fontsize=11)
    _end_differences(figure, axis)
    return figure


def draw_labels(name: str, chosen: Sequence[tuple[str, int, Compared]]) -> Figure:
    """Differences of labels' average precision, each with the label's positives in brackets."""
    figure, axis = _lines([f"{label} ({count})" for label, count, _ in chosen], inches=0.25)
    for place, (_, _, compared) in enumerate(chosen):
        _whisker(axis, place, compared)
    title = textwrap.fill(f"{name}: AP less the baseline's", 60)
    axis.set_title(title, fontsize=10, parse_math=False)
    _end_differences(figure, axis)
    return figure


def _lines(names: Sequence[str], *, inches: float = 0.42) -> tuple[Figure, Axes]:
    """An axis with a line for each name, the first on top."""
    wrapped = ["\n".join(textwrap.wrap(n, 24, max_lines=4, placeholder=" …")) for n in names]
    most = max((name.count("\n") for name in wrapped), default=0)
    height = 1.3 + (inches + 0.1 * most) * max(2, len(names))
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


def _whisker(axis: Axes, place: float, compared: Compared) -> None:
    sign, colour = _VERDICTS[compared.verdict]
    axis.hlines(place, compared.low, compared.high, color=colour, linewidth=1.8)
    axis.plot(compared.value, place, sign, color=colour, markersize=7)


def _end_differences(figure: Figure, axis: Axes) -> None:
    axis.axvline(0, color=_INK, linewidth=1)
    words = {"better": "better", "worse": "worse", "tie": "no difference shown"}
    handles = [axis.plot([], [], _VERDICTS[v][0], color=_VERDICTS[v][1])[0] for v in words]
    figure.legend(handles, list(words.values()), loc="outside lower center", ncols=3, frameon=False,
                  fontsize=8, handletextpad=0.1, columnspacing=1.0)  # fmt: skip


def top_labels(
    comparison: Comparison, found: Sequence[Compared], most: int = MOST_LABELS
) -> list[tuple[str, int, Compared]]:
    """The labels of the greatest differences with their positives, the highest first."""
    rows = list(zip(comparison.labels, comparison.positives.tolist(), found, strict=True))
    known = [row for row in rows if np.isfinite(row[2].low)]
    chosen = sorted(known, key=lambda row: -abs(row[2].value))[:most]
    return sorted(chosen, key=lambda row: -row[2].value)


def draw_curves(key: str, entrants: Sequence[Entrant]) -> Figure:
    """A metric by step, a line for each run of the first entrants."""
    figure = new_figure(_WIDTH, 3.4)
    axis = figure.subplots()
    named: dict[str, Artist] = {}
    for entrant, (colour, dashes, _), is_named in _styled(entrants[:MOST_ENTRANTS]):
        for run in entrant.runs:
            steps, values = fetch_curve(run.info.run_id, key)
            if key == "val/map":  # its last point is the chosen weights', one step on
                steps, values = steps[:-1], values[:-1]
            (line,) = axis.plot(steps, values, linestyle=dashes, color=colour, linewidth=1.3,
                                zorder=3 if is_named else 1)  # fmt: skip
            if is_named and len(steps):
                named[entrant.name] = line
    axis.set_title(key, fontsize=11)
    axis.set_xlabel("step")
    _plain(axis)
    _add_names(figure, named)
    return figure


def draw_cost(key: str, shown: Sequence[tuple[Entrant, Result]]) -> Figure:
    """The mAP on test, with its interval, against a cost, a sign for each entrant."""
    figure = new_figure(_WIDTH, 3.4)
    axis = figure.subplots()
    estimates: list[Estimate | None] = [result.estimates.get("map") for _, result in shown]
    named: dict[str, Artist] = {}
    styled = _styled([entrant for entrant, _ in shown])
    for estimate, (entrant, (colour, _, sign), is_named) in zip(estimates, styled, strict=True):
        cost = entrant.mean(key)
        if estimate is not None and cost is not None:
            axis.vlines(cost, estimate.low, estimate.high, color=colour, linewidth=1.5)
            (point,) = axis.plot(cost, estimate.value, sign, color=colour, markersize=7)
            if is_named:
                named[entrant.name] = point
    axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axis.set_xlabel(_UNITS[key])
    axis.set_ylabel("map on test")
    axis.margins(x=0.15)
    axis.locator_params(axis="x", nbins=6)
    _plain(axis)
    _add_names(figure, named)
    return figure


def _styled(entrants: Sequence[Entrant]) -> Iterator[tuple[Entrant, tuple, bool]]:
    """Each entrant with its colour, dashes and sign, and whether these are its own."""
    for place, entrant in enumerate(entrants):
        is_named = place < len(_STYLES)
        yield entrant, _STYLES[place] if is_named else _OTHERS, is_named


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
