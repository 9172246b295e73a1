"""Claim: intervals cover the truth in 93 to 97 % of tests, and chance is taken for better in 5 %.

    python benchmarks/coverage.py [TRIALS] [PROCESSES]

Each trial draws 1,000 images with 27 labels (35 % to 1.5 % of the images) and the scores of three
taggers: the first, one as good, and a better one. What is true of them is known from a million
images. Counts how often the interval of a metric of the first, and of its paired difference to the
better one, covers the truth, and how often the one as good is called better (p < 0.05 and higher).
For comparison: the percentile interval of images drawn with replacement.
"""

import multiprocessing
import platform
import sys
import time

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from nuswide.metrics import HEADLINE, Predictions, all_metrics, paired, resample
from nuswide.metrics.bootstrap import _Resampler

IMAGES, LABELS, ROUNDS, THRESHOLD = 1000, 27, 400, 0.35
SHARE = np.geomspace(0.35, 0.015, LABELS)
POWER = np.random.default_rng(7).uniform(1.2, 3.0, LABELS)  # how well a label is told
LOADS = np.random.default_rng(3).normal(size=(2, LABELS)) * 0.5  # scenes that labels share
GAINS = (0.0, 0.0, 0.15)  # of the first tagger, one as good, and a better one
ROWS = (
    "a metric's interval covers", "a difference's interval covers", "no difference's covers 0",
    "called better by chance", "called worse by chance", "percentile, with replacement",
)  # fmt: skip


def draw(rng: np.random.Generator, n: int) -> tuple[NDArray, list[NDArray]]:
    """Targets that occur together, and each tagger's scores; most of their noise is common."""
    scenes = rng.normal(size=(n, 2)) @ LOADS + rng.normal(size=(n, LABELS))
    targets = scenes / np.sqrt((LOADS**2).sum(axis=0) + 1) > norm.isf(SHARE)
    common = 0.8 * rng.normal(size=(n, LABELS)) + 0.15 * rng.normal(size=(n, 1))
    scores = [
        expit(
            (POWER + gain) * targets - POWER / 2 + common
            + 0.6 * rng.normal(size=(n, LABELS)) + 0.6 * logit(SHARE)
        ).astype(np.float32)
        for gain in GAINS
    ]  # fmt: skip
    return targets.astype(np.uint8), scores


def point(targets: NDArray, scores: NDArray) -> NDArray:
    """The headline metrics."""
    metrics = all_metrics(targets, scores, THRESHOLD)
    return np.array([metrics[name] for name in HEADLINE])


def true_metrics(seed: int) -> NDArray:
    """The metrics of all taggers on a quarter of a million images; (3, F)."""
    targets, scores = draw(np.random.default_rng([1, seed]), 250_000)
    return np.array([point(targets, s) for s in scores])


def trial(given: tuple[int, NDArray]) -> NDArray:
    """What held in one trial; (rows, F) of True and False."""
    seed, truth = given
    rng = np.random.default_rng([2, seed])
    targets, scores = draw(rng, IMAGES)
    first, as_good, better = (
        resample(targets, s, THRESHOLD, rounds=ROUNDS, seed=seed) for s in scores
    )
    intervals = np.array([first.intervals()[name][1:] for name in HEADLINE]).T
    gain = np.array([paired(better, first)[name] for name in HEADLINE]).T
    chance = np.array([paired(as_good, first)[name] for name in HEADLINE]).T
    shares = np.full(IMAGES, 1 / IMAGES)
    weights = rng.multinomial(IMAGES, shares, size=ROUNDS).T.astype(np.int32, order="C")
    repeated, _ = _Resampler(Predictions(targets, scores[0], THRESHOLD)).metrics(weights)
    percentiles = np.quantile(repeated, [0.025, 0.975], axis=0)
    return np.array([
        covers(intervals, truth[0]), covers(gain[1:3], truth[2] - truth[0]), covers(chance[1:3], 0),
        chance[1] > 0, chance[2] < 0, covers(percentiles, truth[0]),
    ])  # fmt: skip


def covers(bounds: NDArray, truth: NDArray | float) -> NDArray:
    """Whether low <= truth <= high."""
    return (bounds[0] <= truth) & (truth <= bounds[1])


def main() -> None:
    """Run the trials, and print shares in per cent with the standard error that chance gives."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    start = time.perf_counter()
    with multiprocessing.Pool(processes) as pool:
        truth = np.mean(pool.map(true_metrics, range(4)), axis=0)
        held = np.mean(pool.map(trial, [(k, truth) for k in range(trials)], chunksize=10), axis=0)
    print(f"numpy {np.__version__}, {platform.machine()}, {time.perf_counter() - start:.0f} s")
    print(f"{trials} trials of {IMAGES} images, {LABELS} labels, {ROUNDS} rounds; in per cent, ")
    print(f"+- {100 * np.sqrt(0.05 * 0.95 / trials):.1f} by chance")
    print(f"{'':32s}", *(f"{name:>10s}" for name in HEADLINE))
    for name, row in (("truth", truth[0]), ("true difference", truth[2] - truth[0])):
        print(f"{name:32s}", *(f"{value:10.4f}" for value in row))
    for name, row in zip(ROWS, 100 * held, strict=True):
        print(f"{name:32s}", *(f"{value:10.1f}" for value in row))


if __name__ == "__main__":
    main()
