"""The cache of feature maps: what a frozen backbone makes of each image, computed once.

Owns the files and their building. Never runs a network itself.

A cache of feature maps is a folder beside that of its images, with features.f32 and cache.json.
features.f32 has the maps and, after them, a number for each: the digest of the image that it was
computed from, 0 before it is on disk. It is built under another name, and never changed once it is
in use; maps of images that have changed are computed again. A killed build continues where it was.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.core.files import atomic_write, temporary_path
from nuswide.core.wording import counted
from nuswide.data.cache import cache_folder
from nuswide.data.cache_build import ABOUT
from nuswide.data.dataset import Dataset
from nuswide.data.row_file import RowFile, Rows

FEATURES = "features.f32"
_BATCH = 64  # images of which maps are computed at once
_SAVE_S = 5.0  # between saves: the work that a killed build repeats

Shape = tuple[int, ...]  # (F, h, w)
# From uint8 images (N, 3, S, S) to feature maps (N, F, h, w).
Compute = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def layout_of_maps(n: int, shape: Shape) -> RowFile:
    """Return the layout of the file of n maps, with the digests of their images."""
    return RowFile((n, *shape), np.float32, n_states=1)


def open_features(data: Dataset, key: str, shape: Shape, compute: Compute) -> Dataset:
    """Return the data set with the feature maps of its images; compute those that are missing.

    key: of the network and its weights. shape: of a map. If two processes open them at once, one
    computes and the other waits. Raises click.ClickException if the disk is too small.
    """
    assert data.folder is not None and data.contents is not None
    folder = data.folder.with_name(f"{data.folder.name}-features-{key}")
    with cache_folder(folder, "feature maps"):
        about = {"source": str(data.manifest.root), "images": len(data.contents), "features": shape}
        with atomic_write(folder / ABOUT) as described:
            json.dump(about, described)
        file = layout_of_maps(len(data.contents), shape)
        stored = file.open(folder / FEATURES, "r")
        if stored is None or _missing(stored, data.contents).any():
            _complete(file, folder, data, stored, compute)
            stored = file.open(folder / FEATURES, "r")
    assert stored is not None
    return replace(data, features=stored.values)


def _missing(stored: Rows, contents: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return of which images a map is missing; those that were rejected have none. (M,)."""
    return np.asarray((stored.states[:, 0] != contents) & (contents != 0))


def _complete(
    file: RowFile, folder: Path, data: Dataset, before: Rows | None, compute: Compute
) -> None:
    """Build the file under another name, from the one before where images are the same."""
    path = temporary_path(folder / FEATURES)
    assert data.contents is not None
    what = f"the feature maps of {counted(len(data.contents), 'image')}"
    way_out = "cache_features=false to compute them in each epoch"
    stored = file.open_new(path, what=what, way_out=way_out)
    todo = np.flatnonzero(_missing(stored, data.contents))
    stored.states[todo] = 0  # until their maps are on disk, even if an image is as it was before
    if before is not None:
        kept = todo[~_missing(before, data.contents)[todo]]
        for start in range(0, len(kept), _BATCH):
            rows = kept[start : start + _BATCH]
            stored.values[rows] = before.values[rows]
        todo = np.setdiff1d(todo, kept)
        _save(stored, kept, data.contents)
    waiting: list[NDArray[np.int64]] = []
    saved_at = time.monotonic()
    with tqdm(total=len(todo), desc="features", unit="image", disable=None, leave=False) as bar:
        for start in range(0, len(todo), _BATCH):
            rows = todo[start : start + _BATCH]
            stored.values[rows] = compute(data.images[rows])
            waiting.append(rows)
            bar.update(len(rows))
            if time.monotonic() - saved_at > _SAVE_S or start + _BATCH >= len(todo):
                _save(stored, np.concatenate(waiting), data.contents)
                waiting, saved_at = [], time.monotonic()
    path.replace(folder / FEATURES)


def _save(stored: Rows, rows: NDArray[np.int64], contents: NDArray[np.uint64]) -> None:
    """Write maps to disk, then mark their rows as computed."""
    stored.values.flush()
    stored.states[rows, 0] = contents[rows]
    stored.states.flush()
