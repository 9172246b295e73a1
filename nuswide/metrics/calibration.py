"""Calibration: how well scores match probabilities, and maps that improve it.

Owns the calibration error, the Brier loss, and per-label calibration fitted in logit space.

    >>> targets = np.array([[1], [0], [0], [0]], dtype=np.uint8)
    >>> scores = np.array([[0.9], [0.9], [0.9], [0.6]], dtype=np.float32)
    >>> calibration = fit_calibration("platt", targets, scores)
    >>> bool(calibration.apply(scores)[0, 0] < 0.5)
    True
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, logit

from nuswide.metrics.predictions import (
    Bools,
    Floats,
    Ints,
    Known,
    Metrics,
    Predictions,
    Scores,
    Targets,
)
from nuswide.metrics.ranking import mean_of_defined

BINS = 15  # of equal width, as Guo et al. 2017 (arXiv:1706.04599) have it
_LOWEST, _HIGHEST = np.finfo(np.float32).tiny, 1 - np.finfo(np.float32).epsneg
_LOG_SCALES = (-3.0, 3.0)  # of a calibration: e to that is positive, so that rankings stay


class Bins(NamedTuple):
    """Known entries, their summed scores and the positives among them in each bin; (C, BINS)."""

    entries: Floats
    scores: Floats
    positives: Floats


def bin_sums(predictions: Predictions) -> Bins:
    """Sum over the known entries in each bin. A bin has its lower edge, the last one both edges."""
    n_labels = predictions.targets.shape[1]
    bins = np.minimum((predictions.scores * np.float64(BINS)).astype(np.int32), BINS - 1)
    bins += np.arange(n_labels, dtype=np.int32) * BINS
    kept = slice(None) if predictions.known is None else predictions.known.ravel()
    flat = bins.ravel()[kept]

    def sums(values: NDArray[Any] | None) -> Floats:
        weights = None if values is None else values.ravel()[kept].astype(np.float64)
        counted = np.bincount(flat, weights, n_labels * BINS).astype(np.float64)
        return counted.reshape(n_labels, BINS)

    return Bins(sums(None), sums(predictions.scores), sums(predictions.true))


def calibration_errors(predictions: Predictions) -> Floats:
    """Return each label's expected calibration error; (C,), NaN for one without known entries.

    The mean over images of |share of positives - mean score| in the image's bin.
    """
    bins = bin_sums(predictions)
    return np.abs(bins.scores - bins.positives).sum(axis=1) / _nan_for_zero(predictions.n_known)


def brier_losses(predictions: Predictions) -> Floats:
    """Return each label's mean of (score - target)^2; (C,), NaN for one without known entries."""
    squares = np.subtract(predictions.scores, predictions.true, dtype=np.float64) ** 2
    known = True if predictions.known is None else predictions.known
    return squares.sum(axis=0, where=known) / _nan_for_zero(predictions.n_known)


def _nan_for_zero(counts: Ints) -> Floats:
    return np.where(counts, counts, np.nan)


def calibration_metrics(predictions: Predictions) -> Metrics:
    """`calibration_error` and `brier_loss`: means over the labels with known entries."""
    return {
        "calibration_error": mean_of_defined(calibration_errors(predictions)),
        "brier_loss": mean_of_defined(brier_losses(predictions)),
    }


@dataclass(frozen=True)
class Calibration:
    """A map of each label's scores to sigmoid(scale * logit(score) + shift); scale, shift: (C,).

    scale > 0, so that rankings stay.
    """

    scale: Floats
    shift: Floats

    def apply(self, scores: Scores) -> Scores:
        """Map scores (N, C)."""
        return expit(_logits(scores) * self.scale + self.shift).astype(np.float32)


def fit_calibration(
    kind: str, targets: Targets, scores: Scores, known: Known = None
) -> Calibration:
    """Fit one of CALIBRATIONS to each label's known entries, by likelihood.

    A label that lacks positives or negatives keeps its scores. Targets are smoothed, more strongly
    for few images, which keeps labels with few positives from extremes.
    Source: Platt 1999; Lin, Lin and Weng 2007, doi:10.1007/s10994-007-5018-6; for the temperature
    Guo et al. 2017, arXiv:1706.04599.
    """
    predictions = Predictions(targets, scores, known=known)
    scale, shift = np.ones(targets.shape[1]), np.zeros(targets.shape[1])
    for label, column in enumerate(predictions.true.T):
        rows = slice(None) if known is None else known[:, label]
        true = column[rows]
        if true.any() and not true.all():
            scale[label], shift[label] = CALIBRATIONS[kind](
                _logits(scores[rows, label]), _smoothed(true)
            )
    return Calibration(scale, shift)


def _logits(scores: Scores) -> Floats:
    return logit(np.clip(scores.astype(np.float64), _LOWEST, _HIGHEST))


def _smoothed(true: Bools) -> Floats:
    """Return Platt's targets: the shares after one more image of either kind."""
    positives, negatives = true.sum(), (~true).sum()
    return np.where(true, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def _platt(logits: Floats, targets: Floats) -> tuple[float, float]:
    """Return the scale and shift of the highest likelihood."""
    centre = logits.mean()  # makes scale and shift nearly independent, which saves steps

    def loss(free: Floats) -> tuple[float, Floats]:
        scale = np.exp(free[0])
        moved = scale * (logits - centre) + free[1]
        slope = expit(moved) - targets
        gradient = np.array([(slope * (logits - centre)).mean() * scale, slope.mean()])
        return _log_loss(moved, targets), gradient

    found = minimize(
        loss, np.array([0.0, centre]), jac=True, method="L-BFGS-B",
        bounds=[_LOG_SCALES, (None, None)], options={"ftol": 1e-12, "gtol": 1e-9},
    ).x  # fmt: skip
    scale = float(np.exp(found[0]))
    return scale, float(found[1] - scale * centre)


def _temperature(logits: Floats, targets: Floats) -> tuple[float, float]:
    """Return the scale of the highest likelihood, 1 / temperature, and no shift."""
    found = minimize_scalar(
        lambda log_scale: _log_loss(np.exp(log_scale) * logits, targets),
        bounds=_LOG_SCALES, method="bounded", options={"xatol": 1e-6},
    ).x  # fmt: skip
    return float(np.exp(found)), 0.0


def _log_loss(logits: Floats, targets: Floats) -> float:
    return -float((targets * log_expit(logits) + (1 - targets) * log_expit(-logits)).mean())


# kind -> (logits, targets) of one label -> scale, shift
CALIBRATIONS: dict[str, Callable[[Floats, Floats], tuple[float, float]]] = {
    "none": lambda logits, targets: (1.0, 0.0),
    "platt": _platt,
    "temperature": _temperature,
}
