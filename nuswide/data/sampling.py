"""Sampling: the images of an epoch and their order.

Owns SAMPLINGS, epoch_order and draw_rows. With any sampling, an epoch has as many images as train,
so that steps, schedules and averages keep their length, and depends only on the seed and its
number. Never reads a label of val or test, nor an image.

    >>> train = manifest.indices("train")
    >>> sample = create_sampling(Config(sampling="uniform"), TrainLabels.of(manifest))
    >>> epoch_order(train, sample, batch_size=4, seed=0, epoch=3).shape
    (2, 4)
"""

from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels

Indices = NDArray[np.int64]
Sampling = Callable[[np.random.Generator], Indices]  # draws N indices into train's N images


def create_sampling(config: Config, train: TrainLabels) -> Sampling:
    """Create the sampling that the config names, for the N images of train."""
    return SAMPLINGS[config.sampling](config, train)


def epoch_order(
    indices: NDArray[np.int64], sample: Sampling, *, batch_size: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Draw an epoch's images from `indices` and split them into steps; (M, batch_size).

    A last, incomplete step is dropped.
    """
    order = indices[sample(np.random.default_rng([seed, epoch, 0]))]
    n_batches = len(order) // batch_size
    return order[: n_batches * batch_size].reshape(n_batches, batch_size)


def draw_rows(order: NDArray[np.int64], n_images: int) -> NDArray[np.int64]:
    """Return the row of random draws that each image of the order uses, in the order's shape.

    An image that occurs again in the epoch uses the next row, and so on, so that it is never
    augmented twice in the same way. n_images: number of rows.
    """
    flat = order.ravel()
    by_image = np.argsort(flat, kind="stable")
    grouped = flat[by_image]
    occurrence = np.empty_like(flat)
    occurrence[by_image] = np.arange(len(flat)) - np.searchsorted(grouped, grouped)
    return (order + occurrence.reshape(order.shape)) % n_images


def uniform(config: Config, train: TrainLabels) -> Sampling:
    """Draw each image once."""
    n_images = len(train.targets)
    return lambda rng: rng.permutation(n_images)


def class_aware(config: Config, train: TrainLabels) -> Sampling:
    """Draw labels round-robin, each equally often, and the images of a label round-robin.

    Both are reshuffled in each round. Labels without an image, and images without a label, are not
    drawn. Source: Shen et al., arXiv:1512.05830, adapted to several labels per image by Wu et al.,
    arXiv:2007.09654.
    """
    images = [found for has in train.targets.T if len(found := np.flatnonzero(has))]
    if not images:
        raise click.ClickException(
            "sampling=class_aware draws images by their labels, and train has none; give "
            "sampling=uniform"
        )

    def sample(rng: np.random.Generator) -> Indices:
        labels = _round_robin(rng, np.arange(len(images)), len(train.targets))
        counts = np.bincount(labels, minlength=len(images))
        parts = [_round_robin(rng, of, n) for of, n in zip(images, counts, strict=True)]
        chosen = np.empty_like(labels)
        chosen[np.argsort(labels, kind="stable")] = np.concatenate(parts)
        return chosen

    return sample


def _round_robin(rng: np.random.Generator, items: Indices, count: int) -> Indices:
    """Draw items in shuffled rounds, each item once per round; (count,)."""
    rounds = -(-count // len(items))
    drawn: Indices = rng.permuted(np.tile(items, (rounds, 1)), axis=1).ravel()[:count]
    return drawn


def repeat_factor(config: Config, train: TrainLabels) -> Sampling:
    """Repeat images of rare labels by their factors, and draw as many images as train has.

    The fractional part of a factor is the probability of one more repetition.
    """
    factors = repeat_factors(train, config.repeat_threshold)

    def sample(rng: np.random.Generator) -> Indices:
        times = (factors + rng.random(len(factors))).astype(np.int64)
        return rng.permutation(np.repeat(np.arange(len(factors)), times))[: len(factors)]

    return sample


def repeat_factors(train: TrainLabels, threshold: float) -> NDArray[np.float64]:
    """Return each image's repetitions relative to an image without rare labels; (N,), at least 1.

    A label's factor is max(1, sqrt(threshold / f)), where f is the fraction of train's images that
    are known to have it; an image's factor is the maximum over its labels. Source: Gupta et al.,
    arXiv:1908.03195.
    """
    share = np.maximum(train.positives, 1) / len(train.targets)
    of_label = np.sqrt(np.maximum(1, threshold / share))
    factors = np.ones(len(train.targets))
    for has, factor in zip(train.targets.T, of_label, strict=True):
        np.maximum(factors, has * factor, out=factors)
    return factors


SAMPLINGS: dict[str, Callable[[Config, TrainLabels], Sampling]] = {
    "uniform": uniform,
    "class_aware": class_aware,
    "repeat_factor": repeat_factor,
}
