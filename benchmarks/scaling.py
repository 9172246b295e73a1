"""Claim: images/s stay the same as the data set grows, and processes share the work out.

    python benchmarks/scaling.py [--size_px 64] [--backbone resnet18]

Trains an epoch on pictures of noise: on 1x, 4x and 16x of them by one process; then on 4x by 1, 2
... processes, as many as there are GPUs, or else cores, each with its own batch of 32, its share of
the cores, and as torchrun starts them. images/s are those of the runs' own record, after one epoch
that warms up. On CPUs, where one process uses all cores already, N processes can gain nothing: the
ratio says what sharing costs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from hardware import describe, device
from own_store import own_store

from nuswide.core.machine import available_cores

BATCH, LABELS, LEAST = 32, 27, 1000


def make_pictures(path: Path, n_images: int, size_px: int) -> None:
    """Noise on disk, as the cache would hold it."""
    rng = np.random.default_rng(0)
    shape = (n_images, 3, size_px, size_px)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    for start in range(0, n_images, 500):
        part = images[start : start + 500]
        part[:] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()


def train(path: Path, size_px: int, backbone: str) -> None:
    """Train in this process, perhaps among others; the main one prints images/s."""
    from nuswide.config import Config
    from nuswide.core import distributed
    from nuswide.data.dataset import Dataset
    from nuswide.data.manifest import Manifest
    from nuswide.models.networks import create_model
    from nuswide.tracking.run import start_run
    from nuswide.training.checkpoint import LAST, CheckpointWriter
    from nuswide.training.loop import fit, global_batch_size
    from nuswide.training.step import choose_device

    images = np.load(path, mmap_mode="r")
    n = len(images)
    targets = np.random.default_rng(0).integers(0, 2, (n, LABELS)).astype(np.uint8)
    names, labels = tuple(f"{i}.jpg" for i in range(n)), tuple(map(str, range(LABELS)))
    manifest = Manifest(path.parent, names, labels, targets, np.array(["train"] * n))
    config = Config(
        backbone=backbone, image_size_px=size_px, epochs=2, batch_size=BATCH, val_fraction=0.0,
        select_on="last", device=device().type,
    )  # fmt: skip
    seconds: list[float] = []

    class Clock(CheckpointWriter):
        """Notes the seconds of training at the end of each epoch."""

        def save(self, state: dict[str, object], then: object) -> None:
            seconds.append(state["progress"]["train_s"])
            super().save(state, then)

    with (
        distributed.process_group(choose_device(config.device)),
        own_store() as folder,
        start_run("train", "scaling", outbox=folder) as run,  # a store for each process
        Clock(folder / LAST) as writer,
    ):
        model = create_model(config, n_labels=LABELS)
        _, state = fit(config, model, Dataset(manifest, images, np.arange(n)), run, writer)
        if distributed.is_main():
            done = state.steps_per_epoch * global_batch_size(config)
            print(json.dumps({"images_per_s": done / (seconds[1] - seconds[0])}))


def measure(path: Path, processes: int) -> float:
    """Images/s of training on a file of pictures."""
    threads = max(1, available_cores() // processes)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [sys.executable, *launcher, __file__, *sys.argv[1:], "--alone", str(path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"images_per_s"')]
    return float(json.loads(line)["images_per_s"])


def main() -> None:
    """Measure data sets of three sizes, then one to many processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--alone", type=Path)
    given = parser.parse_args()
    if given.alone:
        train(given.alone, given.size_px, given.backbone)
        return
    print(f"{describe()}; {given.backbone} at {given.size_px} px, batch {BATCH} a process")
    most = torch.cuda.device_count() or available_cores()
    speeds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        paths = {times: Path(temporary) / f"{times}.npy" for times in (1, 4, 16)}
        for times, path in paths.items():
            make_pictures(path, LEAST * times, given.size_px)
        jobs = {f"{LEAST * times:6d} images": (path, 1) for times, path in paths.items()}
        jobs |= {f"{count:2d} processes": (paths[4], count) for count in range(1, most + 1)}
        for name, (path, count) in jobs.items():
            speeds[name] = measure(path, count)
            kind = name.split()[1]
            first = next(speed for other, speed in speeds.items() if other.endswith(kind))
            ratio = speeds[name] / first
            print(f"{name}: {speeds[name]:7.1f} images/s, {ratio:.2f} of the first", flush=True)


if __name__ == "__main__":
    main()
