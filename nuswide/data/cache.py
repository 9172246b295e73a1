"""The cache of decoded images: a data set's images as uint8 pixels in one file, decoded once.

Owns the choice of a cache for a manifest, and the listing and removal of caches. Knows nothing of
labels.

    >>> cache = open_cache(manifest, Preprocessing(32), folder=folder)
    >>> cache.images[[3, 1]].shape
    (2, 3, 32, 32)
"""

import errno
import hashlib
import json
import os
import shutil
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from nuswide.core.files import exclusive_lock, temporary_path
from nuswide.core.wording import counted
from nuswide.data.cache_build import (
    ABOUT,
    IMAGES,
    REJECTED,
    Cache,
    CacheBuilder,
    StoredImages,
    file_size,
)
from nuswide.data.manifest import Manifest
from nuswide.tagger import DECODER_VERSION, Preprocessing

_LOCK = "lock"


@dataclass(frozen=True)
class CacheInfo:
    """A cache as `nuswide cache` lists it; str() of it is a line for the terminal."""

    key: str
    source: str
    images: int
    decoded: int
    size_px: int
    size_bytes: int
    last_used: float

    def __str__(self) -> str:
        state = "complete" if self.decoded == self.images else f"{self.decoded:,} decoded"
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.last_used))
        return (
            f"{self.key}  {self.images:>8,} images, {self.size_px:4d} px  "
            f"{self.size_bytes / 1e9:7.2f} GB  {state}, used {used}  {self.source}"
        )


def open_cache(
    manifest: Manifest, preprocessing: Preprocessing, *, folder: Path, skip_rejected: bool = False
) -> Cache:
    """Open the cache of a manifest's images; decode on all cores what is missing.

    If two processes open it at once, one decodes and the other waits. Raises click.ClickException
    if the disk is too small, or, unless `skip_rejected`, if files cannot be decoded.
    """
    path = folder / cache_key(manifest, preprocessing)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(path):
            cache = CacheBuilder(manifest, preprocessing, path).build()
    except OSError as error:
        raise click.ClickException(_disk_error(error, folder)) from error
    if cache.rejected and not skip_rejected:
        shown = "; ".join(f"{manifest.names[row]}: {why}" for row, why in cache.rejected[:3])
        raise click.ClickException(
            f"{len(cache.rejected)} of {counted(len(manifest), 'image')} cannot be decoded: {shown}"
            f"{' ...' if len(cache.rejected) > 3 else ''}; {path / REJECTED} lists them; repair "
            "them, or give skip_rejected=true to leave them out"
        )
    return cache


def cache_key(manifest: Manifest, preprocessing: Preprocessing) -> str:
    """Return a cache's name, from the folder and order of the images, and what decides pixels.

    Labels and splits do not matter, so that a changed label decodes nothing again.
    """
    files = "\0".join([os.path.realpath(manifest.root), *manifest.names])
    digest = hashlib.sha256(files.encode(errors="surrogateescape")).hexdigest()[:16]
    size_px, fit, interpolation, fill = preprocessing
    color = [bytes(fill).hex()] if fit == "pad" else []
    parts = [digest, f"{size_px}px", fit, *color, interpolation, f"v{DECODER_VERSION}"]
    return "-".join(parts)


def _exclusive_lock(cache: Path) -> AbstractContextManager[None]:
    """Hold the lock of a cache; wait while another process holds it."""
    busy = f"another process is decoding into {cache}; waiting for it"
    return exclusive_lock(cache / _LOCK, busy=busy, wait=True)


def _disk_error(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for decoded images in {folder}; free some, and start again"
    return f"cannot write decoded images into {folder}: {error.strerror}; give cache=DIR"


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
    path = about.with_name(IMAGES)
    files = (
        StoredImages.open(p, images, 3 * size_px**2, "r") for p in (path, temporary_path(path))
    )
    stored = next(filter(None, files), None)
    return CacheInfo(
        key=about.parent.name,
        source=content.get("source", f"{ABOUT} is damaged"),
        images=images,
        decoded=0 if stored is None else int(np.count_nonzero(stored.states[:, 0])),
        size_px=size_px,
        size_bytes=sum(map(file_size, about.parent.iterdir())),
        last_used=about.stat().st_mtime,
    )


def remove_cache(folder: Path, key: str) -> None:
    """Remove a cache; raises click.ClickException if there is none of that name."""
    if key not in {info.key for info in list_caches(folder)}:
        raise click.ClickException(
            f"there is no cache {key} in {folder}; `nuswide cache` lists them"
        )
    with _exclusive_lock(folder / key):
        shutil.rmtree(folder / key)
