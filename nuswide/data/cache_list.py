"""The list of caches, of images and of feature maps, and their removal.

Owns what `nuswide cache` shows.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from nuswide.core.files import temporary_path
from nuswide.data.cache import cache_folder
from nuswide.data.cache_build import ABOUT, IMAGES, layout_of_images
from nuswide.data.feature_cache import FEATURES, layout_of_maps
from nuswide.data.row_file import RowFile, file_size


@dataclass(frozen=True)
class CacheInfo:
    """A cache as `nuswide cache` lists it; str() of it is a line for the terminal."""

    key: str
    source: str
    images: int
    ready: int
    content: str
    size_bytes: int
    last_used: float

    def __str__(self) -> str:
        state = "complete" if self.ready == self.images else f"{self.ready:,} ready"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_used))
        return (
            f"{self.key}  {self.images:>8,} images, {self.content:>7s}  "
            f"{self.size_bytes / 1e9:7.2f} GB  {state}, used {used}  {self.source}"
        )


def list_caches(folder: Path) -> list[CacheInfo]:
    """Return the caches in a folder, the one used last first."""
    found = [_describe(about) for about in folder.glob(f"*/{ABOUT}")]
    return sorted(found, key=lambda info: -info.last_used)


def _describe(about: Path) -> CacheInfo:
    try:
        content = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    images, size_px = content.get("images", 0), content.get("size_px", 0)
    if shape := tuple(content.get("features", ())):
        path, file = about.with_name(FEATURES), layout_of_maps(images, shape)
    else:
        path, file = about.with_name(IMAGES), layout_of_images(images, size_px)
    return CacheInfo(
        key=about.parent.name,
        source=content.get("source", f"{ABOUT} is damaged"),
        images=images,
        ready=_count_ready(file, path),
        content="x".join(map(str, shape)) or f"{size_px} px",
        size_bytes=sum(map(file_size, about.parent.iterdir())),
        last_used=about.stat().st_mtime,
    )


def _count_ready(file: RowFile, path: Path) -> int:
    """Count the rows that are on disk: all of a complete file, whose rejected images need none."""
    if file.open(path, "r"):
        return file.shape[0]
    stored = file.open(temporary_path(path), "r")
    return 0 if stored is None else int(np.count_nonzero(stored.states[:, 0]))


def remove_cache(folder: Path, key: str) -> None:
    """Remove a cache; raises click.ClickException if there is none of that name."""
    if key not in {info.key for info in list_caches(folder)}:
        raise click.ClickException(
            f"there is no cache {key} in {folder}; `nuswide cache` lists them"
        )
    with cache_folder(folder / key, "caches"):
        shutil.rmtree(folder / key)
