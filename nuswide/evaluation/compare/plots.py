"""The plots of a comparison: what is drawn, of which entrants.

Owns the choice. Computes no statistic; reporting.plots draws.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from nuswide.evaluation.compare.entrants import COSTS, Entrant
from nuswide.evaluation.compare.paired import Compared, Comparison, Result
from nuswide.evaluation.compare.tables import top_labels
from nuswide.evaluation.evaluate import SUMMARY
from nuswide.reporting.plots.comparison import (
    Curve,
    IntervalRow,
    cost_points,
    difference_intervals,
    learning_curves,
    metric_intervals,
)
from nuswide.reporting.plots.style import to_image
from nuswide.tracking.reader import fetch_curve

MOST_ENTRANTS = 24  # in one plot
MOST_DETAILED = 6  # entrants whose labels are drawn
CURVES = ("train/loss", "val/map")
_UNITS = {
    "train/images_per_s": "images/s in training", "train/seconds": "seconds of training",
    "model.parameters": "parameters",
}  # fmt: skip
Shown = Sequence[tuple[Entrant, Result]]


def draw_all(comparison: Comparison) -> dict[str, Image.Image]:
    """Draw every plot that there is something for: kind/what -> picture."""
    entrants = comparison.entrants
    shown = list(zip(entrants, comparison.results, strict=True))
    paired = [(entrant, result) for entrant, result in shown if result.differences]
    drawn = {
        f"figures/{name}": metric_intervals(_estimates(shown[:MOST_ENTRANTS], name),
                                            f"{name} on test")
        for name in SUMMARY
    }  # fmt: skip
    for name in SUMMARY if paired else ():
        rows = [_difference_row(e.name, (r.differences or {})[name]) for e, r in paired]
        drawn[f"differences/{name}"] = difference_intervals(
            rows[:MOST_ENTRANTS], f"{name} less the baseline's"
        )
    for number, (entrant, result) in enumerate(paired[:MOST_DETAILED], start=1):
        chosen = top_labels(comparison, result.labels or ())
        rows = [_difference_row(f"{label} ({positives})", found)
                for label, positives, found in chosen]  # fmt: skip
        title = f"{entrant.name}: AP less the baseline's"
        drawn[f"labels/{number}"] = difference_intervals(rows, title, row_inches=0.25)
    for key in CURVES:
        if any(entrant.values(key) for entrant in entrants):
            drawn[f"curves/{key}"] = learning_curves(_curves(entrants, key), key)
    for key in COSTS:
        costs = [entrant.mean(key) for entrant in entrants]
        # A cost that is the same everywhere is in the table, and would be one line here.
        if len(set(costs)) > 1:
            rows = _estimates(shown, "map")
            drawn[f"cost/{key}"] = cost_points(costs, rows, _UNITS[key], "map on test")
    return {_file(name): to_image(figure) for name, figure in drawn.items()}


def _file(name: str) -> str:
    kind, _, what = name.partition("/")
    return f"{kind}/{what.replace('/', '_').replace('.', '_')}"


def _estimates(shown: Shown, name: str) -> list[IntervalRow]:
    """Each entrant's metric on test, with its seeds' own values where it has several."""
    rows = []
    for entrant, result in shown:
        estimate = result.estimates.get(name)
        value, low, high = estimate[:3] if estimate else (np.nan, np.nan, np.nan)
        seeds = entrant.values(f"test/{name}") if estimate and len(entrant.runs) > 1 else []
        rows.append(IntervalRow(entrant.name, value, low, high, seeds=seeds))
    return rows


def _difference_row(name: str, compared: Compared) -> IntervalRow:
    return IntervalRow(name, compared.value, compared.low, compared.high, compared.verdict)


def _curves(entrants: Sequence[Entrant], key: str) -> dict[str, list[Curve]]:
    """The curves of the first entrants' runs."""
    found: dict[str, list[Curve]] = {}
    for entrant in entrants[:MOST_ENTRANTS]:
        found[entrant.name] = []
        for run in entrant.runs:
            steps, values = fetch_curve(run.info.run_id, key)
            if key == "val/map":  # its last point is the chosen weights', one step on
                steps, values = steps[:-1], values[:-1]
            found[entrant.name].append((steps, values))
    return found
