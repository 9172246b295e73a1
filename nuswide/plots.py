"""Figures from arrays.

Owns how things look: colours that colour-blind people can tell apart, with a sign beside each
colour. Never computes a metric, nor saves a file. Long names are cut, and a $ in a name stays one:
none is read as mathematics.

    run.log_figure(label_distribution(labels, {"train": counts}), "labels/distribution.png")
"""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, GREY, SKY = "#0072B2", "#D55E00", "#009E73", "#767676", "#56B4E9"
_BARS = (BLUE, ORANGE, GREEN, SKY, "#E69F00", "#CC79A7", GREY)
_MOST_LABELS = 200  # a bar each; more would not fit a picture file
_INCH_A_CHARACTER = 0.075
_LINE_POINTS = 14.5  # from one line of a caption to the next


def label_distribution(labels: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> Figure:
    """Bars of each label's images, a panel a split, most frequent in the first split on top.

    counts: split -> (C,) images with the label. Shows the 200 most frequent labels.
    """
    order = np.argsort(next(iter(counts.values())), kind="stable")[-_MOST_LABELS:]
    names = [_cut(labels[i], 40) for i in order]
    width = 2.4 + 2.6 * len(counts) + _INCH_A_CHARACTER * max(map(len, names))
    figure = Figure(figsize=(width, 1.2 + 0.19 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, (split, values) in zip(axes, counts.items(), strict=True):
        bars = axis.barh(np.arange(len(names)), values[order], color=BLUE)
        axis.bar_label(bars, padding=2, fontsize=7, color="#333333")
        axis.margins(x=0.15, y=0.01)
        axis.set_title(split, parse_math=False)
        axis.set_xlabel("images with the label")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(np.arange(len(names)), names, fontsize=8, parse_math=False)
    if len(names) < len(labels):
        axes[0].set_ylabel(f"the {len(names)} most frequent of {len(labels)} labels")
    return figure


def prediction_grid(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    targets: NDArray[np.uint8],
    scores: NDArray[np.float32],
    thresholds: float | NDArray[np.floating],
    title: str,
) -> Figure:
    """Pictures with their labels below: found, missed and wrongly predicted.

    images: (N, 3, H, W). targets, scores: (N, C). thresholds: one, or (C,).
    """
    columns = min(4, max(2, len(images)))  # two at least, or the title would not fit
    rows = -(-len(images) // columns)
    captions = [
        _caption(labels, target > 0, score >= thresholds)
        for target, score in zip(targets, scores, strict=True)
    ]
    n_lines = [sum(text.count("\n") + 1 for text, _ in caption) for caption in captions]
    heights = [
        2.95 + _LINE_POINTS / 72 * max(n_lines[r * columns : (r + 1) * columns])
        for r in range(rows)
    ]
    figure = Figure(figsize=(3 * columns, sum(heights) + 0.7), layout="constrained", dpi=80)
    key = "✓ found    + predicted, but not true    − true, but missed"
    figure.suptitle(f"{_cut(title, 32 * columns)}\n{key}", fontsize=11, parse_math=False)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.axis("off")
        axis.set_anchor("N")
    for axis, image, caption in zip(axes, images, captions, strict=False):
        axis.imshow(image.transpose(1, 2, 0))
        _write_caption(axis, caption)
    return figure


def _caption(
    labels: Sequence[str], true: NDArray[np.bool_], predicted: NDArray[np.bool_]
) -> list[tuple[str, str]]:
    """The found, wrong and missed labels of a picture, each as (wrapped text, colour)."""
    outcomes = (("✓", true & predicted, BLUE), ("+", predicted & ~true, ORANGE),
                ("−", true & ~predicted, GREY))  # fmt: skip
    caption = []
    for sign, chosen, colour in outcomes:
        if chosen.any():
            names = ", ".join(label for label, here in zip(labels, chosen, strict=True) if here)
            lines = textwrap.wrap(f"{sign} {names}", 32, max_lines=3, placeholder=" …")
            caption.append(("\n".join(lines), colour))
    return caption


def _write_caption(axis: Axes, caption: list[tuple[str, str]]) -> None:
    y_points = -4.0
    for text, colour in caption:
        axis.annotate(text, (0, 0), (0, y_points), xycoords="axes fraction", color=colour,
                      textcoords="offset points", fontsize=11, va="top", parse_math=False,
                      in_layout=False)  # fmt: skip
        y_points -= _LINE_POINTS * (text.count("\n") + 1)


def metric_bars(figures: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Grouped bars: a group a metric, a bar a name; name -> metric -> value in [0, 1]."""
    metrics = list(dict.fromkeys(metric for values in figures.values() for metric in values))
    width = 0.8 / max(1, len(figures))
    figure = Figure(figsize=(max(6, 1.6 * len(metrics)), 4), layout="constrained")
    axis = figure.subplots()
    for place, values in enumerate(figures.values()):
        heights = [values.get(metric, np.nan) for metric in metrics]
        x = np.arange(len(metrics)) - 0.4 + width * (place + 0.5)
        colour = _BARS[place % len(_BARS)]
        hatch = "" if place < len(_BARS) else "///"
        bars = axis.bar(x, heights, width * 0.92, label=str(place), color=colour, hatch=hatch,
                        edgecolor="white", linewidth=0)  # fmt: skip
        if len(figures) <= 4:
            axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
    axis.set_xticks(np.arange(len(metrics)), metrics)
    axis.set_ylim(0, 1.05)  # room for the number above a bar of 1
    axis.set_title(title, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, list(figures))
    return figure


def _add_legend(figure: Figure, names: list[str]) -> None:
    """Put the names below the figure, in as many columns as their length allows, three at most."""
    fitting = int(figure.get_figwidth() / _INCH_A_CHARACTER)
    shown = [_cut(name, fitting - 8) for name in names]
    columns = min(3, max(1, fitting // (max(map(len, shown), default=0) + 8)))
    figure.set_figheight(figure.get_figheight() + 0.18 * (len(shown) // columns))
    legend = figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(name)  # only here: matplotlib leaves out labels that begin with _
        text.set_parse_math(False)


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def co_occurrence(labels: Sequence[str], together: NDArray[np.int64]) -> Figure:
    """Heat map: of the images with the row's label, the share that has the column's, too.

    together: (C, C) images that have both. Shows the 100 most frequent labels.
    """
    counts = np.diag(together)
    order = np.argsort(-counts, kind="stable")[:100]
    shares = together[np.ix_(order, order)] / np.maximum(counts[order, None], 1)
    np.fill_diagonal(shares, np.nan)
    names = [_cut(labels[i], 30) for i in order]
    side = 2.5 + 0.17 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    axis.set_facecolor("#bbbbbb")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)  # by lightness, and sparing of ink
    size = 8 if len(names) < 50 else 7
    places = np.arange(len(names))
    axis.set_xticks(places, names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(places, names, fontsize=size, parse_math=False)
    axis.set_xlabel("... have this label, too")
    axis.set_ylabel("of the images with this label ...")
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of images")
    return figure


def prevalence_change(
    labels: Sequence[str],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Two shares of images a label, joined by a line, so that a change is seen at once."""
    places = np.arange(len(labels))[::-1]
    shown = [_cut(label, 40) for label in labels]
    figure = Figure(figsize=(8, 1.4 + 0.2 * len(labels)), layout="constrained")
    axis = figure.subplots()
    axis.hlines(places, before, after, color=GREY, linewidth=1)
    axis.plot(before, places, "o", color=BLUE, label="before", markersize=5)
    axis.plot(after, places, "D", color=ORANGE, label="after", markersize=5)
    axis.set_yticks(places, shown, fontsize=8, parse_math=False)
    axis.set_xlim(left=0)
    axis.set_xlabel("share of images with the label")
    axis.margins(y=0.02)
    axis.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, list(names))
    return figure


def pair_sheet(
    firsts: NDArray[np.uint8], seconds: NDArray[np.uint8], captions: Sequence[str]
) -> Figure:
    """Pictures (N, 3, S, S) side by side with their partners, a caption below each pair."""
    columns = min(3, max(2, len(captions)))
    rows = -(-len(captions) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), layout="constrained", dpi=80)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, first, second, caption in zip(axes, firsts, seconds, captions, strict=False):
        gap = np.full((first.shape[1], max(1, first.shape[2] // 20), 3), 255, dtype=np.uint8)
        axis.imshow(np.hstack([first.transpose(1, 2, 0), gap, second.transpose(1, 2, 0)]))
        lines = [_cut(line, 44) for line in caption.splitlines()]
        axis.set_title("\n".join(lines), fontsize=9, y=0, va="top", pad=-4, parse_math=False)
    return figure
