"""All figures of more images than fit into memory, block by block.

Owns Stream, a sum of blocks. Keeps no score: rankings come from a histogram, and `errors` says by
how much that can be off. All other figures are exact.

    stream = Stream(n_labels=81, thresholds=0.5)
    for targets, scores in blocks:
        stream.add(targets, scores)
    stream.figures()["map"], stream.errors()["map"]
"""

import numpy as np
from scipy.special import digamma, expit, logit

from nuswide.metrics.calibration import BINS, bin_sums, calibration_means, squared_errors
from nuswide.metrics.decisions import (
    DECISIONS,
    count,
    hamming_loss,
    pooled_figures,
    samples_values,
    six_figures,
    subset_values,
)
from nuswide.metrics.predictions import (
    Curve,
    Ints,
    Known,
    Metrics,
    Predictions,
    Scores,
    Targets,
    Thresholds,
)
from nuswide.metrics.ranking import areas_of, image_rankings, maps_of, mean_of_defined, parts_of_map

_LOGITS = 16.0  # scores whose logit is beyond this share a bin
_BINS = 2**14  # of equal width in the logit, so that the low scores of rare labels stay apart


class Stream:
    """Sums over images from which all figures follow.

    Memory: 16 bytes a label and bin, 21 MB for 81 labels, and what a block takes. Streams of the
    same labels, thresholds and bins can be merged, in any order.
    """

    def __init__(
        self,
        n_labels: int,
        thresholds: Thresholds = 0.5,
        *,
        train_positives: Ints | None = None,
        bins: int = _BINS,
    ) -> None:
        self.thresholds = thresholds
        self.train_positives = train_positives
        self.n_images = 0
        self.n_known = np.zeros(n_labels, dtype=np.int64)
        self.counts = {prefix: np.zeros((3, n_labels), dtype=np.int64) for prefix in DECISIONS}
        self.by_image: Metrics = {}
        self.calibration = np.zeros((2, n_labels, BINS))
        self.squares = np.zeros(n_labels)
        self.histogram = np.zeros((2, n_labels, bins), dtype=np.int64)  # all known, and true ones

    def add(self, targets: Targets, scores: Scores, known: Known = None) -> None:
        """Take a block of images; (N, C)."""
        predictions = Predictions(targets, scores, self.thresholds, known)
        self.n_images += len(targets)
        self.n_known += predictions.n_known
        for prefix, decide in DECISIONS.items():
            self.counts[prefix] += np.stack(count(decide(predictions), predictions.true, axis=0))
        values = (
            samples_values(predictions) | image_rankings(predictions) | subset_values(predictions)
        )
        for name, value in values.items():
            self.by_image[name] = self.by_image.get(name, 0.0) + float(value.sum())
        self.calibration += np.stack(bin_sums(predictions))
        self.squares += squared_errors(predictions)
        self.histogram += self._histogram(predictions)

    def _histogram(self, predictions: Predictions) -> Ints:
        n_labels, bins = self.histogram.shape[1:]
        with np.errstate(divide="ignore"):
            logits = logit(predictions.scores)  # in the scores' own precision, infinite at 0 and 1
        places = (np.clip(logits / _LOGITS, -1, 1) + 1) * (bins / 2)
        cells = np.minimum(places.astype(np.int32), bins - 1)
        cells += np.arange(n_labels, dtype=np.int32) * bins
        everything = cells if predictions.known is None else cells[predictions.known]
        counted = [np.bincount(c.ravel(), minlength=n_labels * bins)
                   for c in (everything, cells[predictions.true])]  # fmt: skip
        return np.stack(counted).reshape(2, n_labels, bins)

    def merge(self, other: "Stream") -> None:
        """Take all that another stream has seen."""
        if self.histogram.shape != other.histogram.shape or not np.array_equal(
            self.thresholds, other.thresholds
        ):
            raise ValueError("streams of other labels, thresholds or bins can't be merged")
        self.n_images += other.n_images
        self.n_known += other.n_known
        for prefix, counts in other.counts.items():
            self.counts[prefix] += counts
        for name, value in other.by_image.items():
            self.by_image[name] = self.by_image.get(name, 0.0) + value
        self.calibration += other.calibration
        self.squares += other.squares
        self.histogram += other.histogram

    def figures(self) -> Metrics:
        """Every figure that all_figures gives, under the same names."""
        hits, predicted, true = self.counts[""]
        pooled = pooled_figures((hits, predicted, true))
        figures = {name: float(value) for name, value in pooled.items()}
        figures |= {name: value / max(1, self.n_images) for name, value in self.by_image.items()}
        for prefix, (h, p, t) in self.counts.items():
            figures |= {prefix + k: float(v) for k, v in six_figures((h, p, t)).items()}
        figures["hamming_loss"] = hamming_loss((hits, predicted, true), self.n_known)
        scores, positives = self.calibration
        figures |= calibration_means((scores, positives), self.squares, self.n_known)
        return figures | maps_of(*self._curves(), self.train_positives) | areas_of(*self._curves())

    def errors(self) -> Metrics:
        """The most by which a figure of a ranking can be off; every other figure is exact.

        Whatever the order inside a bin, average precision lies between that of a bin with its
        positives last and of one with all its positives tied in front; AUROC is off by half of the
        pairs inside bins at most.
        """
        curves, pooled = self._curves()
        per_label = np.array([_average_precision_error(curve) for curve in curves])
        positives = np.array([curve.positives for curve in curves], dtype=np.float64)
        figures = {
            "map": mean_of_defined(per_label),
            "weighted_map": mean_of_defined(per_label, positives),
            "micro/ap": _average_precision_error(pooled),
            "macro/auroc": mean_of_defined(np.array([_auroc_error(curve) for curve in curves])),
            "micro/auroc": _auroc_error(pooled),
        }
        return figures | parts_of_map(per_label, self.train_positives)

    def _curves(self) -> tuple[list[Curve], Curve]:
        """Each label's curve and that of all entries, a bin being a tie."""
        everything, true = self.histogram
        curves = [_binned_curve(*label) for label in zip(everything, true, strict=True)]
        return curves, _binned_curve(everything.sum(axis=0), true.sum(axis=0))


