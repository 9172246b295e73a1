"""Claim: shrinking thresholds of labels with few positives is no worse on other images than not.

    python benchmarks/thresholds.py

Fits thresholds to a few simulated images and measures F1 on 20,000 others, for several strengths of
the shrinkage. Once the scores are calibrated, so that one threshold suits the labels well, and once
each label's scores are off by a shift of its own of 1.5 in the logit, so that none does. Prints
the mean over the trials, and how far each strength is from no shrinkage, with the standard error.
"""

import platform

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from nuswide.metrics import Predictions, fit_thresholds
from nuswide.metrics.decisions import precision_recall_f1
from nuswide.metrics.thresholds import PRIOR, per_label

LABELS, TRIALS, OTHERS = 27, 60, 20_000
PRIORS = (0.0, 1.0, 2.0, 5.0, 10.0)
FIGURES = ("macro/f1", "micro/f1")


def draw(
    rng: np.random.Generator, n: int, share: NDArray, power: NDArray, shift: NDArray
) -> tuple[NDArray, NDArray]:
    """Targets of `share` and scores; calibrated if shift is 0. power: how well labels are told."""
    targets = rng.random((n, LABELS)) < share
    evidence = power * (targets - 0.5) + rng.normal(size=(n, LABELS))
    return targets.astype(np.uint8), expit(power * evidence + logit(share) + shift).astype("f4")


def trial(seed: int, n_val: int, spread: float) -> NDArray:
    """F1 on other images: one row a prior, then the global threshold."""
    rng = np.random.default_rng([seed, n_val])
    share, power = np.geomspace(0.35, 0.01, LABELS), rng.uniform(1.2, 3, LABELS)
    shift = rng.normal(size=LABELS) * spread
    val, others = (draw(rng, n, share, power, shift) for n in (n_val, OTHERS))
    fitted = [per_label(Predictions(*val), prior=prior) for prior in PRIORS]
    rows = (
        precision_recall_f1(Predictions(*others, thresholds))
        for thresholds in (*fitted, fit_thresholds("global", *val))
    )
    return np.array([[row[name] for name in FIGURES] for row in rows])


def main() -> None:
    """Print a table for each size of val and kind of scores."""
    print(f"numpy {np.__version__}, {platform.machine()}; {LABELS} labels, 35 % to 1 % of images")
    print(f"{TRIALS} trials; the package uses a strength of {PRIOR:g}")
    for n_val in (300, 1000):
        for spread in (0.0, 1.5):
            found = np.array([trial(seed, n_val, spread) for seed in range(TRIALS)])
            change = found - found[:, :1]
            error = change.std(axis=0, ddof=1) / TRIALS**0.5
            print(f"\n{n_val} images to fit on, labels shifted by {spread:g}")
            for row, name in enumerate([*(f"strength {p:g}" for p in PRIORS), "global"]):
                cells = (
                    f"{figure} {found[:, row, k].mean():.4f} "
                    f"({change[:, row, k].mean():+.4f} +- {error[row, k]:.4f})"
                    for k, figure in enumerate(FIGURES)
                )
                print(f"{name:12s}", *cells, sep="  ")


if __name__ == "__main__":
    main()
