"""Thresholds fitted on one split to be used on another.

Owns THRESHOLDS, and the exact scan for what they aim at. Never sees the test split.

    >>> targets = np.array([[1], [1], [0]], dtype=np.uint8)
    >>> scores = np.array([[0.5], [0.375], [0.125]], dtype=np.float32)
    >>> fit_thresholds("global", targets, scores)
    array([0.25], dtype=float32)
    >>> fit_thresholds("label", targets, scores, goal="precision:0.9")
    array([0.25], dtype=float32)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from nuswide.metrics.predictions import Curve, Floats, Known, Predictions, Scores, Targets

# The weight of the global threshold against a label's own, in positives. One is never worse than
# none on other images; more is worse if the scores are miscalibrated label by label:
# benchmarks/thresholds.py compares.
PRIOR = 1.0
_EDGE = 1e-7  # keeps logits of thresholds finite


@dataclass(frozen=True)
class Goal:
    """What a threshold aims at: the best F-beta; or, if given, a precision with the most recall."""

    beta: float = 1.0
    precision: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """Read a valid value of Config.threshold_goal: `f1`, `f0.5` or `precision:0.9`."""
        _, _, precision = text.partition(":")
        return cls(precision=float(precision)) if precision else cls(beta=float(text[1:]))

    def threshold(self, curve: Curve) -> float:
        """Return the best threshold of a curve, the highest of equally good ones.

        Exact: every distinct score is tried. 1 where no threshold has the precision.
        """
        if self.precision is None:
            f_beta = curve.hits / (
                curve.predicted + self.beta**2 * curve.positives
            )  # times a factor
            return _below(curve, int(f_beta.argmax()))
        precise = np.where(curve.hits / curve.predicted >= self.precision, curve.hits, 0)
        return _below(curve, int(precise.argmax())) if precise.any() else 1.0


F1 = Goal()


def fit_thresholds(
    kind: str,
    targets: Targets,
    scores: Scores,
    known: Known = None,
    *,
    fixed: float = 0.5,
    goal: str = "f1",
) -> NDArray[np.float32]:
    """Fit thresholds (C,) of a kind in THRESHOLDS to the known entries of a split."""
    return THRESHOLDS[kind](Predictions(targets, scores, fixed, known), Goal.parse(goal))


def _below(curve: Curve, best: int) -> float:
    """Return a threshold midway from a distinct score to the next lower one.

    Rounding in another program then cannot move an image across it.
    """
    at = curve.scores[best]
    below = curve.scores[best + 1] if best + 1 < len(curve.scores) else np.float32(0)
    middle = np.float32((at + below) / 2)
    return float(middle if middle > below else at)


def fixed(predictions: Predictions, goal: Goal = F1) -> NDArray[np.float32]:
    """Return the fixed threshold for each label."""
    return np.full(predictions.targets.shape[1], predictions.thresholds, dtype=np.float32)


def one_global(predictions: Predictions, goal: Goal = F1) -> NDArray[np.float32]:
    """Return the best threshold of all entries, or the fixed one if there is no positive."""
    if not predictions.pooled.positives:
        return fixed(predictions)
    best = goal.threshold(predictions.pooled)
    return np.full(predictions.targets.shape[1], best, dtype=np.float32)


def per_label(
    predictions: Predictions, goal: Goal = F1, prior: float = PRIOR
) -> NDArray[np.float32]:
    """Return each label's best threshold, drawn to the global one if positives are few.

    The two logits are averaged with weights n and `prior`, n being the label's positives: with few
    of them the best threshold is mostly chance (Yang 2001, Fan and Lin 2007). A threshold for a
    precision is not drawn, as it might lose it.
    """
    common = one_global(predictions, goal)
    if goal.precision is not None and predictions.pooled.positives:
        return np.array([goal.threshold(curve) for curve in predictions.curves], dtype=np.float32)
    own = common.copy()
    for label, curve in enumerate(predictions.curves):
        if curve.positives:
            own[label] = goal.threshold(curve)
    positives = np.array([curve.positives for curve in predictions.curves])
    trust = positives / np.maximum(positives + prior, 1)
    drawn = expit(trust * _logits(own) + (1 - trust) * _logits(common)).astype(np.float32)
    return np.where(trust < 1, drawn, own)


def _logits(thresholds: NDArray[np.float32]) -> Floats:
    return logit(np.clip(thresholds.astype(np.float64), _EDGE, 1 - _EDGE))


THRESHOLDS: dict[str, Callable[[Predictions, Goal], NDArray[np.float32]]] = {
    "fixed": fixed,
    "global": one_global,
    "label": per_label,
}
