"""What metrics are computed from: targets, scores, thresholds, and images ranked by score.

Owns the types, Predictions and Curve. Computes no metric.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Targets = NDArray[np.uint8]
Scores = NDArray[np.float32]
Known = NDArray[np.bool_] | None  # None: every entry is known
Thresholds = float | NDArray[np.floating]  # one for all labels, or (C,)
Metrics = dict[str, float]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """Entries by falling score, grouped by distinct score, so that ties are predicted together.

    order: (M,) the images, highest score first. ends: (K,) the last index of each distinct score.
    hits: (K,) how many entries down to there are true. scores: (K,), falling.
    """

    order: NDArray[np.int32]
    ends: Ints
    hits: Ints
    scores: Scores

    @property
    def predicted(self) -> Ints:
        """Return how many entries have at least each distinct score; (K,)."""
        return self.ends + 1

    @property
    def positives(self) -> int:
        """Return the number of true entries."""
        return int(self.hits[-1]) if len(self.hits) else 0


def make_curve(true: Bools, scores: Scores, images: NDArray[np.int32]) -> Curve:
    """Sort entries (M,) by score. images: (M,) the image of each."""
    order = np.argsort(-scores)
    falling = scores[order]
    is_last = np.append(falling[1:] != falling[:-1], True)[: len(falling)]
    ends = np.flatnonzero(is_last)
    return Curve(images[order], ends, true[order].cumsum(dtype=np.int64)[ends], falling[ends])


@dataclass(frozen=True)
class Predictions:
    """Targets and scores of the same images, and what many metrics need of them, computed once.

    targets, scores, known: (N, C), scores in [0, 1]. An unknown entry is neither true nor
    predicted, and has no place in a ranking. train_positives: (C,), for the metrics of frequent and
    rare labels. Raises ValueError if shapes differ or a score is no number in [0, 1].
    """

    targets: Targets
    scores: Scores
    thresholds: Thresholds = 0.5
    known: Known = None
    train_positives: Ints | None = None

    def __post_init__(self) -> None:
        shape = self.targets.shape
        if self.scores.shape != shape or (self.known is not None and self.known.shape != shape):
            raise ValueError(f"targets {shape}, scores {self.scores.shape} and known must match")
        if self.scores.size and not (self.scores.min() >= 0 and self.scores.max() <= 1):
            raise ValueError("scores must be numbers from 0 to 1")

    @cached_property
    def true(self) -> Bools:
        """Return which entries are known to be true; (N, C)."""
        true = self.targets > 0
        return true if self.known is None else true & self.known

    @cached_property
    def predicted(self) -> Bools:
        """Return which known entries reach their threshold; (N, C)."""
        # In the scores' own precision: a score at its threshold is predicted.
        predicted = self.scores >= np.asarray(self.thresholds, dtype=self.scores.dtype)
        return predicted if self.known is None else predicted & self.known

    @cached_property
    def n_known(self) -> Ints:
        """Return the number of images with a known entry for each label; (C,)."""
        n_images, n_labels = self.targets.shape
        return np.full(n_labels, n_images) if self.known is None else self.known.sum(axis=0)

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Each label's images by falling score."""
        n_images, n_labels = self.targets.shape
        if self.known is None:
            rows = [np.arange(n_images, dtype=np.int32)] * n_labels
        else:
            rows = [np.flatnonzero(known).astype(np.int32) for known in self.known.T]
        columns = zip(self.true.T, self.scores.T, rows, strict=True)
        return tuple(make_curve(true[r], scores[r], r) for true, scores, r in columns)

    @cached_property
    def pooled(self) -> Curve:
        """The entries of all labels in one ranking."""
        n_images, n_labels = self.targets.shape
        images = np.repeat(np.arange(n_images, dtype=np.int32), n_labels)
        kept = slice(None) if self.known is None else self.known.ravel()
        return make_curve(self.true.ravel()[kept], self.scores.ravel()[kept], images[kept])
