"""Claim: the cache is built at 0.9 x cores x the rate of bare Pillow, and read far faster than fed.

    python benchmarks/cache.py [PICTURES]

Draws photograph-like JPEG files of 500x375 px, decodes them by a bare Pillow loop on one core and
by open_cache on all, in turn, three times; then gathers shuffled batches of 256 px from the cache.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from nuswide.core.machine import available_cores
from nuswide.data.cache import open_cache
from nuswide.data.dataset import open_dataset
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing

SIZE_PX, BATCH, ROUNDS = 256, 32, 3


def draw_pictures(folder: Path, n: int) -> Manifest:
    """Smooth colours with fine noise, which JPEG packs about as tightly as photographs."""
    rng = np.random.default_rng(0)
    names = tuple(f"{i:05d}.jpg" for i in range(n))
    for name in names:
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / name, quality=90)
    targets = np.ones((n, 1), dtype=np.uint8)
    return Manifest(folder, names, ("any",), targets, np.array(["train"] * n))


def bare_rate(manifest: Manifest) -> float:
    """Pictures a second of a loop that decodes and resizes, and keeps nothing."""
    start = time.perf_counter()
    for name in manifest.names:
        with Image.open(manifest.root / name) as image:
            image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
    return len(manifest) / (time.perf_counter() - start)


def build_rate(manifest: Manifest, folder: Path) -> float:
    """Pictures a second of a cache built from nothing."""
    start = time.perf_counter()
    open_cache(manifest, Preprocessing(SIZE_PX), folder=folder)
    return len(manifest) / (time.perf_counter() - start)


def gather_rate(manifest: Manifest, folder: Path) -> float:
    """Pictures a second of shuffled batches read on one core."""
    data = open_dataset(manifest, Preprocessing(SIZE_PX), folder=folder)
    order = np.random.default_rng(0).permutation(len(manifest))
    start = time.perf_counter()
    for begin in range(0, len(order), BATCH):
        data.gather(order[begin : begin + BATCH])
    return len(manifest) / (time.perf_counter() - start)


def main() -> None:
    """Time them in turn, and print what came out."""
    n_pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    cores = available_cores()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = draw_pictures(folder, n_pictures)
        bare_rate(manifest)  # the files come into memory
        rates = [
            (bare_rate(manifest), build_rate(manifest, folder / f"cache{i}")) for i in range(ROUNDS)
        ]
        gathered = gather_rate(manifest, folder / "cache0")
    bare, build = (statistics.median(column) for column in zip(*rates, strict=True))
    print(f"Pillow {PIL.__version__}, {cores} cores, {n_pictures} pictures, median of {ROUNDS}")
    print(f"bare Pillow, 1 core     {bare:8.0f} pictures/s")
    print(f"open_cache, {cores} cores    {build:8.0f} pictures/s")
    print(f"share of cores x bare   {build / bare / cores:8.2f}  (claim: at least 0.9)")
    print(f"gathering, 1 core       {gathered:8.0f} pictures/s  (claim: at least 1,000)")


if __name__ == "__main__":
    main()
