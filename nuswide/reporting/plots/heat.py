"""Heat maps of labels by labels.

Owns what has a row and a column a label.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nuswide.reporting.plots.style import cut, new_figure


def co_occurrence(labels: Sequence[str], together: NDArray[np.int64]) -> Figure:
    """Plot a heat map: of the images with the row's label, the share with the column's.

    together: (C, C) images that have both. Shows the 100 most frequent labels.
    """
    counts = np.diag(together)
    order = np.argsort(-counts, kind="stable")[:100]
    shares = together[np.ix_(order, order)] / np.maximum(counts[order, None], 1)
    np.fill_diagonal(shares, np.nan)
    names = [cut(labels[i], 30) for i in order]
    side = 2.5 + 0.17 * len(names)
    figure = new_figure(side + 1, side)
    axis = figure.subplots()
    axis.set_facecolor("#bbbbbb")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)  # by lightness, and sparing of ink
    size = 8 if len(names) < 50 else 7
    positions = np.arange(len(names))
    axis.set_xticks(positions, names, rotation=90, fontsize=size, parse_math=False)
    axis.set_yticks(positions, names, fontsize=size, parse_math=False)
    axis.set_xlabel("... have this label, too")
    axis.set_ylabel("of the images with this label ...")
    figure.colorbar(image, ax=axis, shrink=0.6, label="share of images")
    return figure


def co_confusion(
    missed: Sequence[str],
    predicted: Sequence[str],
    images: NDArray[np.int64],
    missed_images: NDArray[np.int64],
) -> Figure:
    """Plot a heat map: of the images that miss the row's label, the share with a wrong column.

    images: (R, K) images where both happen, written into the cells. missed_images: (R,).
    """
    shares = images / np.maximum(missed_images[:, None], 1)
    figure = new_figure(3.2 + 0.3 * len(predicted), 2.4 + 0.27 * len(missed))
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=max(shares.max(), 0.01), aspect="auto")
    rows = [f"{cut(n, 24)} ({m})" for n, m in zip(missed, missed_images, strict=True)]
    columns = [cut(name, 24) for name in predicted]
    axis.set_xticks(np.arange(len(columns)), columns, rotation=90, fontsize=8, parse_math=False)
    axis.set_yticks(np.arange(len(rows)), rows, fontsize=8, parse_math=False)
    for row, column in np.argwhere(images > 0):
        is_dark = shares[row, column] > 0.6 * shares.max()
        axis.text(column, row, str(images[row, column]), ha="center", va="center", fontsize=7,
                  color="white" if is_dark else "#222222")  # fmt: skip
    axis.set_xlabel("... this label is predicted wrongly")
    axis.set_ylabel("where this label is missed (images) ...")
    figure.colorbar(image, ax=axis, shrink=0.7, label="share of the row's images", format="{x:.0%}")
    return figure
