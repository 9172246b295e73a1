import click
import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support

from nuswide.metrics import AVERAGES, NINE, all_metrics
from nuswide.training.step_metrics import BLOCK, StepRecord, metrics_of, step_counts


class Log:
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        self.seen.append((step, metrics))


def problem(n: int = 16, c: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, c, generator=generator)
    return logits, (torch.rand(n, c, generator=generator) < 0.3).to(torch.uint8)


def explain(step: int, loss: float) -> str:
    return f"step {step}: {loss}"


@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_counted_figures_are_those_of_metrics(seed: int, with_known: bool) -> None:
    logits, targets = problem(seed=seed)
    known = None
    if with_known:
        known = torch.rand(targets.shape, generator=torch.Generator().manual_seed(9)) < 0.7
        targets = targets * known
    counts = step_counts(torch.tensor(0.25), logits, targets, 0.4, known)
    loss, *figures = metrics_of(counts[None].double())[0].tolist()
    expected = all_metrics(
        targets.numpy(), logits.sigmoid().numpy(), 0.4, None if known is None else known.numpy()
    )
    assert loss == 0.25
    assert dict(zip(NINE, figures, strict=True)) == pytest.approx(
        {name: expected[name] for name in NINE}, abs=1e-6
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("shape", [(8, 5), (1, 1), (1, 6), (7, 1), (32, 81)])
def test_counted_figures_are_those_of_scikit_learn(shape: tuple[int, int], seed: int) -> None:
    logits, targets = problem(*shape, seed=seed)
    logits = (4 * logits).round() + 0.5  # never at the threshold, with ties
    threshold = (0.2, 0.5, 0.8)[seed % 3]
    predictions = (logits.sigmoid() >= threshold).numpy()
    # An empty second label stops scikit-learn from reading one label as a binary problem.
    both = targets.numpy(), predictions
    padded = [np.pad(x, ((0, 0), (0, 1))) if shape[1] == 1 else x for x in both]
    expected = []
    for average in AVERAGES:
        *values, _ = precision_recall_fscore_support(*padded, average=average, zero_division=0)
        expected += [2 * x if shape[1] == 1 and average == "macro" else x for x in values]
    counts = step_counts(torch.tensor(0.0), logits, targets, threshold)
    assert metrics_of(counts[None])[0, 1:].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_score_at_the_threshold_is_predicted() -> None:
    counts = step_counts(torch.tensor(0.0), torch.zeros(2, 2), torch.ones(2, 2), 0.5)
    assert metrics_of(counts[None])[0, 1:].tolist() == [1.0] * 9


def test_counts_of_two_halves_add_up_to_those_of_the_whole() -> None:
    logits, targets = problem()
    whole = step_counts(torch.tensor(0.5), logits, targets, 0.5)
    halves = [
        step_counts(torch.tensor(loss), logits[part], targets[part], 0.5)
        for loss, part in ((0.25, slice(0, 8)), (0.75, slice(8, 16)))
    ]
    torch.testing.assert_close(halves[0] + halves[1], whole)


def test_nothing_predicted_and_nothing_true_give_zeros() -> None:
    counts = step_counts(torch.tensor(1.0), torch.full((4, 3), -9.0), torch.zeros(4, 3), 0.5)
    assert metrics_of(counts[None])[0].tolist() == [1.0] + [0.0] * 9


def test_steps_leave_in_blocks_and_each_once() -> None:
    log = Log()
    record = StepRecord(log, first_step=7, loss_sum=1.5, explain=explain)
    logits, targets = problem()
    for _ in range(BLOCK + 3):
        record.add(step_counts(torch.tensor(0.5), logits, targets, 0.5))
    assert len(log.seen) == BLOCK
    record.flush()
    record.flush()
    assert [step for step, _ in log.seen] == list(range(7, 7 + BLOCK + 3))
    assert record.loss_sum == 1.5 + 0.5 * (BLOCK + 3)


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    record = StepRecord(Log(), first_step=0, loss_sum=0.0, explain=explain)
    logits, targets = problem()
    for loss in (0.5, np.nan):
        record.add(step_counts(torch.tensor(loss), logits, targets, 0.5))
    with pytest.raises(click.ClickException, match="step 1: nan"):
        record.flush()
