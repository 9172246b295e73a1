"""Duplicate images, found by a perceptual hash.

Owns the hash and the search. Reads no labels.

The hash compares the lowest 8 x 8 frequencies of the grey image with their median (Zauner,
Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Two images are near
duplicates if at most 6 of its 64 bits differ and the mean difference of the small grey images is
at most 10 of 255.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuswide.data.dataset import Dataset

_SIDE_PX = 32  # of the grey image that is hashed
_MAX_BITS = 6
# Hashes with at most 6 differing bits agree in at least one of 7 bands.
_BANDS = ((0, 9), (9, 9), (18, 9), (27, 9), (36, 9), (45, 9), (54, 10))
_MAX_GREY_DIFFERENCE = 10.0  # mean over pixels, of 255
_BLOCK = 1024


@dataclass(frozen=True)
class DuplicatePair:
    """Two samples of one image. bits: that differ. is_exact: whether all pixels are equal."""

    first: int
    second: int
    bits: int
    is_exact: bool


def find_duplicates(data: Dataset) -> list[DuplicatePair]:
    """Find pairs of samples with the same image, exact duplicates first.

    Of more than two duplicates, each is paired with the first one only.
    """
    greys = np.concatenate([_shrink(block) for block in _blocks(data)])
    hashes = _hash(greys)
    found = []
    for i, j in sorted(_candidates(hashes)):
        difference = np.abs(greys[i].astype(np.int16) - greys[j]).mean()
        if difference <= _MAX_GREY_DIFFERENCE:
            bits = int(np.bitwise_count(hashes[i] ^ hashes[j]))
            is_exact = bits == 0 and difference == 0 and _are_equal(data, i, j)
            found.append(DuplicatePair(i, j, bits, is_exact))
    return sorted(found, key=lambda pair: (not pair.is_exact, pair.bits, pair.first))


def _blocks(data: Dataset) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(data), _BLOCK):
        yield data.gather(np.arange(start, min(start + _BLOCK, len(data))))


def _shrink(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce images (N, 3, S, S) to small grey ones by area means; (N, 32, 32)."""
    grey = images.mean(axis=1, dtype=np.float32)
    edges = np.linspace(0, grey.shape[-1], _SIDE_PX + 1).astype(int)
    sizes = np.diff(edges)
    rows = np.add.reduceat(grey, edges[:-1], axis=1) / sizes[:, None]
    areas = np.add.reduceat(rows, edges[:-1], axis=2) / sizes
    return areas.round().astype(np.uint8)


def _hash(greys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash grey images (N, 32, 32); (N,)."""
    centres = (np.arange(_SIDE_PX) + 0.5) / _SIDE_PX
    waves = np.cos(np.pi * np.arange(8)[:, None] * centres).astype(np.float32)
    low = np.concatenate(
        [waves @ greys[i : i + _BLOCK] @ waves.T for i in range(0, len(greys), _BLOCK)]
    ).reshape(-1, 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # the first is the mean grey
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _candidates(hashes: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """Return pairs (i, j), i < j, of images whose hashes are equal or near."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = {(int(first[u]), i) for i, u in enumerate(inverse) if first[u] != i}
    for shift, width in _BANDS:
        band = (unique >> np.uint64(shift)) & np.uint64(2**width - 1)
        order = np.argsort(band, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(group), _BLOCK):  # a matrix of bounded height
                rows = group[start : start + _BLOCK]
                apart = np.bitwise_count(unique[rows, None] ^ unique[None, group[start:]])
                near = np.argwhere(np.triu(apart <= _MAX_BITS, k=1))
                for a, b in near.tolist():
                    i, j = int(first[rows[a]]), int(first[group[start + b]])
                    pairs.add((min(i, j), max(i, j)))
    return pairs


def _are_equal(data: Dataset, i: int, j: int) -> bool:
    one, other = data.gather(np.array([i, j]))
    return bool(np.array_equal(one, other))
