"""Metrics of decisions: an entry is predicted or not, whatever its score was.

Owns precision, recall and F1 in all their averages, the top-3 metrics, Hamming loss and subset
accuracy. Counts are separate from their ratios, so that the bootstrap uses the same definitions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuswide.metrics.predictions import Bools, Floats, Metrics, Predictions

# average -> the axis that hits are counted over before the mean of what is left
AVERAGES = {"micro": None, "macro": 0, "samples": 1}
KINDS = ("precision", "recall", "f1")
NINE = tuple(f"{average}/{kind}" for average in AVERAGES for kind in KINDS)
Counts = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # hits, predicted, true


def count(predicted: Bools, true: Bools, axis: int) -> Counts:
    """Count hits, predicted and true entries along an axis."""
    return (predicted & true).sum(axis=axis), predicted.sum(axis=axis), true.sum(axis=axis)


def ratios(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1; 0 where the denominator is 0.

    scikit-learn treats targets of one label as a binary problem: it refuses their samples average,
    and returns the accuracy as micro.
    """
    hits, predicted, true = counts
    # A zero denominator goes with a zero numerator, so that the maximum gives 0.
    precision, recall, f1 = (
        hits / np.maximum(d, 0.5) for d in (predicted, true, (predicted + true) / 2)
    )
    return precision, recall, f1


def micro_and_macro(counts: Counts) -> dict[str, Floats]:
    """Return micro and macro precision, recall and F1 from counts (..., C) a label."""
    micro = ratios((counts[0].sum(-1), counts[1].sum(-1), counts[2].sum(-1)))
    macro = [values.mean(-1) for values in ratios(counts)]
    found = {f"micro/{kind}": values for kind, values in zip(KINDS, micro, strict=True)}
    return found | {f"macro/{kind}": values for kind, values in zip(KINDS, macro, strict=True)}


def six_metrics(counts: Counts) -> dict[str, Floats]:
    """Return CP, CR, CF1, OP, OR, OF1 from counts (..., C) a label.

    CF1 is the harmonic mean of CP and CR, and not the mean of the labels' F1, which is macro F1;
    OF1 is micro F1. A label that is never predicted counts 0 in CP.
    Source: Chen et al. 2019, arXiv:1904.03582; on the two F1: Opitz and Burst, arXiv:1911.03347.
    """
    pooled = micro_and_macro(counts)
    cp, cr = pooled["macro/precision"], pooled["macro/recall"]
    cf1 = 2 * cp * cr / np.maximum(cp + cr, np.finfo(float).tiny)
    overall = {"op": "precision", "or": "recall", "of1": "f1"}
    return {"cp": cp, "cr": cr, "cf1": cf1} | {k: pooled[f"micro/{v}"] for k, v in overall.items()}


def precision_recall_f1(predictions: Predictions) -> Metrics:
    """Micro, macro and samples precision, recall and F1 as scikit-learn defines them.

    A metric whose denominator is zero is 0.
    """
    samples = {name: values.mean() for name, values in samples_values(predictions).items()}
    found = micro_and_macro(count(predictions.predicted, predictions.true, axis=0)) | samples
    return {name: float(found[name]) for name in NINE}


def f1_with_positives(predictions: Predictions) -> Metrics:
    """`macro/f1_with_positives`: the mean F1 of the labels with a positive; NaN if none has one.

    Macro F1 counts a label without a positive as 0, whatever the scores, but mAP leaves it out.
    """
    f1 = ratios(count(predictions.predicted, predictions.true, axis=0))[2]
    has_positive = predictions.true.any(axis=0)
    value = float(f1[has_positive].mean()) if has_positive.any() else float("nan")
    return {"macro/f1_with_positives": value}


def samples_values(predictions: Predictions) -> dict[str, Floats]:
    """Return each image's own precision, recall and F1; (N,) each."""
    values = ratios(count(predictions.predicted, predictions.true, axis=1))
    return {f"samples/{kind}": v for kind, v in zip(KINDS, values, strict=True)}


def top_three(predictions: Predictions) -> Bools:
    """Mark each image's three labels of highest score, all if it has fewer known ones; (N, C).

    Of tied labels, the first is taken.
    """
    left = (
        predictions.scores
        if predictions.known is None
        else np.where(predictions.known, predictions.scores, -1)
    )
    left, chosen = left.copy(), np.zeros(left.shape, dtype=bool)
    images = np.arange(len(left))
    for _ in range(min(3, left.shape[1])):
        best = left.argmax(axis=1)
        chosen[images, best] |= left[images, best] >= 0  # an unknown label is never chosen
        left[images, best] = -1
    return chosen


# prefix -> what counts as predicted: what reaches its threshold, exactly three labels, or those of
# the three that reach it. Papers call either of the last two "top-3".
DECISIONS: dict[str, Callable[[Predictions], Bools]] = {
    "": lambda predictions: predictions.predicted,
    "top3/": top_three,
    "top3_passing/": lambda predictions: top_three(predictions) & predictions.predicted,
}


def all_six(predictions: Predictions) -> Metrics:
    """CP, CR, CF1, OP, OR, OF1 of all DECISIONS: `cf1`, `top3/cf1`, `top3_passing/cf1` ..."""
    return {
        prefix + name: float(value)
        for prefix, decide in DECISIONS.items()
        for name, value in six_metrics(count(decide(predictions), predictions.true, axis=0)).items()
    }


def hamming_loss(predictions: Predictions) -> Metrics:
    """`hamming_loss`: the share of the known entries that are predicted wrongly."""
    wrong = (predictions.predicted != predictions.true).sum()  # an unknown entry is never wrong
    return {"hamming_loss": float(wrong / max(1, predictions.n_known.sum()))}


def subset_accuracy(predictions: Predictions) -> Metrics:
    """`subset_accuracy`: the share of images whose known entries are all predicted correctly."""
    right = (predictions.predicted == predictions.true).all(axis=1)
    return {"subset_accuracy": float(right.mean())}
