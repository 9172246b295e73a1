"""Claim: 50,720 x 81 scores: metrics and thresholds in 3 s, 1,000 bootstrap rounds in 30 s.

    python benchmarks/metrics.py [IMAGES] [ROUNDS]

The size is that of the test part of the HashNet dump of NUS-WIDE, and the labels are as rare. All
point metrics and thresholds of a label each are timed, then the headline metrics, mAP among them,
in 1,000 rounds. The baseline is what one would write with scikit-learn, timed on a few of the same
rounds: the same halves of the images, once for each. Prints how far the metrics are from
its.
"""

import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy
import sklearn
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn import metrics as sk

from nuswide.metrics import Resampled, all_metrics, fit_thresholds, resample
from nuswide.metrics.bootstrap import _halves

LABELS, PLAIN_ROUNDS = 81, 2
SHARE = np.geomspace(0.5, 0.0005, LABELS)  # 2.4 labels an image, 1000:1, as in NUS-WIDE
SHARE *= 2.4 / SHARE.sum()


def draw(n: int, seed: int) -> tuple[NDArray, NDArray]:
    """Targets with a long tail, and scores that know something of them."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, LABELS), dtype=np.float32) < SHARE
    scores = expit(rng.standard_normal((n, LABELS), dtype=np.float32) + 2 * targets + logit(SHARE))
    return targets.astype(np.uint8), scores.astype(np.float32)


def plain(targets: NDArray, scores: NDArray, thresholds: NDArray) -> list[float]:
    """The headline metrics by scikit-learn's functions, in the order of HEADLINE."""
    predicted = scores >= thresholds
    f1 = {
        average: sk.f1_score(targets, predicted, average=average, zero_division=0)
        for average in ("micro", "macro", "samples")
    }
    present = targets.any(axis=0)
    cp = sk.precision_score(targets, predicted, average="macro", zero_division=0)
    cr = sk.recall_score(targets, predicted, average="macro", zero_division=0)
    return [
        float(sk.average_precision_score(targets[:, present], scores[:, present])),
        f1["micro"], f1["macro"], f1["samples"], 2 * cp * cr / (cp + cr), f1["micro"],
        float(sk.average_precision_score(targets, scores, average="micro")),
        float(sk.label_ranking_average_precision_score(targets, scores)),
    ]  # fmt: skip


class Taken(NamedTuple):
    """Seconds, and the processor's, which other programs don't lengthen as much."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.2f} s ({self.cpu:.2f} s of processor)"


def timed(work: Callable[[], Any]) -> tuple[Any, Taken]:
    """What work gives, and what it took."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, Taken(time.perf_counter() - start, time.process_time() - start_cpu)


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def processor() -> str:
    """The processor's name where the system tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor()


def main() -> None:
    """Time, compare and print."""
    n_images = int(sys.argv[1]) if len(sys.argv) > 1 else 50_720
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    warnings.simplefilter("ignore")
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn"
    print(f"{processor()}; Python {platform.python_version()}, {versions} {sklearn.__version__}")
    targets, scores = draw(n_images, 0)
    positives = targets.sum(axis=0)
    print(f"{n_images:,} x {LABELS} scores; {positives.min()} to {positives.max():,} positives")
    before = peak_gb()
    thresholds, fitting = timed(lambda: fit_thresholds("label", targets, scores))
    metrics, pointing = timed(
        lambda: all_metrics(targets, scores, thresholds, train_positives=positives)
    )
    print(f"thresholds {fitting}\n{len(metrics)} metrics {pointing}")
    print(f"together {fitting.wall + pointing.wall:.2f} s (claim: at most 3)")
    resampled, taken = timed(lambda: resample(targets, scores, thresholds, rounds=rounds))
    print(f"{rounds} rounds {taken} (claim: 1,000 in at most 30 s)")
    print(f"peak memory {before:.2f} GB with the arrays, {peak_gb():.2f} GB at the end")
    compare(targets, scores, thresholds, resampled, taken)


def compare(
    targets: NDArray, scores: NDArray, thresholds: NDArray, resampled: Resampled, taken: Taken
) -> None:
    """Time a few of the same rounds by scikit-learn, and print how far metrics are from its."""
    expected = plain(targets, scores, thresholds)
    distance = np.abs(resampled.metrics - expected).max()
    per_round, rounds = [], len(resampled.rounds)
    for number in range(min(PLAIN_ROUNDS, rounds)):
        half = np.flatnonzero(_halves(len(targets), 0, [number]))
        expected, plainly = timed(lambda h=half: plain(targets[h], scores[h], thresholds))
        print(f"a round by scikit-learn {plainly}")
        per_round.append(plainly)
        distance = max(distance, np.abs(resampled.rounds[number] - expected).max())
    wall, cpu = (statistics.mean(column) * rounds for column in zip(*per_round, strict=True))
    print(f"{rounds} rounds by scikit-learn {Taken(wall, cpu)}: {wall / taken.wall:.0f} times, of "
          f"processor {cpu / taken.cpu:.0f} times (claim: at least 20)")  # fmt: skip
    print(f"largest difference to scikit-learn's metrics {distance:.1e} (claim: at most 1e-9)")


if __name__ == "__main__":
    main()
