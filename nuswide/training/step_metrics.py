"""Each step's loss and nine metrics, counted on the device and read from it in blocks.

Owns the counts of a batch, the metrics computed from them, and their logging.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuswide.core import distributed
from nuswide.metrics import NINE
from nuswide.training.checkpoint import Diverged

BLOCK = 100  # steps whose counts are read from the device together
_SUMS = 5  # loss, images and the sums of the samples metrics, before three counts a label
_KEYS = tuple(f"train/{name}" for name in ("loss", *NINE))


class MetricLog(Protocol):
    """What takes the metrics."""

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        """Log metrics of a step."""


def step_counts(
    loss: Tensor, logits: Tensor, targets: Tensor, threshold: float, known: Tensor | None = None
) -> Tensor:
    """Return the counts of a batch, on the device; (5 + 3C,).

    logits, targets, known: (N, C). A mixed target of a half or more counts as true.
    """
    predicted, true = (logits.sigmoid() >= threshold).float(), (targets >= 0.5).float()
    if known is not None:
        predicted, true = predicted * known, true * known
    hits = predicted * true
    by_image = _ratios(hits.sum(1), predicted.sum(1), true.sum(1)).sum(1)
    n_images = torch.full((1,), len(logits), dtype=torch.float32, device=logits.device)
    counts = [x.sum(0) for x in (hits, predicted, true)]
    return torch.cat([loss.float().reshape(1) * len(logits), n_images, by_image, *counts])


def metrics_of(counts: Tensor) -> Tensor:
    """Return loss and nine metrics, in the order of metrics.NINE, from steps' counts; (B, 10).

    As metrics.all_figures defines them. counts: (B, 5 + 3C), any device.
    """
    n_images = counts[:, 1:2]
    hits, predicted, true = counts[:, _SUMS:].unflatten(1, (3, -1)).unbind(1)  # (B, C) each
    micro = _ratios(hits.sum(1), predicted.sum(1), true.sum(1)).T
    macro = _ratios(hits, predicted, true).mean(2).T
    return torch.cat([counts[:, :1] / n_images, micro, macro, counts[:, 2:5] / n_images], dim=1)


def _ratios(hits: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Return precision, recall and F1; 0 where the denominator is 0, as the numerator is, too."""
    return torch.stack([
        hits / predicted.clamp(min=1), hits / true.clamp(min=1),
        2 * hits / (predicted + true).clamp(min=1),
    ])  # fmt: skip


class StepRecord:
    """Collects the counts of steps, and logs their metrics in blocks, each step once.

    loss_sum: the sum of the epoch's losses so far, to which those of logged steps are added.
    explain: returns what to do about a step whose loss is not finite.
    """

    def __init__(
        self, run: MetricLog, first_step: int, loss_sum: float, explain: Callable[[int, float], str]
    ) -> None:
        self.run = run
        self.step = first_step
        self.loss_sum = loss_sum
        self.explain = explain
        self.waiting: list[Tensor] = []

    def add(self, counts: Tensor) -> None:
        """Add a step's counts."""
        self.waiting.append(counts)
        if len(self.waiting) == BLOCK:
            self.flush()

    def flush(self) -> None:
        """Log all steps so far; raises Diverged for a loss that is not finite."""
        if not self.waiting:
            return
        counts = distributed.all_reduce(torch.stack(self.waiting)).cpu()
        self.waiting.clear()
        rows: NDArray[np.float64] = metrics_of(counts.double()).numpy()
        for row in rows.tolist():
            if not np.isfinite(row[0]):
                raise Diverged(self.explain(self.step, row[0]))
            self.run.log_metrics(dict(zip(_KEYS, row, strict=True)), step=self.step)
            self.loss_sum += row[0]
            self.step += 1
