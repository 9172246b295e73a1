import math

import pytest
import torch
from torch import Tensor

from nuswide.losses import LOSSES, Criterion, binary_cross_entropy


@pytest.fixture(params=LOSSES)
def criterion(request: pytest.FixtureRequest) -> Criterion:
    return LOSSES[request.param]


def batch(n: int = 4, n_labels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, n_labels, generator=generator)
    return logits, torch.randint(0, 2, (n, n_labels), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_loss_is_a_float32_scalar(criterion: Criterion, dtype: torch.dtype) -> None:
    logits, targets = batch()
    loss = criterion(logits.to(dtype), targets)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_of_half_precision_logits_is_as_exact_as_in_float32(
    criterion: Criterion, dtype: torch.dtype
) -> None:
    logits, targets = batch(n=16)
    half = logits.to(dtype)
    assert criterion(half, targets).item() == pytest.approx(
        criterion(half.float(), targets).item(), rel=1e-6
    )


def test_a_loss_is_float32_under_autocast(criterion: Criterion) -> None:
    logits, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(logits.bfloat16(), targets).dtype == torch.float32


@pytest.mark.parametrize("level", [-50.0, 50.0])
@pytest.mark.parametrize("target", [0, 1])
def test_extreme_fp16_logits_give_a_finite_loss_and_gradient(
    criterion: Criterion, level: float, target: int
) -> None:
    logits = torch.full((2, 3), level, dtype=torch.float16, requires_grad=True)
    loss = criterion(logits, torch.full((2, 3), target))
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_the_gradient_equals_finite_differences(criterion: Criterion) -> None:
    logits, targets = batch()
    logits.requires_grad_()
    criterion(logits, targets).backward()
    step = 1e-2
    for place in range(logits.numel()):
        nudge = torch.zeros(logits.numel())
        nudge[place] = step
        nudge = nudge.view_as(logits)
        with torch.no_grad():
            rise = criterion(logits + nudge, targets) - criterion(logits - nudge, targets)
        assert logits.grad is not None
        slope = (rise / (2 * step)).item()
        assert logits.grad.flatten()[place].item() == pytest.approx(slope, rel=0.01, abs=1e-4)


def test_a_doubled_batch_has_the_same_loss(criterion: Criterion) -> None:
    logits, targets = batch()
    doubled = criterion(torch.cat([logits, logits]), torch.cat([targets, targets]))
    assert doubled.item() == pytest.approx(criterion(logits, targets).item(), rel=1e-6)


def test_repeated_labels_have_the_same_loss(criterion: Criterion) -> None:
    logits, targets = batch()
    doubled = criterion(torch.cat([logits, logits], 1), torch.cat([targets, targets], 1))
    assert doubled.item() == pytest.approx(criterion(logits, targets).item(), rel=1e-6)


def test_right_logits_lose_less_than_wrong_ones(criterion: Criterion) -> None:
    _, targets = batch()
    right = targets * 8.0 - 4
    assert criterion(right, targets) < criterion(torch.zeros(4, 3), targets)
    assert criterion(torch.zeros(4, 3), targets) < criterion(-right, targets)


def test_the_targets_number_type_does_not_matter(criterion: Criterion) -> None:
    logits, targets = batch()
    losses = [criterion(logits, targets.to(t)) for t in (torch.uint8, torch.bool, torch.float32)]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4,), (12,), (4, 1), (1, 3)])
def test_targets_of_another_shape_raise_value_error(
    criterion: Criterion, shape: tuple[int, ...]
) -> None:
    logits, _ = batch()
    with pytest.raises(ValueError):
        criterion(logits, torch.zeros(shape))


def test_bce_equals_a_hand_computed_value() -> None:
    # -log sigmoid(0), -log sigmoid(2), -log(1 - sigmoid(-1)), -log(1 - sigmoid(3))
    logits = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    targets = torch.tensor([[1, 1], [0, 0]])
    by_hand = (
        math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
        + math.log(1 + math.exp(3))
    ) / 4  # fmt: skip
    assert by_hand == pytest.approx(1.0455, abs=1e-4)
    assert binary_cross_entropy(logits, targets).item() == pytest.approx(by_hand, rel=1e-6)


def test_unknown_entries_change_neither_the_loss_nor_the_gradient(criterion: Criterion) -> None:
    logits, targets = batch()
    known = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    results = []
    for elsewhere in (-9.0, 9.0):
        disturbed = torch.where(known, logits, torch.full_like(logits, elsewhere))
        disturbed.requires_grad_()
        loss = criterion(disturbed, targets * known, known)
        loss.backward()
        assert disturbed.grad is not None and not disturbed.grad[~known].any()
        results.append((loss.item(), disturbed.grad[known].tolist()))
    assert results[0] == results[1]


def test_all_entries_known_is_the_same_as_no_mask(criterion: Criterion) -> None:
    logits, targets = batch()
    masked = criterion(logits, targets, torch.ones_like(targets, dtype=torch.bool))
    assert masked.item() == pytest.approx(criterion(logits, targets, None).item())


def test_no_known_entry_gives_a_loss_of_0(criterion: Criterion) -> None:
    logits, targets = batch()
    loss = criterion(logits.requires_grad_(), targets * 0, torch.zeros_like(targets).bool())
    loss.backward()
    assert loss.item() == 0
