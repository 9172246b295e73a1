"""How far metrics would move on other images: a bootstrap over images.

Owns the headline metrics, their intervals and paired differences. Never resamples labels, and
never trains: the spread between seeds is not in these intervals.

A round takes half of the images, drawn without replacement, and asks how far the metrics of halves
spread, which is as far as those of whole sets do (the delete-half jackknife: Shao and Wu 1989,
doi:10.1214/aos/1176347263). Drawing with replacement would put images in twice: they tie with
themselves, and with few positives that lifts average precision and hides its spread, so that
percentile intervals of mAP miss the truth (benchmarks/coverage.py shows by how much).
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr

from nuswide.metrics.decisions import micro_and_macro, samples_values, six_metrics
from nuswide.metrics.predictions import (
    Curve,
    Floats,
    Ints,
    Known,
    Predictions,
    Scores,
    Targets,
    Thresholds,
)
from nuswide.metrics.ranking import image_rankings

# The metrics with intervals, which comparisons and reports show.
HEADLINE = ("map", "micro/f1", "macro/f1", "samples/f1", "cf1", "of1", "micro/ap", "lrap")
Z_95 = 1.959964  # standard deviations on either side that hold 95 % of a normal distribution
_ROWS = 2**14  # rows of a ranking taken at once
_CELLS = 2**21  # images times rounds taken at once
_MOST_ROUNDS = 64  # ... however few the images
_THREADS = 2

Weights = NDArray[np.int32]  # (N, B): how often each image is in each of B rounds


class Interval(NamedTuple):
    """A metric and its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """The difference of a metric, its 95 % interval, and a two-sided p-value.

    The interval is centred on the bias-corrected difference. The bias is small, as both sides have
    it.
    """

    value: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Resampled:
    """Headline metrics of one set of scores on all images and in each round.

    metrics: (F,) in the order of HEADLINE, and label_ap: (C,) on all images. rounds: (R, F) and
    label_rounds: (R, C) on halves. draw: images, rounds and seed; with the same ones, round by
    round the images are the same.
    """

    metrics: Floats
    label_ap: Floats
    rounds: Floats
    label_rounds: Floats
    draw: tuple[int, int, int]

    def intervals(self) -> dict[str, Interval]:
        """Return the interval of each metric in HEADLINE.

        Average precision is biased upwards where positives are few; the halves show by how much.
        The interval reaches from the bias-corrected metric to the metric itself, and 1.96 standard
        deviations beyond either: it covers the value on infinitely many images, and the mean value
        on as many other images. It is limited to 0 and 1, as the metrics are.
        """
        rows = zip(HEADLINE, self.metrics, self.bounds().clip(0, 1), strict=True)
        return {name: Interval(float(value), *bounds.tolist()) for name, value, bounds in rows}

    def bounds(self) -> Floats:
        """The intervals' ends, (F, 2), which can lie below 0 and above 1."""
        centre, deviation = _centre_and_deviation(self.metrics, self.rounds, self.draw[0])
        margin = Z_95 * deviation
        low, high = np.minimum(centre, self.metrics), np.maximum(centre, self.metrics)
        return np.stack([low - margin, high + margin], axis=1)


def _centre_and_deviation(values: Floats, rounds: Floats, n_images: int) -> tuple[Floats, Floats]:
    """Return bias-corrected values (F,) and their standard deviation, from rounds (R, F).

    NaN where more than a tenth of the rounds are, and for a single image.
    """
    kept = n_images // 2
    is_defined = (np.isnan(rounds).mean(axis=0) <= 0.1) & (kept > 0)
    chosen = rounds[:, is_defined]
    centre, deviation = np.full((2, len(values)), np.nan)
    # Exactly a half but for an odd number of images.
    ratio = kept / (n_images - kept)
    bias = ratio * (np.nanmean(chosen, axis=0) - values[is_defined])
    centre[is_defined] = values[is_defined] - bias
    deviation[is_defined] = np.sqrt(ratio) * np.nanstd(chosen, axis=0, ddof=1)
    return centre, deviation


