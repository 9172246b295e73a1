"""Pictures that are there more than once, found by a perceptual hash.

Owns the hash and the search. Knows nothing of labels.

The hash is the sign of the lowest 8 x 8 frequencies of the grey picture against their median
(Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Two pictures are
near duplicates if at most 6 of its 64 bits differ, and so do the small grey pictures little.

    pairs = find_duplicates(data)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuswide.data.dataset import Dataset

_SIDE_PX = 32  # of the grey picture that is hashed
_MOST_BITS = 6
# Pictures with at most 6 differing bits agree in one of 7 bands at least.
_BANDS = ((0, 9), (9, 9), (18, 9), (27, 9), (36, 9), (45, 9), (54, 10))
_MOST_GREYS = 10.0  # mean difference of two grey pictures, of 255
_BLOCK = 1024


@dataclass(frozen=True)
class Pair:
    """Samples that show the same picture. is_exact: whether all their decoded pixels are equal."""

    first: int
    second: int
    bits: int
    is_exact: bool


def find_duplicates(data: Dataset) -> list[Pair]:
    """Find pairs of samples with the same picture, exact ones first.

    Of pictures that are there many times, each is paired with the first of them only.
    """
    greys = np.concatenate([_shrink(block) for block in _blocks(data)])
    hashes = _hash(greys)
    found = []
    for i, j in sorted(_candidates(hashes)):
        difference = np.abs(greys[i].astype(np.int16) - greys[j]).mean()
        if difference <= _MOST_GREYS:
            bits = int(np.bitwise_count(hashes[i] ^ hashes[j]))
            is_exact = bits == 0 and difference == 0 and _are_equal(data, i, j)
            found.append(Pair(i, j, bits, is_exact))
    return sorted(found, key=lambda pair: (not pair.is_exact, pair.bits, pair.first))


def _blocks(data: Dataset) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(data), _BLOCK):
        yield data.gather(np.arange(start, min(start + _BLOCK, len(data))))


def _shrink(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Make images (N, 3, S, S) grey and small by means of areas; (N, 32, 32)."""
    grey = images.mean(axis=1, dtype=np.float32)
    edges = np.linspace(0, grey.shape[-1], _SIDE_PX + 1).astype(int)
    sizes = np.diff(edges)
    rows = np.add.reduceat(grey, edges[:-1], axis=1) / sizes[:, None]
    areas = np.add.reduceat(rows, edges[:-1], axis=2) / sizes
    return areas.round().astype(np.uint8)


def _hash(greys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash grey pictures (N, 32, 32); (N,)."""
    places = (np.arange(_SIDE_PX) + 0.5) / _SIDE_PX
    waves = np.cos(np.pi * np.arange(8)[:, None] * places).astype(np.float32)
    low = np.concatenate(
        [waves @ greys[i : i + _BLOCK] @ waves.T for i in range(0, len(greys), _BLOCK)]
    ).reshape(-1, 64)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)  # the first is the mean grey
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _candidates(hashes: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures whose hashes are equal or near."""
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    pairs = {(int(first[u]), i) for i, u in enumerate(inverse) if first[u] != i}
    for shift, width in _BANDS:
        band = (unique >> np.uint64(shift)) & np.uint64(2**width - 1)
        order = np.argsort(band, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            for start in range(0, len(group), _BLOCK):  # a matrix of bounded height
                rows = group[start : start + _BLOCK]
                apart = np.bitwise_count(unique[rows, None] ^ unique[None, group[start:]])
                near = np.argwhere(np.triu(apart <= _MOST_BITS, k=1))
                for a, b in near.tolist():
                    i, j = int(first[rows[a]]), int(first[group[start + b]])
                    pairs.add((min(i, j), max(i, j)))
    return pairs


def _are_equal(data: Dataset, i: int, j: int) -> bool:
    one, other = data.gather(np.array([i, j]))
    return bool(np.array_equal(one, other))
