"""Sheets of pictures with captions.

Owns what shows photographs.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nuswide.reporting.plots.style import BLUE, GREY, ORANGE, cut, new_figure

_DPI = 80  # enough for a picture as the network sees it
_LINE_POINTS = 14.5  # from one line of a caption to the next


def prediction_grid(
    images: NDArray[np.uint8],
    labels: Sequence[str],
    targets: NDArray[np.uint8],
    scores: NDArray[np.float32],
    thresholds: float | NDArray[np.floating],
    title: str,
) -> Figure:
    """Plot images with their labels below: found, missed and wrongly predicted.

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
    figure = new_figure(3 * columns, sum(heights) + 0.7, _DPI)
    key = "✓ found    + predicted, but not true    − true, but missed"
    figure.suptitle(f"{cut(title, 32 * columns)}\n{key}", fontsize=11, parse_math=False)
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
    """Return the found, wrong and missed labels of an image, each as (wrapped text, colour)."""
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


def pair_sheet(
    firsts: NDArray[np.uint8], seconds: NDArray[np.uint8], captions: Sequence[str]
) -> Figure:
    """Plot images (N, 3, S, S) beside their partners, a caption below each pair."""
    columns = min(3, max(2, len(captions)))
    rows = -(-len(captions) // columns)
    figure = new_figure(4.2 * columns, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, first, second, caption in zip(axes, firsts, seconds, captions, strict=False):
        gap = np.full((first.shape[1], max(1, first.shape[2] // 20), 3), 255, dtype=np.uint8)
        axis.imshow(np.hstack([first.transpose(1, 2, 0), gap, second.transpose(1, 2, 0)]))
        lines = [cut(line, 44) for line in caption.splitlines()]
        axis.set_title("\n".join(lines), fontsize=9, y=0, va="top", pad=-4, parse_math=False)
    return figure


def picture_sheet(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> Figure:
    """Plot images (3, H, W), four in a row, with the lines of a caption below each."""
    columns = min(4, max(2, len(images)))
    rows = -(-len(images) // columns)
    texts = [
        [line for text in caption.splitlines() for line in textwrap.wrap(text, 36) or [""]]
        for caption in captions
    ]
    deep = [max(map(len, texts[r * columns : (r + 1) * columns])) for r in range(rows)]
    heights = [3.1 + 0.165 * lines for lines in deep]
    figure = new_figure(3 * columns, sum(heights), _DPI)
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights).ravel()
    for axis in axes:
        axis.set_axis_off()
        axis.set_anchor("N")
    for axis, image, lines in zip(axes, images, texts, strict=False):
        axis.imshow(image.transpose(1, 2, 0))
        axis.annotate("\n".join(lines), (0, 0), (0, -4), xycoords="axes fraction", va="top",
                      textcoords="offset points", fontsize=9, parse_math=False,
                      in_layout=False)  # fmt: skip
    return figure
