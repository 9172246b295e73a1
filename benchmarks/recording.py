"""Claim: a step's loss and nine figures are recorded in 0.5 ms, far below nine scikit-learn calls.

    python benchmarks/recording.py

Takes the figures of the same random batches on the CPU in both ways, in turn. Ours counts on the
device, takes the counts from it in blocks, and puts them into the outbox of a real MLflow run: that
is all that training waits for. Afterwards the outbox is emptied into the store, while a real run
would be training; those seconds are shown apart. The article's nine calls record nothing.
"""

import statistics
import time

import torch
from hardware import describe
from own_store import own_store
from sklearn.metrics import f1_score, precision_score, recall_score
from torch import Tensor

from nuswide.tracking.run import start_run
from nuswide.training.step_metrics import StepRecord, step_counts

BATCH, LABELS, STEPS = 32, 27, 1000


def article(logits: Tensor, targets: Tensor) -> None:
    """The nine calls of the article's calculate_metrics, from scores on the CPU."""
    predicted = (logits.sigmoid() > 0.5).numpy()
    for average in ("micro", "macro", "samples"):
        for figure in (precision_score, recall_score, f1_score):
            figure(targets.numpy(), predicted, average=average, zero_division=0)


def main() -> None:
    """Time both in turn, and print what came out."""
    generator = torch.Generator().manual_seed(0)
    loss = torch.tensor(0.5)
    times_ms: dict[str, list[float]] = {"the article's nine calls": [], "ours": []}
    with own_store() as folder:
        with start_run("train", "benchmark", outbox=folder) as run:
            record = StepRecord(run, 0, 0.0, lambda step, loss: f"{loss} at {step}")
            for _ in range(STEPS):
                logits = torch.randn(BATCH, LABELS, generator=generator)
                targets = torch.rand(BATCH, LABELS, generator=generator) < 0.1
                start = time.perf_counter()
                article(logits, targets)
                middle = time.perf_counter()
                record.add(step_counts(loss, logits, targets, 0.5))
                end = time.perf_counter()
                times_ms["the article's nine calls"].append(1000 * (middle - start))
                times_ms["ours"].append(1000 * (end - middle))
            start = time.perf_counter()
            record.flush()
            run.mark()
            times_ms["ours"][-1] += 1000 * (time.perf_counter() - start)
            start = time.perf_counter()
        sending_ms = 1000 * (time.perf_counter() - start)
    means = {name: statistics.mean(values) for name, values in times_ms.items()}
    print(f"{describe()}; {STEPS} steps of {BATCH} images, {LABELS} labels")
    for name, values in times_ms.items():
        median = statistics.median(values)
        print(f"{name:26s} mean {means[name]:7.3f} ms a step, median {median:7.3f} ms")
    baseline, own = means.values()
    print(f"ratio of means: {baseline / own:.0f}; ours {own:.3f} ms  (claim: at most 0.5)")
    print(f"sending it to the store, beside training: {sending_ms / STEPS:.2f} ms a step")


if __name__ == "__main__":
    main()
