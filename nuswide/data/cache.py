"""The cache of decoded images: a data set's images as uint8 pixels in one file, decoded once.

Owns the files of a cache, their building and their removal. Decodes by decode_image alone, and
knows nothing of labels.

A cache is a folder with pixels.u8 (the images), decoded.u64 (for each image the fingerprint of the
file that its pixels came from, 0 before they are on disk), rejected.csv and cache.json. An image
counts as decoded while its fingerprint is that of the file. A killed build therefore continues
where it was, and a file that has changed is decoded again.

    cache = open_cache(manifest, size_px=256, folder=Path("data/cache"))
    cache.images[[3, 1, 2]]
"""

import csv
import errno
import hashlib
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.core.files import atomic_write, exclusive_lock, reserve_bytes, sync_data
from nuswide.core.machine import available_cores
from nuswide.data.manifest import Manifest
from nuswide.tagger import DECODER_VERSION, decode_image

_PIXELS, _DECODED, _REJECTED = "pixels.u8", "decoded.u64", "rejected.csv"
_ABOUT, _LOCK = "cache.json", "lock"
_BLOCK = 32  # images that a thread decodes at a time
_SAVE_S = 0.5  # between saves: the work that a killed build repeats


@dataclass(frozen=True)
class Cache:
    """The decoded images of a manifest's N samples.

    images: (N, 3, S, S) uint8 on disk, read-only; zeros where a file was rejected. rejected: (row,
    reason) of each file that cannot be decoded.
    """

    images: NDArray[np.uint8]
    rejected: tuple[tuple[int, str], ...]


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
    manifest: Manifest, *, size_px: int, folder: Path, skip_rejected: bool = False
) -> Cache:
    """Open the cache of a manifest's images; decode on all cores what is missing.

    If two processes open it at once, one decodes and the other waits. Raises click.ClickException
    if the disk is too small, or, unless `skip_rejected`, if files cannot be decoded.
    """
    path = folder / cache_key(manifest, size_px)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(path):
            rejected = _Builder(manifest, size_px, path).build()
        (path / _ABOUT).touch()
    except OSError as error:
        raise click.ClickException(_disk_error(error, folder)) from error
    if rejected and not skip_rejected:
        shown = "; ".join(f"{manifest.names[row]}: {why}" for row, why in rejected[:3])
        raise click.ClickException(
            f"{len(rejected)} of {len(manifest)} images cannot be decoded: {shown}"
            f"{' ...' if len(rejected) > 3 else ''}; {path / _REJECTED} lists them; repair them, "
            "or give skip_rejected=true to leave them out"
        )
    shape = (len(manifest), 3, size_px, size_px)
    return Cache(np.memmap(path / _PIXELS, np.uint8, "r", shape=shape), rejected)


def cache_key(manifest: Manifest, size_px: int) -> str:
    """Return a cache's name, from the manifest's digest and order, the size and the decoder."""
    order = hashlib.sha256("\0".join(manifest.names).encode()).hexdigest()[:8]
    return f"{manifest.digest}-{order}-{size_px}px-v{DECODER_VERSION}"


def _exclusive_lock(cache: Path) -> AbstractContextManager[None]:
    """Hold the lock of a cache; wait while another process holds it."""
    busy = f"another process is decoding into {cache}; waiting for it"
    return exclusive_lock(cache / _LOCK, busy=busy, wait=True)


