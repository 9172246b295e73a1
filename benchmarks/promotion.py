"""Claim: of two models of which neither is better, promote moves the alias in at most 5 %.

    python benchmarks/promotion.py [--trials 1000] [--power_trials 200]

Each trial draws new val images, 1,000 with 27 labels whose shares fall from 40 % to 2 % as those of
the article's subset do, and scores of two models that agree as two seeds of one recipe do. The
decision is promote's own, with its own rounds. Beside it: how often a model that is truly better is
found to be, and how often the plain rule "the higher mAP wins" would have moved the alias. Gives
each share with its 95 % interval (Wilson 1927).
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from nuswide.evaluation.promote import Rule, Verdict, decide
from nuswide.metrics import Predictions, label_average_precision
from nuswide.tracking.score_file import SavedScores

IMAGES, LABELS = 1000, 27
SHARES = np.geomspace(0.4, 0.02, LABELS)
AGREEMENT = 0.8  # correlation of what two seeds get wrong
QUALITY = 1.6  # distance of true labels from others, in deviations; mAP of about 0.5
RULE = Rule("map", "better", 0.0)


def draw(
    rng: np.random.Generator, n_images: int, gains: tuple[float, float]
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """Targets, and the scores of two models; gains: what each adds to QUALITY."""
    shape = n_images, LABELS
    targets = (rng.random(shape) < SHARES).astype(np.uint8)
    shared = rng.normal(size=shape) * AGREEMENT**0.5
    scores = []
    for gain in gains:
        own = rng.normal(size=shape) * (1 - AGREEMENT) ** 0.5
        logits = (QUALITY + gain) * targets + shared + own - 2
        scores.append((1 / (1 + np.exp(-logits))).astype(np.float32))
    return targets, scores


def contest(rng: np.random.Generator, gain: float) -> Verdict:
    """One contest on new images between a champion and a challenger with a gain."""
    targets, pair = draw(rng, IMAGES, (0.0, gain))
    images = tuple(f"{i}.jpg" for i in range(IMAGES))
    labels = tuple(f"label {i}" for i in range(LABELS))
    thresholds = np.full(LABELS, 0.5, dtype=np.float32)
    champion, challenger = (
        SavedScores(images, labels, scores, targets, None, thresholds) for scores in pair
    )
    return decide(challenger, champion, RULE)


def true_difference(gain: float) -> float:
    """How much higher the challenger's mAP is on very many images."""
    targets, pair = draw(np.random.default_rng(1), 200_000, (0.0, gain))
    low, high = (label_average_precision(Predictions(targets, scores)).mean() for scores in pair)
    return float(high - low)


def share(n_found: int, trials: int) -> str:
    """A share with its 95 % interval."""
    z = 1.96
    p = n_found / trials
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * (p * (1 - p) / trials + z**2 / (4 * trials**2)) ** 0.5
    return f"{p:6.1%}  [{max(0, middle - half):.1%}, {middle + half:.1%}]  of {trials:,} trials"


def main() -> None:
    """Hold the contests and print the shares."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--power_trials", type=int, default=200)
    options = parser.parse_args()
    start = time.perf_counter()
    print(f"{IMAGES:,} val images, {LABELS} labels; {RULE}")
    for gain in (0.0, 0.03, 0.06, 0.12):
        trials = options.power_trials if gain else options.trials
        rng = np.random.default_rng([2, round(gain * 1000)])
        verdicts = [contest(rng, gain) for _ in range(trials)]
        claim = "" if gain else "  (claim: at most 5 %)"
        print(f"true difference of mAP {true_difference(gain) if gain else 0:.4f}")
        print(f"  promoted         {share(sum(d.wins for d in verdicts), trials)}{claim}")
        higher = sum(d.difference.value > 0 for d in verdicts)
        print(f"  higher mAP alone {share(higher, trials)}", flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
