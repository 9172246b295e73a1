import math
from functools import partial

import click
import numpy as np
import pytest
import torch
from torch import Tensor

from nuswide.config import Config
from nuswide.models.losses import (
    LOSSES,
    Criterion,
    LabelCounts,
    asymmetric_loss,
    balance,
    binary_cross_entropy,
    class_balanced_loss,
    create_criterion,
    distribution_balanced_loss,
    effective_weights,
    focal_loss,
    hill_loss,
    smooth,
    splc_loss,
    two_way_loss,
    weighted_binary_cross_entropy,
    zlpr_loss,
)

N_TRAIN = 100
# Losses that are no mean over entries, by their definition; each says so.
SUMS_OVER_THE_BATCH = {"two_way"}
SUMS_OVER_LABELS = {"two_way", "zlpr", "distribution_balanced"}
PLAIN = sorted(LOSSES.keys() - SUMS_OVER_LABELS)


def counts_for(n_labels: int) -> LabelCounts:
    """A few positives of one label, many of the next, in N_TRAIN images."""
    positives = torch.tensor([3.0, 40.0, 15.0]).repeat(n_labels // 3 + 1)[:n_labels]
    return LabelCounts(positives, torch.full((n_labels,), float(N_TRAIN)))


def create(
    name: str, n_labels: int = 3, counts: LabelCounts | None = None, epoch: int = 5, **fields: float
) -> Criterion:
    config = Config(loss=name, **fields)  # type: ignore[arg-type]
    return create_criterion(config, counts or counts_for(n_labels), epoch=epoch)


@pytest.fixture(params=LOSSES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def criterion(name: str) -> Criterion:
    return create(name)


def batch(n: int = 4, n_labels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, n_labels, generator=generator)
    return logits, torch.randint(0, 2, (n, n_labels), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_loss_is_a_float32_scalar(criterion: Criterion, dtype: torch.dtype) -> None:
    logits, targets = batch()
    loss = criterion(logits.to(dtype), targets, None)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_loss_of_half_precision_logits_is_as_exact_as_in_float32(
    criterion: Criterion, dtype: torch.dtype
) -> None:
    logits, targets = batch(n=16)
    half = logits.to(dtype)
    assert criterion(half, targets, None).item() == pytest.approx(
        criterion(half.float(), targets, None).item(), rel=1e-6
    )


def test_a_loss_is_float32_under_autocast(criterion: Criterion) -> None:
    logits, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert criterion(logits.bfloat16(), targets, None).dtype == torch.float32


@pytest.mark.parametrize("level", [-65504.0, -50.0, 0.0, 50.0, 65504.0])
@pytest.mark.parametrize("pattern", ["none", "all", "alternate"])
def test_extreme_fp16_logits_give_a_finite_loss_and_gradient(
    criterion: Criterion, level: float, pattern: str
) -> None:
    logits = torch.full((2, 3), level, dtype=torch.float16, requires_grad=True)
    targets = torch.full((2, 3), int(pattern == "all"))
    if pattern == "alternate":
        targets[0, 1] = targets[1, 0] = 1
    loss = criterion(logits, targets, None)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_equals_finite_differences(name: str, masked: bool, smoothing: float) -> None:
    counts = LabelCounts(*(c.double() for c in counts_for(3)))
    criterion = create(name, counts=counts, label_smoothing=smoothing)
    logits, targets = batch()
    known = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    logits = logits.double().requires_grad_()
    targets = targets * known if masked else targets
    assert torch.autograd.gradcheck(
        lambda z: criterion(z, targets, known if masked else None), [logits]
    )


def test_a_doubled_batch_has_the_same_loss_unless_its_definition_sums_over_it(name: str) -> None:
    criterion = create(name)
    logits, targets = batch()
    doubled = criterion(torch.cat([logits, logits]), torch.cat([targets, targets]), None)
    is_same = doubled.item() == pytest.approx(criterion(logits, targets, None).item(), rel=1e-6)
    assert is_same == (name not in SUMS_OVER_THE_BATCH)


@pytest.mark.parametrize("name", PLAIN)
def test_repeated_labels_have_the_same_loss(name: str) -> None:
    logits, targets = batch()
    counts = counts_for(3)
    twice = LabelCounts(*(torch.cat([c, c]) for c in counts))
    doubled = create(name, counts=twice)(
        torch.cat([logits, logits], 1), torch.cat([targets, targets], 1), None
    )
    once = create(name, counts=counts)(logits, targets, None)
    assert doubled.item() == pytest.approx(once.item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(SUMS_OVER_LABELS))
def test_a_loss_that_is_no_mean_over_entries_says_so(name: str) -> None:
    criterion = create(name)
    function = criterion.func if isinstance(criterion, partial) else criterion
    said = " ".join((function.__doc__ or "").split())
    assert "doubling a batch changes it" in said or "duplicating a label changes" in said


def test_right_logits_lose_less_than_wrong_ones(criterion: Criterion) -> None:
    _, targets = batch()
    right = targets * 8.0 - 4
    assert criterion(right, targets, None) < criterion(torch.zeros(4, 3), targets, None)
    assert criterion(torch.zeros(4, 3), targets, None) < criterion(-right, targets, None)


def test_the_targets_number_type_does_not_matter(criterion: Criterion) -> None:
    logits, targets = batch()
    losses = [
        criterion(logits, targets.to(t), None) for t in (torch.uint8, torch.bool, torch.float32)
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (4,), (12,), (4, 1), (1, 3)])
def test_targets_of_another_shape_raise_value_error(
    criterion: Criterion, shape: tuple[int, ...]
) -> None:
    logits, _ = batch()
    with pytest.raises(ValueError):
        criterion(logits, torch.zeros(shape), None)


# Unknown entries


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


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_unknown_row_or_column_counts_as_if_it_were_not_there(
    name: str, smoothing: float
) -> None:
    logits, targets = batch(n=6, n_labels=5)
    counts = counts_for(5)
    criterion = create(name, counts=counts, label_smoothing=smoothing)
    known = torch.ones_like(targets, dtype=torch.bool)
    known[4:] = False
    shorter = criterion(logits[:4], targets[:4], None)
    assert criterion(logits, targets * known, known).item() == pytest.approx(
        shorter.item(), rel=1e-6
    )
    known = torch.ones_like(targets, dtype=torch.bool)
    known[:, 3:] = False
    # The weights of class_balanced are over their mean, which would be another for three labels.
    rest = counts if name == "class_balanced" else LabelCounts(*(c[:3] for c in counts))
    if name == "class_balanced":
        weights = effective_weights(rest)[:3]
        soft = smooth(targets[:, :3], smoothing)
        narrower = class_balanced_loss(logits[:, :3], soft, weights=weights)
    else:
        fewer = create(name, counts=rest, label_smoothing=smoothing)
        narrower = fewer(logits[:, :3], targets[:, :3], None)
    assert criterion(logits, targets * known, known).item() == pytest.approx(
        narrower.item(), rel=1e-6
    )


def test_any_unknown_entries_count_as_if_they_were_not_there() -> None:
    logits, targets = batch()
    known = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    rest = binary_cross_entropy(logits[known][None], targets[known][None])
    assert binary_cross_entropy(logits, targets * known, known).item() == pytest.approx(rest.item())


def test_all_entries_known_is_the_same_as_no_mask(criterion: Criterion) -> None:
    logits, targets = batch()
    masked = criterion(logits, targets, torch.ones_like(targets, dtype=torch.bool))
    assert masked.item() == pytest.approx(criterion(logits, targets, None).item())


def test_no_known_entry_gives_a_loss_of_0(criterion: Criterion) -> None:
    logits, targets = batch()
    logits.requires_grad_()
    loss = criterion(logits, targets * 0, torch.zeros_like(targets).bool())
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


# Values by hand: s is the sigmoid, and l(z) = log(1 + e^z), so that -log s(z) = l(-z)


def s(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def l(z: float) -> float:  # noqa: E743 - as in the formulas
    return math.log(1 + math.exp(z))


LOGITS = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
TARGETS = torch.tensor([[1, 1], [0, 0]])
COUNTS = LabelCounts(torch.tensor([10.0, 50.0]), torch.tensor([100.0, 80.0]))


def assert_is(loss: Tensor, by_hand: float, rounded: float) -> None:
    assert by_hand == pytest.approx(rounded, abs=6e-5)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)


def test_bce_equals_a_hand_computed_value() -> None:
    assert_is(binary_cross_entropy(LOGITS, TARGETS), (l(0) + l(-2) + l(-1) + l(3)) / 4, 1.0455)


def test_weighted_bce_equals_a_hand_computed_value() -> None:
    weights = balance(COUNTS, cap=5)
    assert weights.tolist() == pytest.approx([5, 30 / 50])  # 90 to 10 is 9, above the cap
    loss = weighted_binary_cross_entropy(LOGITS, TARGETS, positive_weights=weights)
    assert_is(loss, (5 * l(0) + 0.6 * l(-2) + l(-1) + l(3)) / 4, 1.7259)


def test_focal_equals_a_hand_computed_value() -> None:
    by_hand = (
        0.5**2 * l(0) + (1 - s(2)) ** 2 * l(-2) + s(-1) ** 2 * l(-1) + s(3) ** 2 * l(3)
    ) / 4  # fmt: skip
    assert_is(focal_loss(LOGITS, TARGETS), by_hand, 0.7410)


def test_asl_equals_a_hand_computed_value() -> None:
    low, high = s(-1) - 0.05, s(3) - 0.05
    by_hand = (
        0.5 * l(0) + (1 - s(2)) * l(-2) - low**4 * math.log(1 - low) - high**4 * math.log(1 - high)
    ) / 4
    assert_is(asymmetric_loss(LOGITS, TARGETS), by_hand, 0.4769)


def test_asl_without_its_margin_and_powers_is_bce() -> None:
    plain = asymmetric_loss(LOGITS, TARGETS, gamma_neg=0, gamma_pos=0, clip=0)
    assert plain.item() == pytest.approx(binary_cross_entropy(LOGITS, TARGETS).item(), rel=1e-6)


def test_asl_does_not_pull_at_negatives_below_its_margin() -> None:
    logits = torch.tensor([[-3.0, -2.9]], requires_grad=True)  # scores of 0.047 and 0.052
    asymmetric_loss(logits, torch.zeros(1, 2), gamma_neg=0.5).backward()
    assert logits.grad is not None
    assert logits.grad[0, 0] == 0 and logits.grad[0, 1] > 0


def test_class_balanced_equals_a_hand_computed_value() -> None:
    weights = effective_weights(COUNTS, beta=0.9)
    rare, frequent = 0.1 / (1 - 0.9**10), 0.1 / (1 - 0.9**50)
    mean = (rare + frequent) / 2
    assert weights.tolist() == pytest.approx([rare / mean, frequent / mean])
    by_hand = (rare * (l(0) + l(-1)) + frequent * (l(-2) + l(3))) / mean / 4
    assert_is(class_balanced_loss(LOGITS, TARGETS, weights=weights), by_hand, 0.9323)


def test_distribution_balanced_equals_a_hand_computed_value() -> None:
    # The first image has both labels: 1/10 and 1/50 of 0.12. The second has none.
    w = [0.1 + s(10 * (0.1 / 0.12 - 0.2)), 0.1 + s(10 * (0.02 / 0.12 - 0.2)), 1.1, 1.1]
    v = [-math.log(90 / 10) * 0.05 / 2, -math.log(30 / 50) * 0.05 / 2]
    z = [0 + v[0], 2 + v[1], 2 * (-1 + v[0]), 2 * (3 + v[1])]
    by_hand = (
        w[0] * (1 - s(z[0])) ** 2 * l(-z[0]) + w[1] * (1 - s(z[1])) ** 2 * l(-z[1])
        + w[2] * s(z[2]) ** 2 * l(z[2]) / 2 + w[3] * s(z[3]) ** 2 * l(z[3]) / 2
    ) / 4  # fmt: skip
    assert_is(distribution_balanced_loss(LOGITS, TARGETS, counts=COUNTS), by_hand, 0.8775)


def test_two_way_equals_a_hand_computed_value() -> None:
    # Each label has the first image as its positive; the first image has no negative.
    labels = (l(-1 - 0) + l(3 - 2)) / 2
    assert_is(two_way_loss(LOGITS, TARGETS), labels, 0.8133)
    # Two positives and a negative of one image, of labels that no other image disagrees on.
    z = torch.tensor([[0.0, 2.0, -1.0]])
    high, low = -1.0, 4 * math.log(math.exp(-0 / 4) + math.exp(-2 / 4))
    assert_is(two_way_loss(z, torch.tensor([[1, 1, 0]])), l(high + low), 1.2385)


def test_zlpr_equals_a_hand_computed_value() -> None:
    first = math.log(1 + math.exp(-0) + math.exp(-2))
    second = math.log(1 + math.exp(-1) + math.exp(3))
    assert_is(zlpr_loss(LOGITS, TARGETS), (first + second) / 2, 1.9123)


def test_hill_equals_a_hand_computed_value() -> None:
    by_hand = (
        (1 - s(-1)) ** 2 * l(1) + (1 - s(1)) ** 2 * l(-1)
        + (1.5 - s(-1)) * s(-1) ** 2 + (1.5 - s(3)) * s(3) ** 2
    ) / 4  # fmt: skip
    assert_is(hill_loss(LOGITS, TARGETS), by_hand, 0.3276)


def test_splc_equals_a_hand_computed_value_before_and_after_it_corrects() -> None:
    positives = (1 - s(-1)) ** 2 * l(1) + (1 - s(1)) ** 2 * l(-1)
    before = splc_loss(LOGITS, TARGETS, is_correcting=False)
    assert_is(before, (positives + l(-1) + l(3)) / 4, 1.0216)
    # A score of s(3), above 0.6, is taken for a label.
    after = splc_loss(LOGITS, TARGETS, is_correcting=True)
    assert_is(after, (positives + l(-1) + (1 - s(2)) ** 2 * l(-2)) / 4, 0.2599)


# What the loss is made from


def test_splc_corrects_from_the_epoch_that_it_is_told() -> None:
    early, late = (create("splc", 2, epoch=e, splc_from_epoch=3) for e in (2, 3))
    assert early(LOGITS, TARGETS, None) == splc_loss(LOGITS, TARGETS, is_correcting=False)
    assert late(LOGITS, TARGETS, None) == splc_loss(LOGITS, TARGETS, is_correcting=True)


def test_label_smoothing_moves_targets_towards_a_half() -> None:
    assert smooth(torch.tensor([0, 1]), 0.2).tolist() == pytest.approx([0.1, 0.9])
    smoothed = create("bce", 2, label_smoothing=0.2)(LOGITS, TARGETS, None)
    by_hand = binary_cross_entropy(LOGITS, torch.tensor([[0.9, 0.9], [0.1, 0.1]]))
    assert smoothed.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_label_smoothing_changes_every_loss_and_punishes_certainty(name: str) -> None:
    _, targets = batch()
    smoothed = create(name, label_smoothing=0.2)
    right = targets * 60.0 - 30
    assert smoothed(right, targets, None) > create(name)(right, targets, None)


COUNTED = ["weighted_bce", "class_balanced", "distribution_balanced"]


@pytest.mark.parametrize("name", COUNTED)
def test_a_loss_that_counts_depends_on_the_counts(name: str) -> None:
    logits, targets = batch()
    other = LabelCounts(torch.tensor([30.0, 2.0, 60.0]), torch.full((3,), 100.0))
    assert create(name)(logits, targets, None) != create(name, counts=other)(logits, targets, None)


@pytest.mark.parametrize("n_positives", [0.0, 1.0, 100.0])
def test_labels_that_are_never_or_always_there_keep_losses_finite(
    name: str, n_positives: float
) -> None:
    counts = LabelCounts(torch.tensor([n_positives, 40.0, 0.0]), torch.tensor([100.0, 100.0, 0.0]))
    for level in (-50.0, 0.3, 50.0):
        logits = torch.full((4, 3), level, requires_grad=True)
        loss = create(name, counts=counts)(logits, batch()[1], None)
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_rare_labels_weigh_more() -> None:
    counts = LabelCounts(torch.tensor([2.0, 20.0, 200.0]), torch.full((3,), 1000.0))
    for weights in (balance(counts, cap=1000), effective_weights(counts, beta=0.99)):
        assert (np.diff(weights) < 0).all()
    assert effective_weights(counts, beta=0).tolist() == [1, 1, 1]
    assert effective_weights(counts, beta=0.999).mean().item() == pytest.approx(1)


def test_an_unknown_loss_is_refused_with_the_nearest() -> None:
    with pytest.raises(click.UsageError, match=r"unknown loss 'focall'; did you mean focal\?"):
        create("focall")
