"""The cache of feature maps: what a frozen backbone makes of each image, computed once.

Owns the files and their building. Never runs a network itself.

A cache of feature maps is a folder beside that of its images, with features.f32 and cache.json.
features.f32 has the maps and, after them, a number for each: the digest of the image that it was
computed from, 0 before it is on disk. It is built under another name, and never changed once it is
in use; maps of images that have changed are computed again. A killed build continues where it was.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.core.files import atomic_write, reserve_bytes, temporary_path
from nuswide.core.wording import counted
from nuswide.data.cache import cache_folder
from nuswide.data.cache_build import ABOUT, file_size
from nuswide.data.dataset import Dataset

FEATURES = "features.f32"
_BATCH = 64  # images of which maps are computed at once
_SAVE_S = 5.0  # between saves: the work that a killed build repeats

Shape = tuple[int, int, int]
# From uint8 images (N, 3, S, S) to feature maps (N, F, h, w).
Compute = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class StoredFeatures:
    """The file of M feature maps: maps (M, F, h, w), and digests (M,) of their images."""

    maps: "np.memmap[Any, np.dtype[np.float32]]"
    digests: "np.memmap[Any, np.dtype[np.uint64]]"

    @classmethod
    def open(cls, path: Path, n: int, shape: Shape, mode: Literal["r", "r+"]) -> Self | None:
        """Map a file into memory; None if there is none of this size."""
        if n == 0 or file_size(path) != bytes_of(n, shape):
            return None
        maps = np.memmap(path, np.float32, mode, shape=(n, *shape))
        return cls(maps, np.memmap(path, np.uint64, mode, maps.nbytes, (n,)))


def bytes_of(n: int, shape: Shape) -> int:
    """Return the bytes of the file of n maps."""
    return n * (4 * int(np.prod(shape)) + 8)


def open_features(data: Dataset, key: str, shape: Shape, compute: Compute) -> Dataset:
    """Return the data set with the feature maps of its images; compute those that are missing.

    key: of the network and its weights. shape: of a map. If two processes open them at once, one
    computes and the other waits. Raises click.ClickException if the disk is too small.
    """
    assert data.folder is not None and data.contents is not None
    folder = data.folder.with_name(f"{data.folder.name}-features-{key}")
    with cache_folder(folder, "feature maps"):
        about = {"source": str(data.manifest.root), "images": len(data.contents), "features": shape}
        with atomic_write(folder / ABOUT) as file:
            json.dump(about, file)
        stored = StoredFeatures.open(folder / FEATURES, len(data.contents), shape, "r")
        if stored is None or _missing(stored, data.contents).any():
            _complete(folder, data, stored, shape, compute)
            stored = StoredFeatures.open(folder / FEATURES, len(data.contents), shape, "r")
    assert stored is not None
    return replace(data, features=stored.maps)


def _missing(stored: StoredFeatures, contents: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return of which images a map is missing; those that were rejected have none. (M,)."""
    return np.asarray((stored.digests != contents) & (contents != 0))


def _complete(
    folder: Path, data: Dataset, before: StoredFeatures | None, shape: Shape, compute: Compute
) -> None:
    """Build the file under another name, from the one before where images are the same."""
    path = temporary_path(folder / FEATURES)
    assert data.contents is not None
    if (stored := StoredFeatures.open(path, len(data.contents), shape, "r+")) is None:
        _make_room(path, len(data.contents), shape)
        stored = StoredFeatures.open(path, len(data.contents), shape, "r+")
        assert stored is not None
    todo = np.flatnonzero(_missing(stored, data.contents))
    stored.digests[todo] = 0  # until their maps are on disk, even if an image is as it was before
    if before is not None:
        kept = todo[~_missing(before, data.contents)[todo]]
        for start in range(0, len(kept), _BATCH):
            rows = kept[start : start + _BATCH]
            stored.maps[rows] = before.maps[rows]
        todo = np.setdiff1d(todo, kept)
        _save(stored, kept, data.contents)
    waiting: list[NDArray[np.int64]] = []
    saved_at = time.monotonic()
    with tqdm(total=len(todo), desc="features", unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(todo), _BATCH):
            rows = todo[start : start + _BATCH]
            stored.maps[rows] = compute(data.images[rows])
            waiting.append(rows)
            bar.update(len(rows))
            if time.monotonic() - saved_at > _SAVE_S or start + _BATCH >= len(todo):
                _save(stored, np.concatenate(waiting), data.contents)
                waiting, saved_at = [], time.monotonic()
    path.replace(folder / FEATURES)


def _make_room(path: Path, n: int, shape: Shape) -> None:
    """Reserve disk space for all maps, so that computing cannot run out of it."""
    path.unlink(missing_ok=True)
    total, free = bytes_of(n, shape), shutil.disk_usage(path.parent).free
    if total > free:
        raise click.ClickException(
            f"the feature maps of {counted(n, 'image')} take {total / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free in {path.parent.parent}; free some (`nuswide cache` "
            "lists caches), give cache=DIR on a larger disk, or cache_features=false to compute "
            "them in each epoch"
        )
    with path.open("wb") as file:
        reserve_bytes(file, total)


def _save(stored: StoredFeatures, rows: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Write maps to disk, then mark their rows as computed."""
    stored.maps.flush()
    stored.digests[rows] = contents[rows]
    stored.digests.flush()
