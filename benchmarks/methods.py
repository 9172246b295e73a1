"""What each method on the data's side costs, beside the same without it.

    python benchmarks/methods.py [--backbone resnext50_32x4d] [--size_px 64] [--rounds 5]

On batches of noise, in turn, so that each is measured beside its baseline: training steps on images
of half the size, augmentation with auto_augment, and scoring with test_flips; and the order of an
epoch of 5,000 images with 27 labels by each sampling.
"""

import argparse
import statistics
from collections.abc import Callable

import numpy as np
import torch
from hardware import describe, device
from profile_step import LABELS, make_step, wall_ms

from nuswide.config import Config, load_config
from nuswide.core.allocator import freed_memory_kept
from nuswide.data.label_stats import TrainLabels
from nuswide.data.sampling import SAMPLINGS, create_sampling, epoch_order
from nuswide.data.transforms import augment, draw
from nuswide.evaluation.evaluate import torch_score
from nuswide.models.networks import create_model

IMAGES = 5000


def make_scoring(config_fields: dict[str, str]) -> Callable[[], object]:
    """A function that scores a batch of noise."""
    config = load_config(None, config_fields)
    shape = (config.batch_size, 3, config.image_size_px, config.image_size_px)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    score = torch_score(create_model(config, n_labels=LABELS).to(device()), device())
    return lambda: score(images)


def make_augmenting(config_fields: dict[str, str]) -> Callable[[], object]:
    """A function that augments a batch of noise."""
    config = load_config(None, config_fields)
    n, side = config.batch_size, config.image_size_px
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, device=device())
    draws = torch.from_numpy(draw(config, n_images=n, epoch=0))
    return lambda: augment(images, draws, config)


def compare(kinds: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time them in turn; print each median, and its ratio to the first one's."""
    for run in kinds.values():
        wall_ms(run, 2)
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, run in kinds.items():
            times[name].append(wall_ms(run, 2))
    medians = {name: statistics.median(found) for name, found in times.items()}
    first = next(iter(medians.values()))
    for name, median_ms in medians.items():
        print(f"{name:44s} {median_ms:9.1f} ms {median_ms / first:6.2f} times", flush=True)


def main() -> None:
    """Time all, and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", default="resnext50_32x4d")
    parser.add_argument("--size_px", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(describe())
    same = {"backbone": given.backbone, "image_size_px": str(given.size_px)}
    half = str(given.size_px // 64 * 32)
    kinds = ("randaugment", "trivialaugment")
    steps = {"a step": {}, f"start_size_px={half}, first epochs": {"start_size_px": half}}
    augmenting = {"augmenting": {}} | {f"auto_augment={k}": {"auto_augment": k} for k in kinds}
    scoring = {"scoring": {}, "test_flips=true": {"test_flips": "true"}}
    with freed_memory_kept():  # as fit does
        compare({k: make_step(same | changes) for k, changes in steps.items()}, given.rounds)
        compare({k: make_augmenting(same | v) for k, v in augmenting.items()}, given.rounds)
        compare({k: make_scoring(same | v) for k, v in scoring.items()}, given.rounds)
    rng = np.random.default_rng(0)
    targets = (rng.random((IMAGES, LABELS)) < rng.random(LABELS) ** 3).astype(np.uint8)
    train = TrainLabels(tuple(map(str, range(LABELS))), targets, None)
    orders = {}
    for name in SAMPLINGS:
        sample = create_sampling(Config(sampling=name), train)  # type: ignore[arg-type]
        orders[f"an epoch by sampling={name}"] = lambda sample=sample: epoch_order(
            np.arange(IMAGES), sample, batch_size=32, seed=0, epoch=0
        )
    compare(orders, given.rounds)


if __name__ == "__main__":
    main()
