"""Metrics of a multi-label prediction, from arrays.

Owns METRICS and all_metrics; the modules beside own thresholds, calibration, intervals and tables.
numpy and SciPy only: no torch, no pictures, no files.

An unknown entry is neither true nor predicted in any metric, and has no place in a ranking. A name
that ends in `loss` or `error` is better low, any other better high.

    >>> targets = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8)
    >>> scores = np.array([[0.9, 0.2], [0.6, 0.7], [0.4, 0.8]], dtype=np.float32)
    >>> round(all_metrics(targets, scores, thresholds=0.5)["map"], 3)
    0.917
"""

from collections.abc import Callable

import numpy as np

from nuswide.metrics.bootstrap import (
    HEADLINE,
    Z_95,
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
    calibration_metrics,
    fit_calibration,
)
from nuswide.metrics.decisions import (
    AVERAGES,
    KINDS,
    NINE,
    all_six,
    f1_with_positives,
    hamming_loss,
    precision_recall_f1,
    subset_accuracy,
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
    image_means,
    label_average_precision,
)
from nuswide.metrics.tables import baseline_scores, labels_averaged, per_label_table
from nuswide.metrics.thresholds import THRESHOLDS, fit_thresholds

__all__ = [
    "AVERAGES", "CALIBRATIONS", "HEADLINE", "KINDS", "METRICS", "NINE", "THRESHOLDS", "Z_95",
    "Calibration", "Difference", "Interval", "Metrics", "Predictions", "Resampled", "Thresholds",
    "all_metrics", "baseline_metrics", "baseline_scores", "fit_calibration", "fit_thresholds",
    "holm", "label_average_precision", "labels_averaged", "mean_of", "paired", "paired_labels",
    "per_label_table", "resample",
]  # fmt: skip


def all_metrics(
    targets: Targets,
    scores: Scores,
    thresholds: Thresholds,
    known: Known = None,
    *,
    train_positives: Ints | None = None,
) -> Metrics:
    """Compute every entry of METRICS into one dict.

    targets, scores, known: (N, C); thresholds: one, or (C,). train_positives: (C,) positives of
    each label in train, for head, medium and tail mAP, which are left out without it.
    """
    predictions = Predictions(targets, scores, thresholds, known, train_positives)
    found: Metrics = {}
    for metric in METRICS.values():
        found |= metric(predictions)
    return found


def baseline_metrics(
    train_targets: Targets, targets: Targets, known: Known = None
) -> dict[str, Metrics]:
    """Return the metrics of the two trivial baselines on `targets`; baseline -> metrics."""
    positives = train_targets.sum(axis=0, dtype=np.int64)
    return {
        name: all_metrics(
            targets, np.tile(scores, (len(targets), 1)), 0.5, known, train_positives=positives
        )
        for name, scores in baseline_scores(train_targets).items()
    }


METRICS: dict[str, Callable[[Predictions], Metrics]] = {
    "precision_recall_f1": precision_recall_f1,
    "f1_with_positives": f1_with_positives,
    "six": all_six,
    "hamming_loss": hamming_loss,
    "subset_accuracy": subset_accuracy,
    "average_precision": average_precisions,
    "auroc": areas,
    "images": image_means,
    "calibration": calibration_metrics,
}
