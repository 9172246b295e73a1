"""Figures of a multi-label prediction, from arrays.

Owns METRICS, the per-label table and the trivial baselines. numpy and scikit-learn only: no torch,
no pictures, no choice of a threshold.

    figures = all_figures(targets, scores, threshold=0.5)  # {"micro/f1": ..., "map": ...}
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Targets = NDArray[np.uint8]
Scores = NDArray[np.float32]
Known = NDArray[np.bool_] | None  # None: every entry is known
Figures = dict[str, float]

# average -> the axis that hits are counted over before the mean of what is left
AVERAGES = {"micro": None, "macro": 0, "samples": 1}
KINDS = ("precision", "recall", "f1")
NINE = tuple(f"{average}/{kind}" for average in AVERAGES for kind in KINDS)


def precision_recall_f1(
    targets: Targets, scores: Scores, threshold: float, known: Known = None
) -> Figures:
    """Micro, macro and samples precision, recall and F1 as scikit-learn defines them.

    targets, scores: (N, C). A figure whose denominator is zero counts as 0. An unknown entry is
    neither predicted nor true.
    """
    predictions = _predict(scores, threshold, known)
    return {
        f"{average}/{kind}": float(values.mean())
        for average, axis in AVERAGES.items()
        for kind, values in zip(KINDS, _ratios(targets, predictions, axis), strict=True)
    }


def _ratios(
    targets: Targets, predictions: NDArray[np.bool_], axis: int | None
) -> tuple[NDArray[np.float64], ...]:
    """Precision, recall and F1 of the hits counted over an axis, or over both.

    Counted here because scikit-learn takes targets of one label for a binary problem: it refuses
    their samples average, and gives the accuracy as micro.
    """
    hits = np.sum(predictions & (targets > 0), axis=axis)
    predicted, true = np.sum(predictions, axis=axis), np.sum(targets > 0, axis=axis)
    # A zero denominator goes with a zero numerator, so that the maximum gives 0.
    denominators = (predicted, true, (predicted + true) / 2)
    return tuple(np.asarray(hits / np.maximum(d, 0.5)) for d in denominators)


def _predict(scores: Scores, threshold: float, known: Known) -> NDArray[np.bool_]:
    predictions = scores >= threshold
    return predictions if known is None else predictions & known


def average_precision(targets: Targets, scores: Scores, known: Known = None) -> NDArray[np.float64]:
    """Tie-aware, not interpolated average precision over the known entries.

    Gives (C,), NaN for a label without a positive.
    """
    per_label = np.full(targets.shape[1], np.nan)
    for label in np.flatnonzero(targets.any(axis=0)):
        rows = slice(None) if known is None else known[:, label]
        per_label[label] = average_precision_score(targets[rows, label], scores[rows, label])
    return per_label


def mean_average_precision(
    targets: Targets, scores: Scores, threshold: float, known: Known = None
) -> Figures:
    """`map` over the labels that have a positive, and how many `labels_without_positives`."""
    per_label = average_precision(targets, scores, known)
    defined = ~np.isnan(per_label)
    mean = float(per_label[defined].mean()) if defined.any() else float("nan")
    return {"map": mean, "labels_without_positives": float((~defined).sum())}


def all_figures(targets: Targets, scores: Scores, threshold: float, known: Known = None) -> Figures:
    """Every entry of METRICS in one dict."""
    figures: Figures = {}
    for metric in METRICS.values():
        figures |= metric(targets, scores, threshold, known)
    return figures


def per_label_table(
    labels: tuple[str, ...], targets: Targets, scores: Scores, threshold: float, known: Known = None
) -> dict[str, list[Any]]:
    """Columns of each label's AP, F1, precision, recall, support and share; frequent ones first."""
    predictions = _predict(scores, threshold, known)
    precision, recall, f1 = _ratios(targets, predictions, AVERAGES["macro"])
    support = targets.sum(axis=0, dtype=np.int64)
    n_known = len(targets) if known is None else known.sum(axis=0)
    order = np.argsort(-support, kind="stable")
    columns = {
        "ap": average_precision(targets, scores, known), "f1": f1, "precision": precision,
        "recall": recall, "support": support, "share": support / np.maximum(n_known, 1),
    }  # fmt: skip
    table = {name: [_cell(values[i]) for i in order] for name, values in columns.items()}
    return {"label": [labels[i] for i in order], **table}


def _cell(value: Any) -> int | float | None:
    if isinstance(value, np.integer):
        return int(value)
    return None if np.isnan(value) else round(float(value), 4)


def baseline_scores(train_targets: Targets) -> dict[str, Scores]:
    """Score the labels without looking at a picture, in two ways; name -> (C,) of 0 and 1.

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


def baseline_figures(
    train_targets: Targets, targets: Targets, known: Known = None
) -> dict[str, Figures]:
    """Figures of the two trivial baselines on `targets`; name -> figures."""
    return {
        name: all_figures(targets, np.tile(scores, (len(targets), 1)), 0.5, known)
        for name, scores in baseline_scores(train_targets).items()
    }


METRICS: dict[str, Callable[[Targets, Scores, float, Known], Figures]] = {
    "precision_recall_f1": precision_recall_f1,
    "map": mean_average_precision,
}
