"""Metrics of rankings, which do not depend on thresholds.

Owns average precision and AUROC along each label's images, their means, and LRAP, coverage error
and ranking loss along each image's labels.

    >>> targets = np.array([[1], [0], [1]], dtype=np.uint8)
    >>> scores = np.array([[0.9], [0.6], [0.4]], dtype=np.float32)
    >>> round(average_precision(Predictions(targets, scores, 0.5).curves[0]), 3)
    0.833
"""

import numpy as np

from nuswide.metrics.predictions import Curve, Floats, Ints, Metrics, Predictions

# More than 100 positives in train are many, fewer than 20 few: Liu et al. 2019, arXiv:1904.05160,
# and for multi-label sets Wu et al. 2020, arXiv:2007.09654.
MANY, FEW = 100, 20
_CHUNK = 2**22  # entries compared at once


def average_precision(curve: Curve) -> float:
    """Return the tie-aware, not interpolated average precision; NaN without a positive.

    The sum over distinct scores, from the highest, of the rise in recall times the precision.
    """
    if not curve.positives:
        return float("nan")
    rises = np.diff(curve.hits, prepend=0)
    return float((rises * (curve.hits / curve.predicted)).sum() / curve.positives)


def auroc(curve: Curve) -> float:
    """Return the chance that a positive outranks a negative, ties half; NaN if either lacks."""
    misses = curve.predicted - curve.hits
    pairs = curve.positives * int(misses[-1]) if len(misses) else 0
    if not pairs:
        return float("nan")
    rises = np.diff(curve.hits, prepend=0)
    # A positive beats the negatives below its score, and half of those at it.
    beaten = misses[-1] - (misses + np.insert(misses[:-1], 0, 0)) / 2
    return float((rises * beaten).sum() / pairs)


def mean_of_defined(values: Floats, weights: Floats | None = None) -> float:
    """Return the mean of the values that are not NaN; NaN if all are."""
    defined = ~np.isnan(values)
    if not defined.any():
        return float("nan")
    chosen = None if weights is None else weights[defined]
    return float(np.average(values[defined], weights=chosen))


def label_average_precision(predictions: Predictions) -> Floats:
    """Return each label's average precision on its known images; (C,), NaN without a positive."""
    return np.array([average_precision(curve) for curve in predictions.curves])


def average_precisions(predictions: Predictions) -> Metrics:
    """`map` over the labels that have a positive, how many have none, and other means of AP.

    `weighted_map` weighs labels by their positives, `micro/ap` ranks all labels' entries together.
    With train_positives, `head_map`, `medium_map` and `tail_map` are over the labels with more than
    100, 20 to 100 and fewer than 20 of them; NaN where there is no such label.
    """
    per_label = label_average_precision(predictions)
    positives = predictions.true.sum(axis=0)
    found = {
        "map": mean_of_defined(per_label),
        "weighted_map": mean_of_defined(per_label, positives.astype(np.float64)),
        "micro/ap": average_precision(predictions.pooled),
        "labels_without_positives": float((positives == 0).sum()),
    }
    return found | _maps_by_frequency(per_label, predictions.train_positives)


def _maps_by_frequency(per_label: Floats, train_positives: Ints | None) -> Metrics:
    """Return the mean AP of frequent, medium and rare labels; nothing without train_positives."""
    if train_positives is None:
        return {}
    is_head, is_tail = train_positives > MANY, train_positives < FEW
    parts = {"head": is_head, "medium": ~is_head & ~is_tail, "tail": is_tail}
    return {f"{name}_map": mean_of_defined(per_label[part]) for name, part in parts.items()}


def areas(predictions: Predictions) -> Metrics:
    """`macro/auroc` over the labels that have positives and negatives, and `micro/auroc`."""
    per_label = np.array([auroc(curve) for curve in predictions.curves])
    return {"macro/auroc": mean_of_defined(per_label), "micro/auroc": auroc(predictions.pooled)}


def image_means(predictions: Predictions) -> Metrics:
    """`lrap`, `coverage_error` and `ranking_loss`: means over the images."""
    return {name: float(values.mean()) for name, values in image_rankings(predictions).items()}


def image_rankings(predictions: Predictions) -> dict[str, Floats]:
    """Return each image's LRAP, coverage error and ranking loss; (N,) each.

    As scikit-learn defines them, over the image's known labels. An image without a positive has
    LRAP 1, coverage error 0 and ranking loss 0; one without a negative has ranking loss 0. A tie
    counts as the wrong order.
    """
    n_images = len(predictions.targets)
    image, label = np.nonzero(predictions.true)
    rank, hits = _ranks(predictions, image, label)
    n_true = np.bincount(image, minlength=n_images)
    known = (
        predictions.targets.shape[1] if predictions.known is None else predictions.known.sum(axis=1)
    )
    precision = np.bincount(image, hits / rank, n_images)
    wrong = np.bincount(image, rank - hits, n_images)
    coverage = np.zeros(n_images)
    np.maximum.at(coverage, image, rank)
    return {
        "lrap": np.where(n_true > 0, precision / np.maximum(n_true, 1), 1.0),
        "coverage_error": coverage,
        "ranking_loss": wrong / np.maximum(n_true * (known - n_true), 1),
    }


def _ranks(predictions: Predictions, image: Ints, label: Ints) -> tuple[Ints, Ints]:
    """Count, for true entries, the image's labels and true labels that score at least as high."""
    rank, hits = np.empty_like(image), np.empty_like(image)
    step = max(1, _CHUNK // predictions.targets.shape[1])
    for start in range(0, len(image), step):
        part = slice(start, start + step)
        scores = predictions.scores[image[part]]
        above = scores >= scores[np.arange(len(scores)), label[part], None]
        if predictions.known is not None:
            above &= predictions.known[image[part]]
        rank[part] = above.sum(axis=1)
        hits[part] = (above & predictions.true[image[part]]).sum(axis=1)
    return rank, hits
