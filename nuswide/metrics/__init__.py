"""Figures of a multi-label prediction, from arrays.

Owns METRICS and all_figures; the modules beside own thresholds, calibration, intervals, tables and
the streaming mode. numpy and SciPy only: no torch, no pictures, no files.

    figures = all_figures(targets, scores, thresholds=0.5)  # {"micro/f1": ..., "map": ...}

An unknown entry is neither true nor predicted in any figure, and has no place in a ranking. A name
that ends in `loss` or `error` is better low, any other better high.
"""

from collections.abc import Callable

import numpy as np

from nuswide.metrics.bootstrap import (
    RESAMPLED,
    Difference,
    Interval,
    Resampled,
    holm,
    mean_of,
    paired,
    paired_labels,
    resample,
)
from nuswide.metrics.calibration import (
    CALIBRATIONS,
    Calibration,
    calibration_figures,
    fit_calibration,
)
from nuswide.metrics.decisions import (
    AVERAGES,
    KINDS,
    NINE,
    all_six,
    precision_recall_f1,
    subset_values,
    wrong_entries,
)
from nuswide.metrics.predictions import (
    Ints,
    Known,
    Metrics,
    Predictions,
    Scores,
    Targets,
    Thresholds,
)
from nuswide.metrics.ranking import (
    areas,
    average_precisions,
    image_rankings,
    label_average_precision,
)
from nuswide.metrics.stream import Stream
from nuswide.metrics.tables import baseline_scores, per_label_table
from nuswide.metrics.thresholds import THRESHOLDS, fit_thresholds

__all__ = [
    "AVERAGES", "CALIBRATIONS", "KINDS", "METRICS", "NINE", "RESAMPLED", "THRESHOLDS",
    "Calibration", "Difference", "Figures", "Interval", "Resampled", "Scored", "Stream",
    "all_figures", "baseline_figures", "baseline_scores", "fit_calibration", "fit_thresholds",
    "holm", "label_average_precision", "mean_of", "paired", "paired_labels", "per_label_table",
    "resample",
]  # fmt: skip


def image_means(predictions: Predictions) -> Metrics:
    """`lrap`, `coverage_error`, `ranking_loss` and `subset_accuracy`: means over the images."""
    values = image_rankings(predictions) | subset_values(predictions)
    return {name: float(value.mean()) for name, value in values.items()}


def all_metrics(
    targets: Targets,
    scores: Scores,
    thresholds: Thresholds,
    known: Known = None,
    *,
    train_positives: Ints | None = None,
) -> Metrics:
    """Every entry of METRICS in one dict.

    targets, scores, known: (N, C); thresholds: one, or (C,). train_positives: (C,) positives of
    each label in train, for head, medium and tail mAP, which are left out without it.
    """
    predictions = Predictions(targets, scores, thresholds, known, train_positives)
    figures: Metrics = {}
    for metric in METRICS.values():
        figures |= metric(predictions)
    return figures


def baseline_figures(
    train_targets: Targets, targets: Targets, known: Known = None
) -> dict[str, Metrics]:
    """Figures of the two trivial baselines on `targets`; name -> figures."""
    positives = train_targets.sum(axis=0, dtype=np.int64)
    return {
        name: all_metrics(
            targets, np.tile(scores, (len(targets), 1)), 0.5, known, train_positives=positives
        )
        for name, scores in baseline_scores(train_targets).items()
    }


METRICS: dict[str, Callable[[Predictions], Metrics]] = {
    "precision_recall_f1": precision_recall_f1,
    "six": all_six,
    "hamming_loss": wrong_entries,
    "average_precision": average_precisions,
    "auroc": areas,
    "images": image_means,
    "calibration": calibration_figures,
}
