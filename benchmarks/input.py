"""Claim: input alone, from cache to augmented batch, is many times faster than the article's.

    python benchmarks/input.py --data DIR [--size_px 128] [--rounds 3]

Runs through all pictures of train once, in batches of 32: by the article's loader, which opens and
augments one picture after the other in worker processes; and by ours, in the thread that trains, as
train does: rows of the cache to the device, augmented there, all drawn anew. Both with what they
compute alone, in turn. Decoding into the cache, once for all epochs, is timed apart.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from article_loop import BATCH, Task, article_feeds, make_task, our_config
from hardware import describe, device

from nuswide.data import transforms
from nuswide.data.dataset import Dataset, open_dataset
from nuswide.data.label_stats import TrainLabels
from nuswide.data.loader import create_loader, to_device
from nuswide.data.sampling import create_sampling, epoch_order
from nuswide.tagger import Preprocessing


def article(task: Task) -> float:
    """Take all batches from the article's loader; return images per second."""
    batches, _ = article_feeds(task)
    start = time.perf_counter()
    for images, targets in batches:
        images.to(device()), targets.to(device())
    return speed(task, start)


def ours(task: Task, data: Dataset, kind: str) -> float:
    """Take all batches from our loader and augment them; return images per second."""
    config, rows = our_config(task), data.manifest.indices("train")
    loader = create_loader(data, rows, device(), kind)
    start = time.perf_counter()
    draws = to_device(transforms.draw(config, n_images=len(data), epoch=0), device())
    sample = create_sampling(config, TrainLabels.of(data.manifest))
    batches = epoch_order(rows, sample, batch_size=BATCH, seed=0, epoch=0)
    for batch, images in zip(batches, loader.batches(batches), strict=True):
        inputs = transforms.augment(images, draws[to_device(batch, device())], config)
        inputs.contiguous(memory_format=torch.channels_last)
    return speed(task, start)


def speed(task: Task, start: float) -> float:
    """Images a second since the start."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return task.steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Time them in turn, and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--size_px", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    task = make_task(given.data, given.size_px, steps=10**6)
    print(f"{describe()}; {task.steps * BATCH} images at {given.size_px} px")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data = open_dataset(task.manifest, Preprocessing(given.size_px), folder=Path(folder))
        print(f"decoding into the cache, once: {len(data) / (time.perf_counter() - start):.0f} /s")
        speeds: dict[str, list[float]] = {"article": [], "resident": [], "blocks": []}
        for _ in range(given.rounds):
            speeds["article"].append(article(task))
            for kind in ("resident", "blocks"):
                speeds[kind].append(ours(task, data, kind))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    for name, median in medians.items():
        ratio = median / medians["article"]
        print(f"{name:8s} {median:8.0f} images/s, {ratio:5.1f} times the article's", flush=True)


if __name__ == "__main__":
    main()
