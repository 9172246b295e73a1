"""The Manifest: which images, with which labels, in which split.

Owns the type, its digest and the carving of val out of train. Never reads a picture, nor knows in
what form the annotations came.

    manifest = carve_val(manifest, fraction=0.15, seed=0)
    manifest.of("val").targets.mean(axis=0)
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """N samples over C labels.

    root: folder that the image names are relative to. names: N image names. labels: C label names.
    targets: (N, C) uint8, 0 or 1. splits: (N,) strings out of SPLITS.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[str, ...]
    targets: NDArray[np.uint8]
    splits: NDArray[np.str_]

    def __post_init__(self) -> None:
        assert self.targets.shape == (len(self.names), len(self.labels))
        assert self.splits.shape == (len(self.names),)

    def __len__(self) -> int:
        return len(self.names)

    def of(self, split: str) -> "Manifest":
        """The samples of one split, in their order."""
        indices = self.indices(split)
        return replace(
            self,
            names=tuple(self.names[i] for i in indices),
            targets=self.targets[indices],
            splits=self.splits[indices],
        )

    def indices(self, split: str) -> NDArray[np.int64]:
        """Positions of one split's samples."""
        return np.flatnonzero(self.splits == split)

    @property
    def digest(self) -> str:
        """16 hex digits over labels, names, targets and splits; the folder's place is not in it."""
        content = hashlib.sha256(json.dumps([self.labels, self.names]).encode())
        content.update(np.packbits(self.targets, axis=None).tobytes())
        content.update(json.dumps(self.splits.tolist()).encode())
        return content.hexdigest()[:16]


def carve_val(manifest: Manifest, *, fraction: float, seed: int) -> Manifest:
    """Move a share of train to val so that every label keeps about that share in val.

    Aims at each label's count within one image or 5 % of its share, the looser of the two. The
    same seed gives the same split.
    The aim is that of Sechidis, Tsoumakas and Vlahavas, ECML PKDD 2011. Their greedy dealing, one
    label at a time, never takes back the other labels that an image brings along, which put some
    50 % off; swapping images mends those too.
    """
    train = manifest.indices("train")
    chosen = _stratify(manifest.targets[train], fraction, np.random.default_rng([seed, 0x5A1]))
    splits = manifest.splits.copy()
    splits[train[chosen]] = "val"
    return replace(manifest, splits=splits)


def _stratify(
    targets: NDArray[np.uint8], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose round(N * fraction) rows of targets (N, C); (N,) bool, True for chosen."""
    n, n_chosen = len(targets), round(len(targets) * fraction)
    if n_chosen in (0, n):
        return np.full(n, n_chosen > 0)
    positives = targets.astype(np.float32)
    wanted = fraction * targets.sum(axis=0)
    tolerance = np.maximum(1, 0.05 * wanted)
    best, least = np.zeros(n, dtype=bool), np.inf
    # Swapping can get stuck just outside the tolerance; another start seldom does.
    for _ in range(20):
        chosen = np.isin(np.arange(n), rng.permutation(n)[:n_chosen])
        deviation = _balance(positives, chosen, wanted, tolerance)
        if deviation < least:
            best, least = chosen, deviation
        if least <= 1:
            break
    return best


def _balance(
    positives: NDArray[np.float32],
    chosen: NDArray[np.bool_],
    wanted: NDArray[np.float64],
    tolerance: NDArray[np.float64],
) -> float:
    """Swap the best pair in and out of `chosen`, in place, until that brings no label nearer.

    Gives the largest deviation from `wanted`, in tolerances.
    """

    def cost(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return ((counts - wanted) / tolerance) ** 4  # a high power looks at the worst labels

    counts = positives[chosen].sum(axis=0, dtype=np.float64)
    while True:
        # A row adds at most 1 to a label, so that a product gives every row's exact change of cost.
        change = positives @ (cost(counts - 1) - cost(counts)).astype(np.float32)
        leaving = int(np.where(chosen, change, np.inf).argmin())
        without = counts - positives[leaving]
        change = positives @ (cost(without + 1) - cost(without)).astype(np.float32)
        entering = int(np.where(chosen, np.inf, change).argmin())
        swapped = without + positives[entering]
        if cost(swapped).sum() >= cost(counts).sum():
            return float(np.abs((counts - wanted) / tolerance).max(initial=0))
        chosen[[leaving, entering]] = False, True
        counts = swapped