def _binned_curve(everything: Ints, true: Ints) -> Curve:
    falling = np.flatnonzero(everything)[::-1]
    lower_edges = expit((2 * falling / len(everything) - 1) * _LOGITS).astype(np.float32)
    ends, hits = everything[falling].cumsum() - 1, true[falling].cumsum()
    return Curve(np.empty(0, dtype=np.int32), ends, hits, lower_edges)


def _steps(curve: Curve) -> tuple[Ints, Ints, Ints, Ints]:
    """Positives and negatives above each bin, and in it."""
    positives = np.diff(curve.hits, prepend=0)
    negatives = np.diff(curve.predicted - curve.hits, prepend=0)
    above = curve.hits - positives
    return above, curve.predicted - curve.hits - negatives, positives, negatives


def _average_precision_error(curve: Curve) -> float:
    """How far the average precision can be from that of the scores; NaN without a positive."""
    if not curve.positives:
        return float("nan")
    hits, misses, positives, negatives = _steps(curve)
    middle = positives * curve.hits / curve.predicted
    # Positives last: the sum over j = 1 ... positives of (hits + j) / (hits + misses + j), where
    # the bin's negatives are among the misses.
    worse = misses + negatives
    at_least = hits + worse + 1
    low = positives - worse * (digamma(at_least + positives) - digamma(at_least))
    high = positives * curve.hits / np.maximum(curve.hits + misses, 1)
    return float(max((middle - low).sum(), (high - middle).sum()) / curve.positives)


def _auroc_error(curve: Curve) -> float:
    """How far the AUROC can be from that of the scores; NaN if positives or negatives lack."""
    _, _, positives, negatives = _steps(curve)
    pairs = int(positives.sum()) * int(negatives.sum())
    return float((positives * negatives).sum() / 2 / pairs) if pairs else float("nan")
