"""Metrics label by label, over how many labels means are, and the trivial baselines.

Owns the per-label table and the scores of the baselines. Chooses no threshold.
"""

from typing import Any

import numpy as np

from nuswide.metrics.calibration import brier_losses, calibration_errors
from nuswide.metrics.decisions import count, ratios
from nuswide.metrics.predictions import Known, Metrics, Predictions, Scores, Targets, Thresholds
from nuswide.metrics.ranking import auroc, label_average_precision


def per_label_table(
    labels: tuple[str, ...],
    targets: Targets,
    scores: Scores,
    thresholds: Thresholds,
    known: Known = None,
) -> dict[str, list[Any]]:
    """Return columns of each label's metrics, support, share and threshold; frequent labels first.

    A metric that is not defined, as the AP of a label without a positive, is None.
    """
    predictions = Predictions(targets, scores, thresholds, known)
    precision, recall, f1 = ratios(count(predictions.predicted, predictions.true, axis=0))
    support = predictions.true.sum(axis=0)
    order = np.argsort(-support, kind="stable")
    columns = {
        "ap": label_average_precision(predictions),
        "f1": f1, "precision": precision, "recall": recall,
        "auroc": np.array([auroc(curve) for curve in predictions.curves]),
        "calibration_error": calibration_errors(predictions),
        "brier_loss": brier_losses(predictions),
        "support": support, "share": support / np.maximum(predictions.n_known, 1),
        "threshold": np.broadcast_to(np.asarray(thresholds, dtype=np.float64), support.shape),
    }  # fmt: skip
    table = {name: [_cell(values[i]) for i in order] for name, values in columns.items()}
    return {"label": [labels[i] for i in order], **table}


def _cell(value: Any) -> int | float | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else round(float(value), 4)


def labels_averaged(metrics: Metrics, n_labels: int) -> str:
    """Return over how many labels mAP and macro F1 are, in words; empty if all have a positive."""
    n_with = n_labels - int(metrics["labels_without_positives"])
    if n_with == n_labels:
        return ""
    if not n_with:
        return "No label has a positive, so that map is not defined."
    return (
        f"map is over the {n_with} of {n_labels} labels that have a positive, macro/f1 over all "
        f"{n_labels}; over the {n_with}, it is {metrics['macro/f1_with_positives']:.3f} "
        "(macro/f1_with_positives)."
    )


def baseline_scores(train_targets: Targets) -> dict[str, Scores]:
    """Return the scores of taggers that ignore the image; name -> (C,) of 0 and 1.

    all_labels: every label, always. top_k: the k labels most frequent in train, with the k that has
    the best micro-F1 there.
    """
    positives = train_targets.sum(axis=0, dtype=np.int64)  # unsigned sums can't be negated
    order = np.argsort(-positives, kind="stable")
    k = np.arange(1, len(order) + 1)
    true_positives = positives[order].cumsum()
    micro_f1 = 2 * true_positives / (k * len(train_targets) + positives.sum())
    top_k = np.zeros(len(order), dtype=np.float32)
    top_k[order[: micro_f1.argmax() + 1]] = 1
    return {"all_labels": np.ones_like(top_k), "top_k": top_k}
