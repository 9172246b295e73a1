"""Search for notable entries: confident mistakes, best hits, suspect labels, label confusions.

Owns the search, in blocks of images, so that memory does not grow with them. Unknown entries are
never found.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nuswide.data.manifest import Manifest
from nuswide.metrics.predictions import Bools, Ints

_BLOCK = 2**21  # entries taken at once
_NONE = -np.inf
_CANDIDATES = 200  # labels that may be confused, missed and wrong ones each


class Block(NamedTuple):
    """A block of images: true entries, known negative entries, and the scores; (n, C) each."""

    true: Bools
    untrue: Bools
    scores: NDArray[np.float32]


class Entry(NamedTuple):
    """An image and a label, and the value that the search ranks them by."""

    value: float
    image: int
    label: int


Value = Callable[[Block], NDArray[np.floating]]  # -> (n, C), -inf for what is not looked for


def blocks(samples: Manifest, scores: NDArray[np.float32]) -> Iterator[tuple[int, Block]]:
    """Yield the index of each block's first image, and the block."""
    step = max(1, _BLOCK // max(1, scores.shape[1]))
    for start in range(0, len(scores), step):
        rows = slice(start, start + step)
        true = samples.targets[rows] > 0
        untrue = ~true if samples.known is None else ~true & samples.known[rows]
        yield start, Block(true, untrue, scores[rows])


def false_positives(thresholds: NDArray[np.float32]) -> Value:
    """Rank false positives, the highest score first."""
    return lambda b: np.where(b.untrue & (b.scores >= thresholds), b.scores, _NONE)


def misses(thresholds: NDArray[np.float32]) -> Value:
    """Rank false negatives, the lowest score first."""
    return lambda b: np.where(b.true & (b.scores < thresholds), -b.scores, _NONE)


def doubtful_negatives(b: Block) -> NDArray[np.floating]:
    """Rank negative labels by scores above 0.5."""
    return np.where(b.untrue & (b.scores > 0.5), b.scores, _NONE)


def doubtful_positives(b: Block) -> NDArray[np.floating]:
    """Rank positive labels by scores below 0.5."""
    return np.where(b.true & (b.scores < 0.5), 1 - b.scores, _NONE)


def find_entries(
    samples: Manifest, scores: NDArray[np.float32], value: Value, *, per_label: int
) -> list[Entry]:
    """Return the `per_label` entries of each label with the highest values, highest first."""
    floor = np.full(scores.shape[1], _NONE, dtype=np.float32)
    worth, image, label = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64)
    for start, block in blocks(samples, scores):
        values = value(block)
        rows, columns = np.nonzero(values > floor)  # an equal value of a later image is no better
        worth = np.concatenate([worth, values[rows, columns]])
        image = np.concatenate([image, rows + start])
        label = np.concatenate([label, columns])
        order = np.lexsort((image, -worth, label))
        firsts = np.searchsorted(label[order], label[order])
        kept = order[np.arange(len(order)) - firsts < per_label]
        worth, image, label = worth[kept], image[kept], label[kept]
        is_full = np.bincount(label, minlength=len(floor)) == per_label
        last = np.full_like(floor, np.inf)
        np.minimum.at(last, label, worth)
        floor = np.where(is_full, last, _NONE)
    order = np.lexsort((label, image, -worth))
    found = zip(worth[order].tolist(), image[order].tolist(), label[order].tolist(), strict=True)
    return [Entry(*entry) for entry in found]


def varied(entries: Sequence[Entry], *, count: int, n_labels: int) -> list[Entry]:
    """Return the first entries, each image once and each label at most twice if there are many."""
    per_label = max(2, -(-count // n_labels))
    chosen: list[Entry] = []
    for entry in entries:
        same = sum(other.label == entry.label for other in chosen)
        if same < per_label and all(other.image != entry.image for other in chosen):
            chosen.append(entry)
        if len(chosen) == count:
            break
    return chosen


def best_hits(
    samples: Manifest, scores: NDArray[np.float32], thresholds: NDArray[np.float32], count: int
) -> list[int]:
    """Return the best tagged images: by their F1, then labels found, then their lowest score.

    Only the scores of found labels count. Images without a hit are left out.
    """
    parts = []
    for _, block in blocks(samples, scores):
        predicted = block.scores >= thresholds
        hits = predicted & block.true
        n_hits = hits.sum(axis=1)
        f1 = 2 * n_hits / np.maximum(block.true.sum(1) + (predicted & ~_unknown(block)).sum(1), 1)
        lowest = np.where(hits, block.scores, 1).min(axis=1, initial=1)
        parts.append(np.stack([f1, n_hits, lowest]))
    f1, n_hits, lowest = np.concatenate(parts, axis=1)
    order = np.lexsort((-lowest, -n_hits, -f1))[:count]
    return [int(i) for i in order if n_hits[i]]


def _unknown(block: Block) -> Bools:
    return ~(block.true | block.untrue)


@dataclass(frozen=True)
class Confusions:
    """Label confusions. missed, wrong: indices of R and K labels, most frequent first.

    images: (R, K) where the row is missed and the column wrongly predicted. missed_images: (R,);
    wrong_images: (K,) among n_images.
    """

    missed: Ints
    wrong: Ints
    images: Ints
    missed_images: Ints
    wrong_images: Ints
    n_images: int


def find_confusions(
    samples: Manifest, scores: NDArray[np.float32], thresholds: NDArray[np.float32]
) -> Confusions:
    """Count missed and wrong labels of the same image, for the 200 most frequent of each.

    A label is missed in an image that has it and where it is not predicted; wrongly predicted in
    one that is known to lack it and where it is predicted.
    """
    n_labels = scores.shape[1]
    n_missed, n_wrong = np.zeros((2, n_labels), dtype=np.int64)
    for _, block in blocks(samples, scores):
        predicted = block.scores >= thresholds
        n_missed += (block.true & ~predicted).sum(axis=0)
        n_wrong += (block.untrue & predicted).sum(axis=0)
    missed, wrong = (_most(counts) for counts in (n_missed, n_wrong))
    images = np.zeros((len(missed), len(wrong)), dtype=np.int64)
    for _, block in blocks(samples, scores):
        predicted = block.scores >= thresholds
        rows = (block.true & ~predicted)[:, missed].astype(np.float32)
        columns = (block.untrue & predicted)[:, wrong].astype(np.float32)
        images += (rows.T @ columns).round().astype(np.int64)  # exact: a block has few rows
    return Confusions(missed, wrong, images, n_missed[missed], n_wrong[wrong], len(scores))


def _most(counts: Ints) -> Ints:
    order = np.argsort(-counts, kind="stable")[:_CANDIDATES]
    return order[counts[order] > 0]
