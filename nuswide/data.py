"""Images in memory and the order in which training sees them.

Owns the way from a Manifest to uint8 batches. Never augments, and never looks at a score.

    data = decode_dataset(load_splits(config), size_px=64)
    for rows in epoch_order(manifest.indices("train"), batch_size=32, seed=0, epoch=0): ...
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nuswide.config import Config
from nuswide.importers import read_article_json
from nuswide.manifest import Manifest, carve_val
from nuswide.sample import draw_sample
from nuswide.tagger import decode_image

SAMPLE = "sample"
SAMPLE_FOLDER = Path("data/sample")


@dataclass(frozen=True)
class Dataset:
    """N samples with their decoded images, (N, 3, S, S) uint8."""

    manifest: Manifest
    images: NDArray[np.uint8]

    def of(self, split: str) -> "Dataset":
        """The samples of one split, in their order."""
        return Dataset(self.manifest.of(split), self.images[self.manifest.indices(split)])


def load_manifest(data: str) -> Manifest:
    """Read the data set in a folder; `sample` is drawn first where it is not there yet.

    Raises click.ClickException if pictures are missing.
    """
    if data == SAMPLE:
        draw_sample(SAMPLE_FOLDER)
        return locate_pictures(read_article_json(SAMPLE_FOLDER))
    return locate_pictures(read_article_json(Path(data)))


def locate_pictures(manifest: Manifest) -> Manifest:
    """Find the folder that the image names are relative to: images/ below the root, or the root."""
    missing = {
        root: [n for n in manifest.names if not os.path.isfile(root / n)]  # False for odd names too
        for root in (manifest.root / "images", manifest.root)
    }
    root = min(missing, key=lambda candidate: len(missing[candidate]))
    if missing[root]:
        raise click.ClickException(
            f"{len(missing[root])} of {len(manifest)} pictures are missing, {missing[root][0]!r} "
            f"first; put them into {manifest.root / 'images'} or {manifest.root}"
        )
    return replace(manifest, root=root)


def load_splits(config: Config) -> Manifest:
    """Read the config's data set and carve its val split.

    Raises click.ClickException if train or val is left with too little.
    """
    manifest = load_manifest(config.data)
    if config.val_fraction:
        manifest = carve_val(manifest, fraction=config.val_fraction, seed=config.seed)
    n_train = len(manifest.indices("train"))
    if n_train < config.batch_size:
        raise click.ClickException(
            f"train has {n_train} images, fewer than batch_size={config.batch_size}; lower it"
        )
    if config.val_fraction and not manifest.of("val").targets.any():
        raise click.ClickException(
            f"val_fraction={config.val_fraction} of train leaves val without a label; "
            "raise it, or give val_fraction=0 and select_on=last"
        )
    return manifest


def decode_dataset(manifest: Manifest, *, size_px: int) -> Dataset:
    """Decode every picture of a manifest.

    Raises click.ClickException naming the pictures that can't be read.
    """
    images = np.empty((len(manifest), 3, size_px, size_px), dtype=np.uint8)

    def decode(row: int) -> str | None:
        try:
            images[row] = decode_image(manifest.root / manifest.names[row], size_px)
        except ValueError as error:
            return f"{manifest.names[row]}: {error}"
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without the GIL
        results = pool.map(decode, range(len(manifest)))
        progress = tqdm(results, "decoding", len(manifest), unit="image", disable=None, leave=False)
        broken = [problem for problem in progress if problem]
    if broken:
        raise click.ClickException(
            f"{len(broken)} of {len(manifest)} pictures are broken; mend them or take them out of "
            f"the JSON files: {'; '.join(broken[:3])}{' ...' if len(broken) > 3 else ''}"
        )
    return Dataset(manifest, images)


def epoch_order(
    indices: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Shuffle the indices for one epoch and give them batch by batch, the short rest left out."""
    order = np.random.default_rng([seed, epoch, 0]).permutation(indices)
    for start in range(0, len(order) - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
