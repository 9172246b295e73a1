"""The inputs of a report.

Owns ReportInputs and Part, and the sample of images for the curves of large splits. Computes no
metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nuswide.data.dataset import Dataset
from nuswide.metrics import Metrics, Predictions

MOST_ENTRIES = 2**23  # of images by labels that curves are made of: 100,000 images by 81 labels


@dataclass(frozen=True)
class Part:
    """Samples and their scores (N, C)."""

    data: Dataset
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class ReportInputs:
    """An evaluation of a model on the samples of a split.

    scores: (N, C). thresholds: (C,), fitted on another split. train_positives: (C,) images in train
    with each label. baselines: trivial tagger -> metrics on the same samples. metrics: of these
    scores at the thresholds; computed if they are not given. intervals: metric -> value, low, high,
    at 95 %. held_out: samples that were not trained on, with their scores, in whose labels mistakes
    are looked for. costs: name with its unit -> value. facts: name -> what is to be known of model,
    data and protocol.
    """

    title: str
    split: str
    data: Dataset
    scores: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    train_positives: NDArray[np.int64]
    baselines: Mapping[str, Metrics] = field(default_factory=dict)
    metrics: Metrics | None = None
    intervals: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    held_out: Part | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_labels = len(self.labels)
        if self.scores.shape != (len(self.data), n_labels):
            raise ValueError(f"scores are {self.scores.shape}, not those of {self.data.manifest}")
        if self.thresholds.shape != (n_labels,) or self.train_positives.shape != (n_labels,):
            raise ValueError(f"thresholds and train_positives must have {n_labels} values each")

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the C labels."""
        return self.data.manifest.labels


@dataclass(frozen=True)
class Sample:
    """The images from which curves and tables are computed: all, or as many as memory allows.

    rows: their indices in the inputs' data.
    """

    inputs: ReportInputs
    rows: NDArray[np.int64]

    @cached_property
    def predictions(self) -> Predictions:
        """Return their targets and scores at the model's thresholds."""
        return self._at(self.inputs.thresholds)

    @cached_property
    def at_half(self) -> Predictions:
        """Return the same at a threshold of 0.5 for every label."""
        return self._at(np.full_like(self.inputs.thresholds, 0.5))

    def _at(self, thresholds: NDArray[np.float32]) -> Predictions:
        samples, rows = self.inputs.data.manifest, self.rows
        if self.is_all:  # copies nothing
            known, targets, scores = samples.known, samples.targets, self.inputs.scores
        else:
            known = None if samples.known is None else samples.known[rows]
            targets, scores = samples.targets[rows], self.inputs.scores[rows]
        return Predictions(targets, scores, thresholds, known, self.inputs.train_positives)

    @property
    def is_all(self) -> bool:
        """Whether the sample has every image."""
        return len(self.rows) == len(self.inputs.data)


def take_sample(inputs: ReportInputs, most_entries: int) -> Sample:
    """Take all images, or a fixed random sample of them."""
    return Sample(inputs, some_rows(inputs.scores, most_entries))


def some_rows(scores: NDArray[np.float32], most_entries: int) -> NDArray[np.int64]:
    """Choose images, in their order, with at most `most_entries` entries."""
    n_images, n_labels = scores.shape
    most = max(1, most_entries // max(1, n_labels))
    if n_images <= most:
        return np.arange(n_images)
    return np.sort(np.random.default_rng(0).choice(n_images, most, replace=False))
