"""Claims: the memory of training does not grow with the data set, and checkpointing lowers it.

    python benchmarks/memory.py

Trains an epoch of a small network on drawn images, and on 8 times as many, each in a process of its
own, and compares the most memory that each took for itself. Pages of the cache file that the kernel
keeps in spare memory are shown apart: it takes them back when anybody needs them.

Takes steps of larger networks on the CPU with grad_checkpointing=false and true, and compares the
memory that a step took at most beyond that of the network, and its time.
"""

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

IMAGES, TIMES, SIZE_PX = 1500, 8, 96
STEPS, BATCH_SIZE, LARGE_PX = 3, 16, 224
LARGE = ("resnet50", "convnext_tiny", "timm/vit_small_patch16_224")


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


@contextmanager
def peak_mb() -> Iterator[dict[str, float]]:
    """Yield the most of each kind of memory that is taken, which is complete at the end."""
    peak = resident_mb()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            for name, value in resident_mb().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield peak
    done.set()
    watcher.join()


def train_alone(n_images: int) -> None:
    """Train, and print the most memory that was taken."""
    import torch

    from nuswide.config import Config
    from nuswide.models.networks import create_model
    from nuswide.training.checkpoint import LAST, CheckpointWriter
    from nuswide.training.loop import fit

    config = Config(backbone="resnet18", image_size_px=SIZE_PX, epochs=1, batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        data = make_cached(Path(folder), n_images)
        torch.manual_seed(0)
        start = time.perf_counter()
        with peak_mb() as peak, CheckpointWriter(Path(folder) / LAST) as writer:
            fit(config, create_model(config, n_labels=27), data, Recorder(), writer)
        seconds = time.perf_counter() - start
    pixels_mb = n_images * 3 * SIZE_PX**2 / 1e6
    print(
        f"{n_images:6d} images, {pixels_mb:7.0f} MB of pixels: own {peak['RssAnon']:6.0f} MB, "
        f"pages of files {peak['RssFile']:6.0f} MB, {seconds:.0f} s"
    )


def steps_alone(backbone: str, is_checkpointed: str) -> None:
    """Take steps, and print the most memory that they took, and the time of one."""
    import torch

    from nuswide.config import Config
    from nuswide.models.networks import create_model

    config = Config(
        backbone=backbone, image_size_px=LARGE_PX, grad_checkpointing=is_checkpointed == "true"
    )
    model = create_model(config, n_labels=27).train()
    images = torch.rand(BATCH_SIZE, 3, LARGE_PX, LARGE_PX)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = resident_mb()["RssAnon"]
    start = time.perf_counter()
    with peak_mb() as peak:
        for _ in range(STEPS):
            model(images).sum().backward()
    seconds = (time.perf_counter() - start) / STEPS
    taken = peak["RssAnon"] - before
    print(
        f"{backbone}, grad_checkpointing={is_checkpointed}: own {taken:6.0f} MB a step, "
        f"{seconds:.1f} s"
    )


def measure(*arguments: str) -> tuple[float, float]:
    """Measure in a process of its own, and print; return its own MB, and the seconds."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    line = done.stdout.splitlines()[-1]
    print(line, flush=True)
    return float(line.partition("own")[2].split()[0]), float(line.split()[-2])


def main() -> None:
    """Measure both sizes, and each large network in both ways."""
    for backbone in LARGE:
        (plain, plain_s), (own, own_s) = (measure(backbone, way) for way in ("false", "true"))
        print(f"with / without checkpointing: memory {own / plain:.2f}, time {own_s / plain_s:.2f}")
    (own, _), (of_more, _) = (measure(str(n)) for n in (IMAGES, IMAGES * TIMES))
    print(f"own memory at {TIMES}x / 1x: {of_more / own:.2f}  (claim: at most 1.1)")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        steps_alone(*sys.argv[1:])
    elif len(sys.argv) == 2:
        train_alone(int(sys.argv[1]))
    else:
        main()