class _Builder:
    """Decodes what a cache lacks; it may be killed at any point, as it saves its progress."""

    def __init__(self, manifest: Manifest, size_px: int, folder: Path) -> None:
        self.manifest = manifest
        self.size_px = size_px
        self.folder = folder
        self.image_bytes = 3 * size_px**2
        self.fingerprints = _fingerprints(manifest)

    def build(self) -> tuple[tuple[int, str], ...]:
        """Decode what is missing; return the rejected images, (row, reason)."""
        self._make_room()
        self.decoded = np.memmap(self.folder / _DECODED, np.uint64, "r+")
        todo = np.flatnonzero(self.decoded != self.fingerprints)
        rejected = self._read_rejected()
        # So that a row which is decoded again does not count as decoded before it is.
        self.decoded[todo] = 0
        self.rejected = {row: why for row, why in rejected.items() if self.decoded[row]}
        if len(todo):
            self._decode(todo)
        return tuple(sorted(self.rejected.items()))

    def _make_room(self) -> None:
        """Reserve disk space for all pixels, so that decoding cannot run out of it."""
        total = len(self.manifest) * self.image_bytes
        pixels, decoded = self.folder / _PIXELS, self.folder / _DECODED
        sizes = [path.stat().st_size if path.exists() else 0 for path in (pixels, decoded)]
        if sizes == [total, len(self.manifest) * 8]:
            return
        free = shutil.disk_usage(self.folder).free + sizes[0]
        if total > free:
            raise click.ClickException(
                f"{len(self.manifest)} decoded images of {self.size_px} px take "
                f"{total / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
                f"{self.folder.parent}; free some (`nuswide cache` lists caches), give cache=DIR "
                "on a larger disk, or a smaller image_size_px"
            )
        # Fingerprints last: without their complete file, nothing counts as decoded.
        decoded.unlink(missing_ok=True)
        with pixels.open("wb") as file:
            reserve_bytes(file, total)
        about = {
            "source": str(self.manifest.root), "images": len(self.manifest),
            "size_px": self.size_px,
        }  # fmt: skip
        with atomic_write(self.folder / _ABOUT) as file:
            json.dump(about, file)
        decoded.write_bytes(bytes(8 * len(self.manifest)))

    def _decode(self, todo: NDArray[np.int64]) -> None:
        blocks = np.array_split(todo, range(_BLOCK, len(todo), _BLOCK))
        with (
            (self.folder / _PIXELS).open("r+b", buffering=0) as pixels,
            ThreadPoolExecutor(available_cores()) as pool,  # Pillow releases the GIL
            tqdm(total=len(todo), desc="decoding", unit="image", disable=None, leave=False) as bar,
        ):
            futures = {pool.submit(self._decode_block, pixels.fileno(), b): b for b in blocks}
            waiting: list[NDArray[np.int64]] = []
            saved_at = time.monotonic()
            try:
                for future in as_completed(futures):
                    self.rejected |= future.result()
                    waiting.append(futures[future])
                    bar.update(len(waiting[-1]))
                    if time.monotonic() - saved_at > _SAVE_S:
                        self._save(pixels.fileno(), waiting)
                        saved_at = time.monotonic()
                self._save(pixels.fileno(), waiting)
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode_block(self, pixels: int, rows: NDArray[np.int64]) -> dict[int, str]:
        """Decode some images into the file; return the rows and reasons of the rejected ones."""
        rejected = {}
        for row in rows.tolist():
            try:
                image = decode_image(self.manifest.root / self.manifest.names[row], self.size_px)
            except ValueError as error:
                rejected[row] = " ".join(str(error).split())
                image = np.zeros(self.image_bytes, np.uint8)
            os.pwrite(pixels, image.data, row * self.image_bytes)
        return rejected

    def _save(self, pixels: int, waiting: list[NDArray[np.int64]]) -> None:
        """Write the pixels to disk, then mark blocks as decoded."""
        sync_data(pixels)
        self._write_rejected()
        for rows in waiting:
            self.decoded[rows] = self.fingerprints[rows]
        self.decoded.flush()
        waiting.clear()

    def _read_rejected(self) -> dict[int, str]:
        path = self.folder / _REJECTED
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row): why for row, _, why in list(csv.reader(file))[1:]}

    def _write_rejected(self) -> None:
        lines = [("row", "image", "reason")]
        lines += [(str(r), self.manifest.names[r], w) for r, w in sorted(self.rejected.items())]
        with atomic_write(self.folder / _REJECTED) as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


def _fingerprints(manifest: Manifest) -> NDArray[np.uint64]:
    """Return a number for each image file, (N,), which changes with the file and is never 0."""

    def of(name: str) -> int:
        try:
            stat = os.stat(manifest.root / name)
            content = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
        except (OSError, ValueError):  # a missing file is rejected when it is decoded
            content = name
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) or 1

    return np.fromiter((of(name) for name in manifest.names), np.uint64, len(manifest))


def _disk_error(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for decoded images in {folder}; free some, and start again"
    return f"cannot write decoded images into {folder}: {error.strerror}; give cache=DIR"


def list_caches(folder: Path) -> list[CacheInfo]:
    """Return the caches in a folder, the one used last first."""
    found = [_describe(about) for about in folder.glob(f"*/{_ABOUT}")]
    return sorted(found, key=lambda info: -info.last_used)


def _describe(about: Path) -> CacheInfo:
    content = json.loads(about.read_text(encoding="utf-8"))
    decoded = about.with_name(_DECODED)
    count = np.count_nonzero(np.fromfile(decoded, np.uint64)) if decoded.exists() else 0
    return CacheInfo(
        key=about.parent.name,
        source=content["source"],
        images=content["images"],
        decoded=int(count),
        size_px=content["size_px"],
        size_bytes=sum(file.stat().st_size for file in about.parent.iterdir()),
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
