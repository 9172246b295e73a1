"""Claim: training is several times faster than the article's loop; on two CPU cores, 1.4 times.

    python benchmarks/article_loop.py --data DIR [--size_px 64] [--steps 60] [--rounds 3]

Trains a ResNeXt50 on DIR from scratch with both loops, in turn, each in a process of its own: the
same batches of 32, with every step's loss and nine figures recorded, and one evaluation on test.
The article's loop is written anew from its description: pictures opened and augmented one by one in
worker processes, Adam and binary cross-entropy in float32, nine scikit-learn calls a step. Its
figures go to a plain file, which costs less than its TensorBoard; ours go to MLflow, with a
checkpoint, and the time runs until all of it has arrived. Decoding the pictures into the cache,
once, is timed apart. A third process takes the same steps with the network alone, one batch again
and again: what part of our time no loop can save.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from hardware import describe, device
from own_store import own_store

from nuswide.config import Config
from nuswide.data.manifest import Manifest
from nuswide.tagger import Preprocessing

BATCH, TESTED = 32, 200


@dataclass(frozen=True)
class Task:
    """What both loops do: so many steps on these pictures, then an evaluation on test."""

    manifest: Manifest
    size_px: int
    steps: int

    @property
    def n_test(self) -> int:
        """How many pictures are evaluated."""
        return len(self.manifest.indices("test"))


def make_task(data: str, size_px: int, steps: int) -> Task:
    """As many train images as the steps take, or as there are, and some of test."""
    from nuswide.data.dataset import load_manifest

    manifest = load_manifest(data)
    train, test = manifest.indices("train"), manifest.indices("test")
    steps = min(steps, len(train) // BATCH)
    return Task(
        manifest.take(np.concatenate([train[: steps * BATCH], test[:TESTED]])), size_px, steps
    )


def article(task: Task) -> dict[str, float]:
    """Train by the article's loop; gives seconds, and those of the evaluation in them."""
    batches, held_out = article_feeds(task)
    model, criterion = _article_network(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    zeros = torch.zeros(BATCH, len(task.manifest.labels), device=device())
    example = torch.zeros(BATCH, 3, task.size_px, task.size_px, device=device())
    warm_up(lambda: criterion(model(example), zeros).backward())
    with tempfile.TemporaryFile("w") as log:
        start = time.perf_counter()
        for step, (images, targets) in enumerate(batches):
            images, targets = images.to(device()), targets.to(device())
            optimizer.zero_grad()
            scores = model(images)
            loss = criterion(scores, targets.float())
            value = loss.item()
            loss.backward()
            optimizer.step()
            result = nine(scores.detach().cpu().numpy(), targets.cpu().numpy())
            log.write(json.dumps({"step": step, "loss": value, **result}) + "\n")
        trained = time.perf_counter()
        model.eval()
        with torch.no_grad():
            outputs = [(model(images.to(device())).cpu(), t) for images, t in held_out]
        result = nine(*(torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)))
        log.write(json.dumps(result))
    end = time.perf_counter()
    return {"seconds": end - start, "evaluation_s": end - trained}


def _article_network(task: Task) -> tuple[torch.nn.Module, torch.nn.Module]:
    from torchvision import models

    network = models.resnext50_32x4d()
    network.fc = torch.nn.Sequential(
        torch.nn.Dropout(0.2), torch.nn.Linear(network.fc.in_features, len(task.manifest.labels))
    )
    return torch.nn.Sequential(network, torch.nn.Sigmoid()).to(device()), torch.nn.BCELoss()


def article_feeds(task: Task) -> tuple[torch.utils.data.DataLoader, torch.utils.data.DataLoader]:
    """The article's loaders of train and test."""
    from PIL import Image
    from torchvision import transforms

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    resize = transforms.Resize((task.size_px, task.size_px))
    ending = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    fill = tuple(int(255 * value) for value in mean)
    augment = [
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(),
        transforms.RandomAffine(20, (0.2, 0.2), (0.5, 1.5), fill=fill),
    ]

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, split: str, steps: list[object]) -> None:
            self.samples = task.manifest.of(split)
            self.transform = transforms.Compose(steps)

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, row: int) -> tuple[torch.Tensor, np.ndarray]:
            image = Image.open(self.samples.root / self.samples.names[row]).convert("RGB")
            return self.transform(image), self.samples.targets[row].astype(float)

    workers = min(8, torch.multiprocessing.cpu_count())
    train, test = (
        Pictures("train", [resize, *augment, *ending]),
        Pictures("test", [resize, *ending]),
    )
    return (
        torch.utils.data.DataLoader(
            train, BATCH, shuffle=True, drop_last=True, num_workers=workers
        ),
        torch.utils.data.DataLoader(test, BATCH, num_workers=workers),
    )


