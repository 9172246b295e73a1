"""Thresholds fitted on one split to be used on another.

Owns THRESHOLDS and the exact scan for the best F1. Never sees the test split.

    >>> targets = np.array([[1], [1], [0]], dtype=np.uint8)
    >>> scores = np.array([[0.5], [0.375], [0.125]], dtype=np.float32)
    >>> fit_thresholds("global", targets, scores)
    array([0.25], dtype=float32)
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from nuswide.metrics.predictions import Curve, Floats, Known, Predictions, Scores, Targets

# The weight of the global threshold against a label's own, in positives. One is never worse than
# none on other images; more is worse if the scores are miscalibrated label by label:
# benchmarks/thresholds.py compares.
PRIOR = 1.0
_EDGE = 1e-7  # keeps logits of thresholds finite


def fit_thresholds(
    kind: str, targets: Targets, scores: Scores, known: Known = None, *, fixed: float = 0.5
) -> NDArray[np.float32]:
    """Fit thresholds (C,) of a kind in THRESHOLDS to the known entries of a split."""
    return THRESHOLDS[kind](Predictions(targets, scores, fixed, known))


def best_f1(curve: Curve) -> float:
    """Return the threshold of the best F1, the highest of equally good ones.

    Exact: every distinct score is tried. The threshold lies midway to the next lower score, so that
    rounding in another program cannot move an image across it.
    """
    best = int((curve.hits / (curve.predicted + curve.positives)).argmax())
    at = curve.scores[best]
    below = curve.scores[best + 1] if best + 1 < len(curve.scores) else np.float32(0)
    middle = np.float32((at + below) / 2)
    return float(middle if middle > below else at)


def fixed(predictions: Predictions) -> NDArray[np.float32]:
    """Return the fixed threshold for each label."""
    return np.full(predictions.targets.shape[1], predictions.thresholds, dtype=np.float32)


def one_global(predictions: Predictions) -> NDArray[np.float32]:
    """Return the threshold of the best micro F1, or the fixed one if there is no positive."""
    if not predictions.pooled.positives:
        return fixed(predictions)
    return np.full(predictions.targets.shape[1], best_f1(predictions.pooled), dtype=np.float32)


def per_label(predictions: Predictions, prior: float = PRIOR) -> NDArray[np.float32]:
    """Return each label's threshold of the best F1, drawn to the global one if positives are few.

    The two logits are averaged with weights n and `prior`, n being the label's positives: with few
    of them the best threshold is mostly chance (Yang 2001, Fan and Lin 2007).
    """
    common = one_global(predictions)
    own = common.copy()
    for label, curve in enumerate(predictions.curves):
        if curve.positives:
            own[label] = best_f1(curve)
    positives = np.array([curve.positives for curve in predictions.curves])
    trust = positives / np.maximum(positives + prior, 1)
    drawn = expit(trust * _logits(own) + (1 - trust) * _logits(common)).astype(np.float32)
    return np.where(trust < 1, drawn, own)


def _logits(thresholds: NDArray[np.float32]) -> Floats:
    return logit(np.clip(thresholds.astype(np.float64), _EDGE, 1 - _EDGE))


THRESHOLDS: dict[str, Callable[[Predictions], NDArray[np.float32]]] = {
    "fixed": fixed,
    "global": one_global,
    "label": per_label,
}
