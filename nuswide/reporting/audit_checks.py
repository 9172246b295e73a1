"""Checks of an audit that look at the labels only: gaps, and the bias of the first rows.

Owns IMPLIED, the implications between labels. Draws and writes nothing.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from nuswide.data.manifest import Manifest

# By the words' meaning; in NUS-WIDE the second of each is often missing.
IMPLIED = tuple(
    (label, whole)
    for whole, labels in {
        "vehicle": "boats cars plane train",
        "water": "boats lake ocean surf swimmers waterfall whales",
        "buildings": "castle house temple tower",
        "sky": "clouds rainbow sunset",
        "animal": "bear birds cat cow dog elk fish fox horses tiger whales zebra",
    }.items()
    for label in labels.split()
)
_NEARLY_ALWAYS = 0.8
_LEAST_IMAGES = 20  # of a label, before a habit is read out of them
_EXAMPLES = 3  # images named of a gap


@dataclass(frozen=True)
class Gap:
    """Images that have `label` but lack `implied`, which follows by meaning or nearly always."""

    label: str
    implied: str
    images: int
    missing: int
    examples: tuple[str, ...]
    by_meaning: bool


@dataclass(frozen=True)
class Bias:
    """Label frequencies in the first rows of train against its other rows.

    first, rest: (C,) share of images with the label. margin: (C,) half the width of the interval of
    their difference, 95 % for all labels together.
    """

    n_first: int
    first: NDArray[np.float64]
    rest: NDArray[np.float64]
    margin: NDArray[np.float64]

    @property
    def is_off(self) -> NDArray[np.bool_]:
        """Return the labels whose shares differ by more than chance; (C,)."""
        return np.asarray(np.abs(self.first - self.rest) > self.margin)


def find_gaps(manifest: Manifest) -> tuple[Gap, ...]:
    """Find labels that are missing by implication, the most missing first."""
    targets = manifest.targets.astype(np.float32)
    known = np.ones_like(targets) if manifest.known is None else manifest.known.astype(np.float32)
    judged, both = targets.T @ known, targets.T @ targets  # [a, b]: of a's images
    index = {label: i for i, label in enumerate(manifest.labels)}
    meant = {(index[a], index[b]) for a, b in IMPLIED if a in index and b in index}
    habit = (both >= _NEARLY_ALWAYS * judged) & (judged >= _LEAST_IMAGES)
    np.fill_diagonal(habit, False)
    gaps = [
        _make_gap(manifest, a, b, (a, b) in meant)
        for a, b in sorted(meant | {(int(a), int(b)) for a, b in np.argwhere(habit)})
        if judged[a, b] > both[a, b]
    ]
    return tuple(sorted(gaps, key=lambda gap: -gap.missing))


def _make_gap(manifest: Manifest, a: int, b: int, by_meaning: bool) -> Gap:
    has = manifest.targets[:, a] == 1
    if manifest.known is not None:
        has &= manifest.known[:, b]
    lacking = np.flatnonzero(has & (manifest.targets[:, b] == 0))
    examples = tuple(manifest.names[i] for i in lacking[:_EXAMPLES])
    return Gap(
        manifest.labels[a], manifest.labels[b], int(has.sum()), len(lacking), examples, by_meaning
    )


def find_bias(manifest: Manifest, n_first: int) -> Bias | None:
    """Compare the first rows of train with the others; None if there are too few others."""
    targets = manifest.targets[manifest.indices("train")]
    n_rest = len(targets) - n_first
    if n_rest < n_first:
        return None
    first, rest = (part.mean(axis=0, dtype=np.float64) for part in np.split(targets, [n_first]))
    pooled = targets.mean(axis=0, dtype=np.float64)
    # Bonferroni's correction: one false alarm among all labels in 20 data sets.
    z = NormalDist().inv_cdf(1 - 0.05 / 2 / max(1, len(manifest.labels)))
    margin = z * np.sqrt(pooled * (1 - pooled) * (1 / n_first + 1 / n_rest))
    return Bias(n_first, first, rest, margin)