def nine(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The article's nine figures, a scikit-learn call each."""
    from sklearn.metrics import f1_score, precision_score, recall_score

    predicted = np.array(scores > 0.5, dtype=float)
    return {
        f"{average}/{function.__name__}": function(
            y_true=targets, y_pred=predicted, average=average, zero_division=0
        )
        for average in ("micro", "macro", "samples")
        for function in (precision_score, recall_score, f1_score)
    }


def our_config(task: Task) -> Config:
    """The article's recipe, one pass over the pictures, tested once: after its first step."""
    return Config(
        image_size_px=task.size_px, epochs=1, batch_size=BATCH, device=device().type,
        val_fraction=0.0, select_on="last", test_freq=task.steps,
    )  # fmt: skip


def ours(task: Task, config: Config | None = None) -> dict[str, float]:
    """Train by our loop; gives seconds, and those of decoding."""
    from nuswide.data.dataset import open_dataset
    from nuswide.models.networks import create_model
    from nuswide.tracking.run import start_run
    from nuswide.training.checkpoint import LAST, CheckpointWriter
    from nuswide.training.loop import fit

    config = config or our_config(task)
    with own_store() as folder:
        start = time.perf_counter()
        dataset = open_dataset(task.manifest, Preprocessing(task.size_px), folder=folder / "cache")
        decoding_s = time.perf_counter() - start
        model = create_model(config, n_labels=len(task.manifest.labels)).to(device())
        model.to(memory_format=torch.channels_last)
        example = torch.zeros(BATCH, 3, task.size_px, task.size_px, device=device())
        warm_up(lambda: model(example).sum().backward())
        model.zero_grad()
        start = time.perf_counter()
        with start_run("train", "benchmark", outbox=folder) as run:
            with CheckpointWriter(folder / LAST) as writer:
                fit(config, model, dataset, run, writer)
        return {"seconds": time.perf_counter() - start, "decoding_s": decoding_s}


def bare(task: Task) -> dict[str, float]:
    """Take our steps with the network alone, and score what is evaluated; gives seconds."""
    from nuswide.core.allocator import freed_memory_kept
    from nuswide.models.networks import create_model
    from nuswide.models.optim import create_optimizer

    config = our_config(task)
    model = create_model(config, n_labels=len(task.manifest.labels)).to(device())
    model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer(config, model)
    images = torch.randn(BATCH, 3, task.size_px, task.size_px, device=device())
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with freed_memory_kept():
        warm_up(step)
        start = time.perf_counter()
        for _ in range(task.steps):
            step()
        model.eval()
        with torch.inference_mode():
            for _ in range(task.n_test // BATCH):
                model(images)
        return {"seconds": time.perf_counter() - start}


def warm_up(step: Callable[[], object]) -> None:
    """Let libraries choose and load their kernels."""
    for _ in range(2):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


LOOPS = {"article": article, "ours": ours, "bare": bare}


def main() -> None:
    """Time the loops in turn, and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", choices=LOOPS)
    given = parser.parse_args()
    task = make_task(given.data, given.size_px, given.steps)
    if given.alone:
        print(json.dumps(LOOPS[given.alone](task)))
        return
    print(f"{describe()}; {task.steps} steps of {BATCH} at {given.size_px} px")
    command = [sys.executable, __file__, *sys.argv[1:], "--alone"]
    seconds: dict[str, list[float]] = {name: [] for name in LOOPS}
    for _ in range(given.rounds):
        for name, found in seconds.items():
            done = subprocess.run([*command, name], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            answer = json.loads(done.stdout.splitlines()[-1])
            found.append(answer["seconds"])
            note = f", after {answer['decoding_s']:.1f} s of decoding" if name == "ours" else ""
            speed = task.steps * BATCH / found[-1]
            print(f"{name:8s} {found[-1]:7.1f} s, {speed:6.1f} images/s{note}", flush=True)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    print(f"article / ours: {medians['article'] / medians['ours']:.2f}  (claim: at least 1.4)")
    print(f"bare / ours: {medians['bare'] / medians['ours']:.2f} of our time is the network's")


if __name__ == "__main__":
    main()
