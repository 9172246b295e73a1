"""Plots from arrays.

Owns how things look: colours that colour-blind people can tell apart, with a sign beside each
colour. Never computes a metric, nor saves a file. Long names are cut, and a $ in a name stays one:
none is read as mathematics.
"""

from matplotlib.figure import Figure

from nuswide.reporting.plots.bars import (
    interval_dots,
    label_distribution,
    metric_bars,
    prevalence_change,
)
from nuswide.reporting.plots.curves import (
    Histogram,
    PrecisionRecall,
    precision_by_frequency,
    precision_recall,
    reliability,
    score_histograms,
)
from nuswide.reporting.plots.heat import co_confusion, co_occurrence
from nuswide.reporting.plots.search import (
    SearchAxis,
    importance_bars,
    parallel_coordinates,
    search_history,
)
from nuswide.reporting.plots.sheets import pair_sheet, picture_sheet, prediction_grid
from nuswide.reporting.plots.style import to_image

__all__ = [
    "Figure", "Histogram", "PrecisionRecall", "SearchAxis", "co_confusion", "co_occurrence",
    "importance_bars", "interval_dots", "label_distribution", "metric_bars", "pair_sheet",
    "parallel_coordinates", "picture_sheet", "precision_by_frequency", "precision_recall",
    "prediction_grid", "prevalence_change", "reliability", "score_histograms", "search_history",
    "to_image",
]  # fmt: skip
