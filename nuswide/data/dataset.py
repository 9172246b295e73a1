"""A data set: samples with their decoded images.

Owns the way from a Manifest to uint8 images. Never augments, and never reads a score.

    >>> data = open_dataset(manifest, Preprocessing(32), folder=folder)
    >>> data.gather(manifest.indices("test")).shape
    (3, 3, 32, 32)
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.data.cache import open_cache
from nuswide.data.importers import read_annotations
from nuswide.data.locate import describe_missing, find_images
from nuswide.data.manifest import Manifest
from nuswide.data.sample import draw_sample
from nuswide.data.splits import hold_out
from nuswide.tagger import Preprocessing

SAMPLE = "sample"
SAMPLE_FOLDER = Path("data/sample")


@dataclass(frozen=True)
class Dataset:
    """N samples with their decoded images.

    images: (M, 3, S, S) uint8, on disk, M >= N. rows: (N,) the row of images of each sample.
    rejected: (name, reason) of each image that was left out.
    contents: (M,) uint64, a digest of each image file, if there are files.
    folder: of the cache of the images, if they are in one.
    features: (M, F, h, w) float32, on disk, the frozen backbone's map of each image where it was
    computed once; what the head trains on in place of the images.
    """

    manifest: Manifest
    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    rejected: tuple[tuple[str, str], ...] = ()
    contents: NDArray[np.uint64] | None = None
    folder: Path | None = None
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.manifest)

    def of(self, split: str) -> "Dataset":
        """Return the samples of one split, in order; no image is copied."""
        indices = self.manifest.indices(split)
        return replace(self, manifest=self.manifest.take(indices), rows=self.rows[indices])

    @cached_property
    def images_digest(self) -> str:
        """A digest of the content of the image files; 16 hex digits, `none` without files.

        Like the manifest's digest, it is independent of the folder and of the order of the images.
        """
        if self.contents is None:
            return "none"
        names = (PurePosixPath(name).name for name in self.manifest.names)
        contents = self.contents[self.rows].tolist()
        rows = sorted(f"{n}\0{c:016x}" for n, c in zip(names, contents, strict=True))
        return hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()[:16]

    @property
    def map_shape(self) -> tuple[int, ...] | None:
        """(F, h, w) of the feature maps, if there are any."""
        return None if self.features is None else self.features.shape[1:]

    @property
    def inputs(self) -> NDArray[np.uint8] | NDArray[np.float32]:
        """What the trained part of the network takes: (M, ...), feature maps or else images."""
        return self.images if self.features is None else self.features

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read the images of some samples into memory; (len(indices), 3, S, S)."""
        return self.images[self.rows[indices]]

    def gather_inputs(self, indices: NDArray[np.int64]) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Read the inputs of some samples into memory."""
        return self.inputs[self.rows[indices]]

    def hold_out(
        self,
        *,
        val_fraction: float,
        seed: int,
        test_fraction: float = 0.0,
        folds: int = 0,
        fold: int = 0,
    ) -> "Dataset":
        """Split test and val off train, as splits.hold_out does."""
        carved = hold_out(
            self.manifest, test_fraction=test_fraction, val_fraction=val_fraction, seed=seed,
            folds=folds, fold=fold,
        )  # fmt: skip
        is_carved = folds or (val_fraction and not len(self.manifest.indices("val")))
        if is_carved and not carved.of("val").targets.any():
            which = f"fold={fold} of folds={folds}" if folds else f"val_fraction={val_fraction}"
            way_out = "raise it, or give val_fraction=0 and select_on=last"
            raise click.ClickException(
                f"{which} of train leaves val without any label; "
                f"{'lower folds' if folds else way_out}"
            )
        return replace(self, manifest=carved)


def load_manifest(data: str, *, skip_rejected: bool = False) -> Manifest:
    """Read a data set as read_manifest does, and locate its images.

    Raises click.ClickException if all are missing or, unless `skip_rejected`, if some are.
    """
    manifest = read_manifest(data)
    root, missing = find_images(manifest)
    if len(missing) == len(manifest):
        raise click.ClickException(describe_missing(manifest, missing))
    if missing and not skip_rejected:
        raise click.ClickException(
            f"{describe_missing(manifest, missing)}, or give skip_rejected=true to leave them out; "
            f"`nuswide audit --data {data}` lists them"
        )
    return replace(manifest, root=root)


def read_manifest(data: str) -> Manifest:
    """Read a prepared folder, or annotations in any known format, without locating the images.

    `sample` is drawn first if it does not exist yet.
    """
    if data == SAMPLE:
        draw_sample(SAMPLE_FOLDER)
    return read_annotations(SAMPLE_FOLDER if data == SAMPLE else Path(data))


def open_dataset(
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    folder: Path,
    skip_rejected: bool = False,
) -> Dataset:
    """Decode a manifest's images into the cache in `folder`, once, and open them.

    Images that are missing or cannot be decoded are left out if `skip_rejected`, and counted in the
    manifest.
    """
    cache = open_cache(manifest, preprocessing, folder=folder, skip_rejected=skip_rejected)
    rejected = [row for row, _ in cache.rejected]
    rows = np.setdiff1d(np.arange(len(manifest)), rejected)
    kept = replace(manifest.take(rows), rejected=manifest.rejected + len(rejected))
    reasons = tuple((manifest.names[row], why) for row, why in cache.rejected)
    return Dataset(kept, cache.images, rows, reasons, cache.contents, cache.folder)
