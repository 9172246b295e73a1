"""Which images of train an epoch takes, and in which order.

Owns SAMPLINGS, epoch_order and draw_rows. Whatever draws the images, an epoch is as many as train
has, so that steps, schedules and averages keep their length, and follows from the seed and its
number alone. Never looks at a label of val or test, nor at a picture.

    sample = create_sampling(config, TrainLabels.of(manifest))
    steps = epoch_order(manifest.indices("train"), sample, batch_size=32, seed=0, epoch=3)
"""

from collections.abc import Callable

import click
import numpy as np
from numpy.typing import NDArray

from nuswide.config import Config
from nuswide.data.label_stats import TrainLabels

Places = NDArray[np.int64]
Sampling = Callable[[np.random.Generator], Places]  # gives N places among train's N images


def create_sampling(config: Config, train: TrainLabels) -> Sampling:
    """Make the sampling that the config names, for the N images of train."""
    return SAMPLINGS[config.sampling](config, train)


def epoch_order(
    indices: NDArray[np.int64], sample: Sampling, *, batch_size: int, seed: int, epoch: int
) -> NDArray[np.int64]:
    """Draw an epoch's images from those at `indices`, and cut them into steps; (M, batch_size).

    The short rest is left out.
    """
    order = indices[sample(np.random.default_rng([seed, epoch, 0]))]
    n_batches = len(order) // batch_size
    return order[: n_batches * batch_size].reshape(n_batches, batch_size)


def draw_rows(order: NDArray[np.int64], n_images: int) -> NDArray[np.int64]:
    """The row of an epoch's draws that each image of the order takes; of the order's shape.

    An image that comes again in the epoch takes the row after its own, and so on, so that it is
    never augmented twice in the same way. n_images: rows there are.
    """
    flat = order.ravel()
    by_image = np.argsort(flat, kind="stable")
    grouped = flat[by_image]
    came_before = np.empty_like(flat)
    came_before[by_image] = np.arange(len(flat)) - np.searchsorted(grouped, grouped)
    return (order + came_before.reshape(order.shape)) % n_images


def uniform(config: Config, train: TrainLabels) -> Sampling:
    """Take each image once."""
    n_images = len(train.targets)
    return lambda rng: rng.permutation(n_images)


def class_aware(config: Config, train: TrainLabels) -> Sampling:
    """Take labels in turn, each as often as any other, and of a label its images in turn.

    Both turns are shuffled anew each time round. Labels without an image, and images without a
    label, don't come. Source: Shen et al., arXiv:1512.05830, as Wu et al., arXiv:2007.09654, take
    it for many labels an image.
    """
    images = [found for has in train.targets.T if len(found := np.flatnonzero(has))]
    if not images:
        raise click.ClickException(
            "sampling=class_aware draws images by their labels, and train has none; give "
            "sampling=uniform"
        )

    def sample(rng: np.random.Generator) -> Places:
        labels = _in_turn(rng, np.arange(len(images)), len(train.targets))
        counts = np.bincount(labels, minlength=len(images))
        parts = [_in_turn(rng, of, n) for of, n in zip(images, counts, strict=True)]
        places = np.empty_like(labels)
        places[np.argsort(labels, kind="stable")] = np.concatenate(parts)
        return places

    return sample


def _in_turn(rng: np.random.Generator, items: Places, count: int) -> Places:
    """Items in turn, shuffled each time round: none comes twice before all came; (count,)."""
    rounds = -(-count // len(items))
    turns: Places = rng.permuted(np.tile(items, (rounds, 1)), axis=1).ravel()[:count]
    return turns


def repeat_factor(config: Config, train: TrainLabels) -> Sampling:
    """Repeat images of rare labels, by their factors, and take as many of all as train has.

    What is left of a factor beyond its whole number is the chance of coming once more.
    """
    factors = repeat_factors(train, config.repeat_threshold)

    def sample(rng: np.random.Generator) -> Places:
        times = (factors + rng.random(len(factors))).astype(np.int64)
        return rng.permutation(np.repeat(np.arange(len(factors)), times))[: len(factors)]

    return sample


def repeat_factors(train: TrainLabels, threshold: float) -> NDArray[np.float64]:
    """How often each image comes for one that has no rare label; (N,), at least 1.

    A label's factor is max(1, sqrt(threshold / f)), where f is the share of train's images that
    are known to have it, and an image's is the greatest of its labels'. Source: Gupta et al.,
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
