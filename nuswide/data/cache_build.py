"""The files of a cache of decoded images, and their building.

Owns their format. Decodes by decode_image alone.

A cache is a folder with images.u8, rejected.csv and cache.json. images.u8 has the pixels and, after
them, two numbers for each image: the fingerprint of the file that they came from, 0 before they are
on disk, and a digest of the file's content, 0 if it was rejected. It is built under another name,
and never changed once it is in use: if files have changed, a new one replaces it, and whoever has
the old one open keeps its pixels. A killed build continues where it was.
"""

import csv
import hashlib
import io
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.core.files import atomic_write, sync_data, temporary_path
from nuswide.core.machine import available_cores
from nuswide.core.wording import counted
from nuswide.data.manifest import Manifest
from nuswide.data.row_file import RowFile, Rows
from nuswide.tagger import Preprocessing, decode_image

IMAGES, REJECTED, ABOUT = "images.u8", "rejected.csv", "cache.json"
_BLOCK = 32  # images that a thread decodes at a time
_SAVE_S = 0.5  # between saves: the work that a killed build repeats


@dataclass(frozen=True)
class Cache:
    """The decoded images of a manifest's N samples.

    images: (N, 3, S, S) uint8 on disk, read-only; zeros where a file was rejected. contents: (N,)
    uint64, a digest of each file's content, 0 where it was rejected. rejected: (row, reason) of
    each file that cannot be decoded. folder: of the cache.
    """

    images: NDArray[np.uint8]
    contents: NDArray[np.uint64]
    rejected: tuple[tuple[int, str], ...]
    folder: Path


def layout_of_images(n: int, size_px: int) -> RowFile:
    """Return the layout of the file of n images, whose pixels are one row each."""
    return RowFile((n, 3 * size_px**2), np.uint8, n_states=2)