def paired(challenger: Resampled, champion: Resampled) -> dict[str, Difference]:
    """Return the difference of each HEADLINE metric, from the same images in each round."""
    _check_draws([challenger, champion])
    changes = challenger.metrics - champion.metrics, challenger.rounds - champion.rounds
    found = _differences(*changes, challenger.draw[0])
    return dict(zip(HEADLINE, found, strict=True))


def paired_labels(challenger: Resampled, champion: Resampled) -> list[Difference]:
    """Return the difference of each label's average precision. Correct the p-values with holm."""
    _check_draws([challenger, champion])
    changes = (
        challenger.label_ap - champion.label_ap, challenger.label_rounds - champion.label_rounds
    )  # fmt: skip
    return _differences(*changes, challenger.draw[0])


def _differences(values: Floats, rounds: Floats, n_images: int) -> list[Difference]:
    centre, deviation = _centre_and_deviation(values, rounds, n_images)
    margin = Z_95 * deviation
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.abs(centre) / deviation
    distances[centre == 0] = 0  # the same scores twice: no difference, and no spread either
    p_values = 2 * ndtr(-distances)
    rows = np.stack([values, centre - margin, centre + margin, p_values], axis=1)
    return [Difference(*row) for row in rows.tolist()]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing (Holm 1979); NaN stays NaN and is not counted."""
    values = np.array(p_values, dtype=np.float64)
    order = np.argsort(values)  # NaN comes last
    n_tests = np.count_nonzero(~np.isnan(values))
    factors = np.maximum(n_tests - np.arange(len(values)), 1)
    values[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return [float(value) for value in values]


def mean_of(seeds: Sequence[Resampled]) -> Resampled:
    """Return the mean metrics of models that differ only in their seed, overall and per round."""
    _check_draws(seeds)

    def mean(name: str) -> Floats:
        return np.mean([getattr(seed, name) for seed in seeds], axis=0, dtype=np.float64)

    names = ("metrics", "label_ap", "rounds", "label_rounds")
    metrics, label_ap, rounds, label_rounds = map(mean, names)
    return Resampled(metrics, label_ap, rounds, label_rounds, seeds[0].draw)


def _check_draws(sets: Iterable[Resampled]) -> None:
    draws = {resampled.draw for resampled in sets}
    if len(draws) > 1:
        raise ValueError(f"rounds of different images, counts or seeds can't be paired: {draws}")


def resample(
    targets: Targets,
    scores: Scores,
    thresholds: Thresholds,
    known: Known = None,
    *,
    rounds: int = 1000,
    seed: int = 0,
) -> Resampled:
    """Compute the HEADLINE metrics on all images and on `rounds` random halves of them.

    Metrics are defined in a half as everywhere: a label without a positive there has no average
    precision and is left out of `map`, and counts in macro F1 and CF1 as it is (0). Uses two
    threads; the result does not depend on them. Memory beyond the arrays' own size is bounded.
    """
    predictions = Predictions(targets, scores, thresholds, known)
    resampler = _Resampler(predictions)
    n_images = len(targets)
    per_block = max(1, min(_MOST_ROUNDS, _CELLS // max(1, n_images)))
    blocks = [range(r, min(r + per_block, rounds)) for r in range(0, rounds, per_block)]
    whole, label_ap = resampler.metrics(np.ones((n_images, 1), dtype=np.int32))
    with ThreadPoolExecutor(_THREADS) as pool:
        drawn = pool.map(lambda block: resampler.metrics(_halves(n_images, seed, block)), blocks)
        metrics, labels = zip(*drawn, strict=True)
    draw = (n_images, rounds, seed)
    return Resampled(whole[0], label_ap[0], np.concatenate(metrics), np.concatenate(labels), draw)


def _halves(n_images: int, seed: int, rounds: Sequence[int]) -> Weights:
    """Draw half of the images for each round; (N, B) of 0 and 1."""
    weights = np.zeros((n_images, len(rounds)), dtype=np.int32)
    for column, number in enumerate(rounds):
        chosen = np.random.default_rng([seed, number]).permutation(n_images)[: n_images // 2]
        weights[chosen, column] = 1
    return weights


class _Ranking:
    """A curve with its images kept, so that it can be walked under any weights of them."""

    def __init__(self, curve: Curve, true_images: Ints, true_scores: Scores, n_images: int) -> None:
        # Precision matters where recall rises alone: what lies between is added up in one row.
        rising = np.flatnonzero(np.diff(curve.hits, prepend=0))
        ends = curve.ends[rising] + 1
        rows = np.searchsorted(-curve.scores[rising], -true_scores)
        by_row = np.argsort(rows, kind="stable")
        hit_ends = curve.hits[rising]
        self.parts = [
            (
                _rows(curve.order, ends, part, n_images),
                _rows(true_images[by_row], hit_ends, part, n_images),
            )
            for part in range(0, len(rising), _ROWS)
        ]

    def average_precision(self, weights: Weights) -> Floats:
        """Average precision in each resample; (B,), NaN where no positive is in it."""
        predicted, hits, area = np.zeros((3, weights.shape[1]))
        for everything, true in self.parts:
            rises = true @ weights
            rising_hits = hits + rises.cumsum(axis=0)
            at_least = predicted + (everything @ weights).cumsum(axis=0)
            # No image, no hit: the maximum gives 0.
            area += (rises * (rising_hits / np.maximum(at_least, 1))).sum(axis=0)
            hits, predicted = rising_hits[-1], at_least[-1]
        return area / np.where(hits, hits, np.nan)


def _rows(images: NDArray[np.integer], ends: Ints, first: int, n_images: int) -> sparse.csr_array:
    """Rows of ones that add up the weights of the images between one end and the next."""
    bounds = np.concatenate([[0], ends])[first : first + _ROWS + 1]
    inside = images[bounds[0] : bounds[-1]].astype(np.int32)
    ones = np.ones(len(inside), dtype=np.int32)
    pointers = (bounds - bounds[0]).astype(np.int32)
    return sparse.csr_array((ones, inside, pointers), shape=(len(bounds) - 1, n_images))


class _Resampler:
    """The headline metrics of one set of scores under weights of the images."""

    def __init__(self, predictions: Predictions) -> None:
        n_images = len(predictions.targets)
        self.labels = []
        for label, curve in enumerate(predictions.curves):
            images = np.flatnonzero(predictions.true[:, label])
            self.labels.append(_Ranking(curve, images, predictions.scores[images, label], n_images))
        images = np.nonzero(predictions.true)[0]
        self.pooled = _Ranking(
            predictions.pooled, images, predictions.scores[predictions.true], n_images
        )
        hits = predictions.predicted & predictions.true
        self.counted = [
            sparse.csr_array(m.T.astype(np.int32))
            for m in (hits, predictions.predicted, predictions.true)
        ]
        values = samples_values(predictions) | image_rankings(predictions)
        # Sparse, as BLAS would bring threads of its own into ours.
        self.by_image = sparse.csr_array(np.stack([values["samples/f1"], values["lrap"]]))

    def metrics(self, weights: Weights) -> tuple[Floats, Floats]:
        """Return the HEADLINE metrics, (B, F), and each label's average precision, (B, C)."""
        hits, predicted, true = (matrix @ weights for matrix in self.counted)
        counts = (hits.T, predicted.T, true.T)
        metrics = micro_and_macro(counts) | six_metrics(counts)
        label_ap = np.stack([r.average_precision(weights) for r in self.labels], axis=1)
        defined = ~np.isnan(label_ap)
        n_defined = defined.sum(axis=1)
        total = np.where(defined, label_ap, 0).sum(axis=1)
        metrics["map"] = total / np.where(n_defined, n_defined, np.nan)
        metrics["micro/ap"] = self.pooled.average_precision(weights)
        n_images = weights.sum(axis=0)
        means = self.by_image @ weights / np.where(n_images, n_images, np.nan)
        metrics |= dict(zip(("samples/f1", "lrap"), means, strict=True))
        return np.stack([metrics[name] for name in HEADLINE], axis=1), label_ap
