"""Shared style of all plots: layout, pixels, colours, legends and the cutting of long names.

figure = new_figure(8, 4)
figure.subplots().set_title(cut(name, 40), parse_math=False, color=BLUE)
to_image(figure).save("figure.png")
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nuswide.reporting.plots.fonts import add_fonts

# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, GREY, SKY = "#0072B2", "#D55E00", "#009E73", "#767676", "#56B4E9"
INCH_A_CHARACTER = 0.075
_DPI = 130


def new_figure(width: float, height: float, dpi: int = _DPI) -> Figure:
    """Return an empty figure with constrained layout. width, height: in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def to_image(figure: Figure) -> Image.Image:
    """Return the figure's pixels, with their dpi.

    Laid out and drawn in one pass; savefig takes two.
    """
    add_fonts(figure)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # one for each character
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.info["dpi"] = (figure.dpi, figure.dpi)
    return image


def open_axis(axis: Axes) -> None:
    """Hide the top and right spines."""
    axis.spines[["top", "right"]].set_visible(False)


def add_legend(figure: Figure, names: list[str], handles: Sequence[Any] | None = None) -> None:
    """Put the names below the figure, in as many columns as their length allows, three at most."""
    fitting = int(figure.get_figwidth() / INCH_A_CHARACTER)
    shown = [cut(name, fitting - 8) for name in names]
    columns = min(3, max(1, fitting // (max(map(len, shown), default=0) + 8)))
    figure.set_figheight(figure.get_figheight() + 0.18 * (len(shown) // columns))
    if handles is None:
        handles = [handle for axis in figure.axes for handle in axis.get_legend_handles_labels()[0]]
    numbers = list(map(str, range(len(shown))))  # matplotlib leaves out labels that begin with _
    legend = figure.legend(
        handles, numbers, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(name)
        text.set_parse_math(False)


def cut(name: str, width: int) -> str:
    """Shorten a name to `width` characters."""
    return name if len(name) <= width else f"{name[: width - 1]}…"