class CacheBuilder:
    """Decodes what a cache lacks; it may be killed at any point, as it saves its progress."""

    def __init__(self, manifest: Manifest, preprocessing: Preprocessing, folder: Path) -> None:
        self.manifest = manifest
        self.preprocessing = preprocessing
        self.size_px = preprocessing.size_px
        self.folder = folder
        self.image_bytes = 3 * self.size_px**2
        # The states are the fingerprint of an image's file, and the digest of its content.
        self.file = layout_of_images(len(manifest), self.size_px)
        self.fingerprints = _fingerprints(manifest)
        self.reasons = self._read_reasons()

    def build(self) -> Cache:
        """Decode what is missing, and open the result."""
        self._write_about()
        path = self.folder / IMAGES
        self.before = self.file.open(path, "r")
        if self.before is None or not self._is_decoded(self.before).all():
            self._complete(temporary_path(path))
            temporary_path(path).replace(path)
        stored = self.file.open(path, "r")
        assert stored is not None
        contents = np.array(stored.states[:, 1])
        shape = (len(self.manifest), 3, self.size_px, self.size_px)
        rejected = np.flatnonzero(contents == 0).tolist()
        reasons = tuple((i, self.reasons[i]) for i in rejected)
        return Cache(stored.values.reshape(shape), contents, reasons, self.folder)

    def _is_decoded(self, stored: Rows) -> NDArray[np.bool_]:
        """Return which images are decoded, or rejected for a known reason; (N,)."""
        is_explained = np.zeros(len(self.manifest), bool)
        is_explained[list(self.reasons)] = True
        is_current = stored.states[:, 0] == self.fingerprints
        return np.asarray(is_current & (is_explained | (stored.states[:, 1] != 0)))

    def _complete(self, path: Path) -> None:
        """Complete a file that nobody reads yet."""
        images = counted(len(self.manifest), "decoded image")
        what = f"{images} of {self.size_px} px"
        stored = self.file.open_new(path, what=what, way_out="a smaller image_size_px")
        self.is_kept = np.zeros(len(self.manifest), bool)  # has its pixels in the file before
        if self.before is not None:
            self.is_kept = self._is_decoded(self.before)
        todo = np.flatnonzero(~self._is_decoded(stored))
        # So that a row which is decoded again does not count as decoded before it is.
        stored.states[todo] = 0
        self._decode(todo, path, stored)

    def _write_about(self) -> None:
        """Describe the cache to `nuswide cache`; the file's time is that of the last use."""
        about = {
            "source": str(self.manifest.root), "images": len(self.manifest),
            "size_px": self.size_px,
        }  # fmt: skip
        with atomic_write(self.folder / ABOUT) as file:
            json.dump(about, file)

    def _decode(self, todo: NDArray[np.int64], path: Path, stored: Rows) -> None:
        blocks = np.array_split(todo, range(_BLOCK, len(todo), _BLOCK))
        with (
            path.open("r+b", buffering=0) as file,
            ThreadPoolExecutor(available_cores()) as pool,  # Pillow releases the GIL
            tqdm(total=len(todo), desc="decoding", unit="image", disable=None, leave=False) as bar,
        ):
            futures = {pool.submit(self._decode_block, file.fileno(), b): b for b in blocks}
            waiting: dict[int, int | str] = {}
            saved_at = time.monotonic()
            try:
                for future in as_completed(futures):
                    waiting |= future.result()
                    bar.update(len(futures[future]))
                    if time.monotonic() - saved_at > _SAVE_S:
                        self._save(file.fileno(), stored, waiting)
                        saved_at = time.monotonic()
                self._save(file.fileno(), stored, waiting)
            finally:
                pool.shutdown(cancel_futures=True)

    def _decode_block(self, file: int, rows: NDArray[np.int64]) -> dict[int, int | str]:
        """Write some images into the file.

        Return the digest of each row's content, or the reason why it is rejected.
        """
        found: dict[int, int | str] = {}
        for row in rows.tolist():
            if self.before is not None and self.is_kept[row]:
                image = self.before.values[row]
                found[row] = int(self.before.states[row, 1]) or self.reasons[row]
            else:
                path = self.manifest.root / self.manifest.names[row]
                try:
                    image, found[row] = _decode_file(path, self.preprocessing)
                except ValueError as error:
                    image = np.zeros(self.image_bytes, np.uint8)
                    found[row] = " ".join(str(error).split())
            os.pwrite(file, image.data, row * self.image_bytes)
        return found

    def _save(self, file: int, stored: Rows, found: dict[int, int | str]) -> None:
        """Write the pixels to disk, then mark their rows as decoded."""
        sync_data(file)
        for row, content in found.items():
            self.reasons.pop(row, None)
            if isinstance(content, str):
                self.reasons[row] = content
            stored.states[row] = self.fingerprints[row], 0 if row in self.reasons else content
        self._write_reasons()
        stored.states.flush()
        found.clear()

    def _read_reasons(self) -> dict[int, str]:
        """Return why images were rejected, by row."""
        path = self.folder / REJECTED
        if not path.exists():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row): why for row, _, why in list(csv.reader(file))[1:]}

    def _write_reasons(self) -> None:
        lines = [("row", "image", "reason")]
        lines += [(str(r), self.manifest.names[r], w) for r, w in sorted(self.reasons.items())]
        with atomic_write(self.folder / REJECTED) as file:
            csv.writer(file, lineterminator="\n").writerows(lines)


def _decode_file(path: Path, preprocessing: Preprocessing) -> tuple[NDArray[np.uint8], int]:
    """Decode an image file; return its pixels and a digest of its content, which is never 0.

    Raises ValueError if it cannot be decoded.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"not a readable picture: {error}") from error
    image = decode_image(io.BytesIO(content), *preprocessing)
    return image, _number(content)


def _fingerprints(manifest: Manifest) -> NDArray[np.uint64]:
    """Return a number for each image file, (N,), which changes with the file and is never 0.

    ctime is part of it, because a copy that replaces a file may keep its mtime.
    """

    def of(name: str) -> int:
        try:
            stat = os.stat(manifest.root / name)
            content = f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        except (OSError, ValueError):  # a missing file is rejected when it is decoded
            content = name
        return _number(content.encode(errors="surrogateescape"))

    return np.fromiter((of(name) for name in manifest.names), np.uint64, len(manifest))


def _number(content: bytes) -> int:
    """Return a digest of 64 bits that is never 0."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest()) or 1
