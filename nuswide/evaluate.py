"""Scores of a split, computed once, and everything that is recorded of them.

Owns predict() and Evaluation. Never trains, nor cares whether torch or ONNX Runtime scores.

    scores = predict(tagger.score, data)
    Evaluation("test", data, scores, threshold=0.5).record(run, step=0)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from nuswide import distributed, metrics, plots
from nuswide.data import Dataset
from nuswide.models import Scorer
from nuswide.tracking import Run

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
HEADLINE = ("map", "micro/f1", "macro/f1", "samples/f1")
_BATCH = 64
_SHOWN = 12


def torch_score(
    model: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32
) -> Score:
    """Make a function that scores uint8 images (N, 3, S, S) with a network, in eval mode.

    dtype: of the arithmetic inside.
    """
    scorer = Scorer(model)

    def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        was_training = {module: module.training for module in model.modules()}
        scorer.eval()
        autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), autocast:
            scores: NDArray[np.float32] = scorer(torch.from_numpy(images).to(device)).cpu().numpy()
        for module, training in was_training.items():
            module.training = training
        return scores

    return score


def predict(score: Score, data: Dataset) -> NDArray[np.float32]:
    """Score all samples in their order; (N, C), in every process.

    Many processes share whole batches out, so that the scores are those of one process.
    """
    batches = np.array_split(np.arange(len(data)), range(_BATCH, len(data), _BATCH))
    own = batches[distributed.rank() :: distributed.world_size()]
    quiet = None if distributed.is_main() else True
    progress = tqdm(own, "scoring", unit="batch", disable=quiet, leave=False)
    scores = [score(data.gather(batch)) for batch in progress]
    return np.concatenate(distributed.gather_batches(scores, len(batches)))


@dataclass(frozen=True)
class Evaluation:
    """The scores (N, C) of one split's samples, and what follows from them."""

    split: str
    data: Dataset
    scores: NDArray[np.float32]
    threshold: float

    @cached_property
    def figures(self) -> metrics.Figures:
        """Every figure: `map`, `micro/f1` ..."""
        samples = self.data.manifest
        return metrics.all_figures(samples.targets, self.scores, self.threshold, samples.known)

    @property
    def prefixed(self) -> metrics.Figures:
        """The figures under the split's name: `test/map` ..."""
        return {f"{self.split}/{name}": value for name, value in self.figures.items()}

    def record(self, run: Run, *, step: int, model_id: str | None = None) -> None:
        """Record figures, per-label table and pictures, tied to the model."""
        run.log_result(self.prefixed, split=self.split, step=step, model_id=model_id)
        samples = self.data.manifest
        table = metrics.per_label_table(
            samples.labels, samples.targets, self.scores, self.threshold, samples.known
        )
        run.log_table(table, f"{self.split}/per_label.json")
        self.record_pictures(run, step=step)

    def record_pictures(self, run: Run, *, step: int) -> None:
        """Record a few pictures, always the same ones, with their true and predicted labels."""
        samples = self.data.manifest
        count = min(_SHOWN, len(samples))
        chosen = np.sort(np.random.default_rng(0).choice(len(samples), count, replace=False))
        grid = plots.prediction_grid(
            self.data.gather(chosen),
            samples.labels,
            samples.targets[chosen],
            self.scores[chosen],
            self.threshold,
            f"{self.split}, step {step}",
        )
        run.log_image(grid, f"{self.split}/predictions", step=step)


def headline(figures: metrics.Figures) -> str:
    """The few figures that stand for the rest, in one line."""
    return "  ".join(f"{name} {figures[name]:.3f}" for name in HEADLINE)


def baseline_key(baseline: str, figure: str) -> str:
    """The name under which a trivial baseline's figure on test is recorded."""
    return f"test_baselines/{baseline}_{figure.replace('/', '_')}"
