"""Claim: a step's ten figures cost a small part of the article's nine scikit-learn calls.

    python benchmarks/step_figures.py

Times both on the same random batches, in turn, on the CPU, and prints the median of each and their
ratio. Ours is counted with its share of the hand-over from device to buffer; neither with MLflow.
"""

import platform
import statistics
import time
from collections.abc import Callable

import sklearn
import torch
from sklearn.metrics import f1_score, precision_score, recall_score
from torch import Tensor

from nuswide.counts import BLOCK, figures_of, step_counts

BATCH, LABELS, STEPS = 32, 27, 300


def article(logits: Tensor, targets: Tensor) -> None:
    """The nine calls of the article's calculate_metrics, from scores on the CPU."""
    predicted = (logits.sigmoid() > 0.5).numpy()
    for average in ("micro", "macro", "samples"):
        for figure in (precision_score, recall_score, f1_score):
            figure(targets.numpy(), predicted, average=average, zero_division=0)


def ours() -> Callable[[Tensor, Tensor], None]:
    """Figures by counting, handed over in blocks, as StepRecord does."""
    waiting: list[Tensor] = []
    loss = torch.tensor(0.5)

    def record(logits: Tensor, targets: Tensor) -> None:
        waiting.append(step_counts(loss, logits, targets, 0.5))
        if len(waiting) == BLOCK:
            figures_of(torch.stack(waiting).double()).tolist()
            waiting.clear()

    return record


def main() -> None:
    """Time both in turn, and print what came out."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(BATCH, LABELS, generator=generator), torch.rand(BATCH, LABELS) < 0.1)
        for _ in range(STEPS)
    ]
    contenders = {"the article's nine calls": article, "ours": ours()}
    times_ms: dict[str, list[float]] = {name: [] for name in contenders}
    for logits, targets in batches:
        for name, record in contenders.items():
            start = time.perf_counter()
            record(logits, targets)
            times_ms[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times_ms.items()}
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {platform.processor()}")
    print(f"{STEPS} steps of {BATCH} images, {LABELS} labels; median and mean of a step")
    for name, values in times_ms.items():
        print(f"{name:26s} {medians[name]:8.3f} ms {statistics.mean(values):8.3f} ms")
    baseline, our_own = medians.values()
    print(f"ratio of medians: {baseline / our_own:.0f}")


if __name__ == "__main__":
    main()
