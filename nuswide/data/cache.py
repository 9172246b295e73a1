"""The decoded cache: a data set's pictures as uint8 pixels in one file, made once.

Owns the files of a cache, their building and their removal. Knows of decoding only that
decode_image does it, and nothing of labels.

A cache is a folder with pixels.u8 (the images), decoded.u64 (for each image the fingerprint of the
picture file that its pixels came from, 0 before they are on disk), rejected.csv and cache.json.
An image counts as decoded while its fingerprint is that of the picture file: so that a build which
was killed goes on where it was, and a picture that was changed is decoded again.

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
_BLOCK = 32  # images a thread decodes in one go
_SAVE_S = 0.5  # a killed build repeats about so much work; the disk writes while others decode


@dataclass(frozen=True)
class Cache:
    """Decoded pictures of a manifest's N samples.

    images: (N, 3, S, S) uint8 on disk, read-only; zeros where a picture was rejected. rejected:
    (row, reason) of each picture that can't be read.
    """

    images: NDArray[np.uint8]
    rejected: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class CacheInfo:
    """What `list_caches` knows of a cache; str() of it is a line for the terminal."""

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
    """Open the cache of a manifest's pictures, decoding on all cores what it lacks.

    Of two processes that ask at once, one decodes and the other waits. Raises click.ClickException
    if the disk is too small, or if pictures can't be read, unless `skip_rejected`.
    """
    place = folder / cache_key(manifest, size_px)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _exclusive_lock(place):
            rejected = _Builder(manifest, size_px, place).build()
        (place / _ABOUT).touch()
    except OSError as error:
        raise click.ClickException(_disk_error(error, folder)) from error
    if rejected and not skip_rejected:
        shown = "; ".join(f"{manifest.names[row]}: {why}" for row, why in rejected[:3])
        raise click.ClickException(
            f"{len(rejected)} of {len(manifest)} pictures can't be read: {shown}"
            f"{' ...' if len(rejected) > 3 else ''}; {place / _REJECTED} lists them; mend them, or "
            "give skip_rejected=true to leave them out"
        )
    shape = (len(manifest), 3, size_px, size_px)
    return Cache(np.memmap(place / _PIXELS, np.uint8, "r", shape=shape), rejected)


def cache_key(manifest: Manifest, size_px: int) -> str:
    """The name of a manifest's cache: its digest and order, the size and the decoder's version."""
    order = hashlib.sha256("\0".join(manifest.names).encode()).hexdigest()[:8]
    return f"{manifest.digest}-{order}-{size_px}px-v{DECODER_VERSION}"


def _exclusive_lock(cache: Path) -> AbstractContextManager[None]:
    """Keep other processes out of a cache; wait until they have left it."""
    busy = f"another process is decoding into {cache}; waiting for it"
    return exclusive_lock(cache / _LOCK, busy=busy, wait=True)


class _Builder:
    """Decodes what a cache lacks, saving its progress so that it can be killed at any moment."""

    def __init__(self, manifest: Manifest, size_px: int, place: Path) -> None:
        self.manifest = manifest
        self.size_px = size_px
        self.place = place
        self.image_bytes = 3 * size_px**2
        self.fingerprints = _fingerprints(manifest)

    def build(self) -> tuple[tuple[int, str], ...]:
        """Decode what is missing; gives the rejected pictures, (row, reason)."""
        self._make_room()
        self.decoded = np.memmap(self.place / _DECODED, np.uint64, "r+")
        todo = np.flatnonzero(self.decoded != self.fingerprints)
        rejected = self._read_rejected()
        # A row that is to be decoded again must not be found decoded half-way.
        self.decoded[todo] = 0
        self.rejected = {row: why for row, why in rejected.items() if self.decoded[row]}
        if len(todo):
            self._decode(todo)
        return tuple(sorted(self.rejected.items()))

    def _make_room(self) -> None:
        """Reserve the disk for all pixels, so that decoding can't run out of it."""
        total = len(self.manifest) * self.image_bytes
        pixels, decoded = self.place / _PIXELS, self.place / _DECODED
        sizes = [path.stat().st_size if path.exists() else 0 for path in (pixels, decoded)]
        if sizes == [total, len(self.manifest) * 8]:
            return
        free = shutil.disk_usage(self.place).free + sizes[0]
        if total > free:
            raise click.ClickException(
                f"{len(self.manifest)} decoded pictures of {self.size_px} px take "
                f"{total / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in "
                f"{self.place.parent}; make room (`nuswide cache` lists caches), give cache=DIR on "
                "a larger disk, or a smaller image_size_px"
            )
        # Fingerprints last: without a whole file of them nothing counts as decoded.
        decoded.unlink(missing_ok=True)
        with pixels.open("wb") as file:
            reserve_bytes(file, total)
        about = {
            "source": str(self.manifest.root), "images": len(self.manifest),
            "size_px": self.size_px,
        }  # fmt: skip
        with atomic_write(self.place / _ABOUT) as file:
            json.dump(about, file)
        decoded.write_bytes(bytes(8 * len(self.manifest)))

    def _decode(self, todo: NDArray[np.int64]) -> None:
        blocks = np.array_split(todo, range(_BLOCK, len(todo), _BLOCK))
        with (
            (self.place / _PIXELS).open("r+b", buffering=0) as pixels,
            ThreadPoolExecutor(available_cores()) as pool,  # Pillow lets go of the GIL
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
        """Decode some pictures into the file; gives the rejected ones' rows and reasons."""
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
        """Mark blocks as decoded, once their pixels are on disk."""
        sync_data(pixels)
        self._write_rejected()
        for rows in waiting:
            self.decoded[rows] = self.fingerprints[rows]
        self.decoded.flush()
        waiting.clear()

    def _read_rejected(self) -> dict[int, str]:
        path = self.place / _REJECTED
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row): why for row, _, why in list(csv.reader(file))[1:]}

    def _write_rejected(self) -> None:
        lines = [("row", "image", "reason")]
        lines += [(str(r), self.manifest.names[r], w) for r, w in sorted(self.rejected.items())]
        with atomic_write(self.place / _REJECTED) as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


def _fingerprints(manifest: Manifest) -> NDArray[np.uint64]:
    """A number for each picture file, another when it is changed, never 0; (N,)."""

    def of(name: str) -> int:
        try:
            stat = os.stat(manifest.root / name)
            content = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
        except (OSError, ValueError):  # a missing picture is rejected when it is decoded
            content = name
        return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest()) or 1

    return np.fromiter((of(name) for name in manifest.names), np.uint64, len(manifest))


def _disk_error(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room left for decoded pictures in {folder}; make some, and start again"
    return f"cannot write decoded pictures into {folder}: {error.strerror}; give cache=DIR"


def list_caches(folder: Path) -> list[CacheInfo]:
    """The caches in a folder, the one used last first."""
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
    """Remove one cache; raises click.ClickException if there is none of that name."""
    if key not in {info.key for info in list_caches(folder)}:
        raise click.ClickException(
            f"there is no cache {key} in {folder}; `nuswide cache` lists them"
        )
    with _exclusive_lock(folder / key):
        shutil.rmtree(folder / key)
