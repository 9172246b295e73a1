"""Claim: the memory of training does not grow with the data set.

    python benchmarks/memory.py

Trains an epoch of a small network on drawn pictures, and on 8 times as many, each in a process of
its own, and compares the most memory that each took for itself. Pages of the cache file that the
kernel keeps in spare memory are shown apart: it takes them back when anybody needs them.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

IMAGES, TIMES, SIZE_PX = 1500, 8, 96


class Recorder:
    """Takes what a Run takes, and keeps nothing."""

    def __getattr__(self, name: str) -> object:
        return lambda *arguments, **options: None


def make_cached(folder: Path, n_images: int) -> object:
    """A data set whose pictures are noise on disk, as open_dataset would leave them."""
    from nuswide.data.dataset import Dataset
    from nuswide.data.manifest import Manifest

    rng = np.random.default_rng(0)
    shape = (n_images, 3, SIZE_PX, SIZE_PX)
    images = np.memmap(folder / "pixels.u8", np.uint8, "w+", shape=shape)
    for start in range(0, n_images, 500):
        part = images[start : start + 500]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()
    splits = np.where(np.arange(n_images) % 3 == 0, "train", "val")  # scoring is the cheaper
    names = tuple(f"{i}.jpg" for i in range(n_images))
    targets = rng.integers(0, 2, (n_images, 27)).astype(np.uint8)
    manifest = Manifest(folder, names, tuple(map(str, range(27))), targets, splits)
    images = np.memmap(folder / "pixels.u8", np.uint8, "r", shape=shape)
    return Dataset(manifest, images, np.arange(n_images))


def resident_mb() -> dict[str, float]:
    """This process's memory: its own, and pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 1000 for name in ("RssAnon", "RssFile")}


def train_alone(n_images: int) -> None:
    """Train, and print the most memory that was taken."""
    import torch

    from nuswide.config import Config
    from nuswide.models.networks import create_model
    from nuswide.training.checkpoint import LAST, CheckpointWriter
    from nuswide.training.loop import fit

    config = Config(backbone="resnet18", image_size_px=SIZE_PX, epochs=1, batch_size=32)
    peak: dict[str, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            for name, value in resident_mb().items():
                peak[name] = max(peak.get(name, 0), value)

    with tempfile.TemporaryDirectory() as folder:
        data = make_cached(Path(folder), n_images)
        torch.manual_seed(0)
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        with CheckpointWriter(Path(folder) / LAST) as writer:
            fit(config, create_model(config, n_labels=27), data, Recorder(), writer)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    pixels_mb = n_images * 3 * SIZE_PX**2 / 1e6
    print(
        f"{n_images:6d} images, {pixels_mb:7.0f} MB of pixels: own {peak['RssAnon']:6.0f} MB, "
        f"pages of files {peak['RssFile']:6.0f} MB, {seconds:.0f} s"
    )


def main() -> None:
    """Measure both sizes."""
    own = []
    for n_images in (IMAGES, IMAGES * TIMES):
        done = subprocess.run(
            [sys.executable, __file__, str(n_images)], check=True, capture_output=True, text=True
        )
        line = done.stdout.splitlines()[-1]
        print(line, flush=True)
        own.append(float(line.partition("own")[2].split()[0]))
    print(f"own memory at {TIMES}x / 1x: {own[1] / own[0]:.2f}  (claim: at most 1.1)")


if __name__ == "__main__":
    train_alone(int(sys.argv[1])) if len(sys.argv) > 1 else main()
