"""Losses for multi-label classification.

Owns the functions (logits, targets, known) -> scalar, computed in float32 for any input type, and
their selection by the config. Depends on neither the models nor the training loop.

Targets are 0 or 1; values between, from mixup and label smoothing, weight the two terms. A loss is
a mean over the known entries unless its docstring says otherwise.

    >>> logits, targets = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    >>> binary_cross_entropy(logits, targets)
    tensor(0.6931)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nuswide.config import Config, lookup

Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LabelCounts(NamedTuple):
    """Number of training images with each label, and number in which it is known; (C,) floats."""

    positives: Tensor
    known: Tensor


def binary_cross_entropy(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """Binary cross-entropy from logits; the mean over the known entries.

    logits: (N, C), any real. targets: (N, C), 0 or 1. known: (N, C) bool, None if all are.
    """
    logits, targets = _prepare(logits, targets)
    entries = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return mean_of_known(entries, known)


def weighted_binary_cross_entropy(
    logits: Tensor, targets: Tensor, known: Tensor | None = None, *, positive_weights: Tensor
) -> Tensor:
    """Binary cross-entropy whose positive terms are multiplied by a weight per label.

    logits, targets, known: as in binary_cross_entropy. positive_weights: (C,), see balance.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _log_loss(logits)
    entries = targets * positive_weights * positive + (1 - targets) * negative
    return mean_of_known(entries, known)


def balance(counts: LabelCounts, *, cap: float) -> Tensor:
    """Return the ratio of negatives to positives of each label, from 1/cap to cap; (C,)."""
    negatives = counts.known - counts.positives
    return (negatives / counts.positives.clamp(min=1)).clamp(1 / cap, cap)


def focal_loss(
    logits: Tensor, targets: Tensor, known: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Binary cross-entropy times (1 - p_t)^gamma, where p_t is the score of the true state.

    logits, targets, known: as in binary_cross_entropy. gamma: at least 0, which gives the former.
    Source: Lin et al. 2017, arXiv:1708.02002, without its alpha.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _focal(logits, gamma)
    return mean_of_known(targets * positive + (1 - targets) * negative, known)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> Tensor:
    """Focal-style loss that reduces the weight of easy negatives.

    logits, targets, known: as in binary_cross_entropy. clip: probability margin in [0, 1) by which
    the scores of negatives are lowered. Its scores are not calibrated.
    Source: Ridnik et al. 2021, arXiv:2009.14119; the authors' training script has gamma_pos 0.
    """
    logits, targets = _prepare(logits, targets)
    positive, _ = _focal(logits, gamma_pos)
    margin = torch.full_like(logits, math.log(clip) if clip else -math.inf)
    # log(1 - p + clip), at most 0; rounding of sigmoid would make it -inf without a margin.
    log_miss = torch.logaddexp(F.logsigmoid(-logits), margin).clamp(max=0)
    # The floor keeps the gradient of a power below 1 finite; where it applies, log_miss is 0.
    shifted = (torch.sigmoid(logits) - clip).clamp(min=1e-12)
    return mean_of_known(targets * positive - (1 - targets) * shifted**gamma_neg * log_miss, known)


def class_balanced_loss(
    logits: Tensor, targets: Tensor, known: Tensor | None = None, *, weights: Tensor
) -> Tensor:
    """Binary cross-entropy times a weight per label.

    logits, targets, known: as in binary_cross_entropy. weights: (C,), see effective_weights.
    Source: Cui et al. 2019, arXiv:1901.05555. There an image has the weight of its only class; with
    several labels per image, each entry has the weight of its label here.
    """
    logits, targets = _prepare(logits, targets)
    entries = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return mean_of_known(entries * weights, known)


def effective_weights(counts: LabelCounts, *, beta: float = 0.999) -> Tensor:
    """Return (1 - beta) / (1 - beta^n) for each label's n positives, divided by the mean; (C,).

    beta: in [0, 1), 0 for equal weights. The paper tries 0.9, 0.99, 0.999 and 0.9999 (cited from
    memory). A label without a positive counts as if it had one.
    """
    n = counts.positives.cpu().double().clamp(min=1)  # Apple's GPUs have no float64
    weights = (1 - beta) / (1 - beta**n)
    return (weights / weights.mean()).to(counts.positives)


def distribution_balanced_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    counts: LabelCounts,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    kappa: float = 0.05,
    neg_scale: float = 2.0,
    gamma: float = 2.0,
) -> Tensor:
    """Focal loss, rebalanced for co-occurring labels and tolerant of negatives.

    logits, targets, known: as in binary_cross_entropy. counts: of train. alpha, beta, mu: floor,
    slope and centre of the weights. kappa: share of a label's prior that is added to its logit.
    neg_scale: lambda, the scale of negative logits. An entry's weight depends on the other labels
    of its image, so that duplicating a label changes the loss.
    Source: Wu et al. 2020, arXiv:2007.09654; mu is 0.3 and lambda 5 there for VOC.
    """
    logits, targets = _prepare(logits, targets)
    rarity = 1 / counts.positives.clamp(min=1)
    is_positive = targets >= 0.5 if known is None else (targets >= 0.5) & known
    # An image without labels has the maximum weight, alpha + 1, as in the limit of frequent labels.
    sampled = (is_positive * rarity).sum(dim=1, keepdim=True).clamp(min=1e-9)
    weights = alpha + torch.sigmoid(beta * (rarity / sampled - mu))
    # Half an image keeps the prior finite for a label that is always or never present.
    negatives = (counts.known - counts.positives).clamp(min=0.5)
    prior = torch.log(negatives / counts.positives.clamp(min=0.5))
    shifted = logits - prior * kappa / neg_scale
    positive, _ = _focal(shifted, gamma)
    _, negative = _focal(shifted * neg_scale, gamma)
    entries = targets * positive + (1 - targets) * negative / neg_scale
    return mean_of_known(weights * entries, known)


def two_way_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    t_pos: float = 4.0,
    t_neg: float = 1.0,
) -> Tensor:
    """Loss that ranks positives above negatives, within each label and within each image.

    logits, targets, known: as in binary_cross_entropy. t_pos, t_neg: temperatures, above 0. It is
    the mean over labels plus the mean over images, of those with a positive. Its log-sum-exp is
    over the batch, so that doubling a batch changes it. Its scores are not probabilities.
    Source: Kobayashi 2023, "Two-way Multi-Label Loss", CVPR.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _shares(targets, known)
    total = logits.new_zeros(())
    for dim in (0, 1):
        high_negatives = t_neg * _log_sum_exp(logits / t_neg, negative, dim)
        low_positives = t_pos * _log_sum_exp(-logits / t_pos, positive, dim)
        # Without a negative there is nothing to rank.
        counted = (positive >= 0.5).any(dim) & (negative > 0).any(dim)
        losses = torch.where(counted, F.softplus(high_negatives + low_positives), 0)
        total = total + losses.sum() / (positive >= 0.5).any(dim).sum().clamp(min=1)
    return total


def zlpr_loss(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """log(1 + sum of e^z over negatives) + log(1 + sum of e^-z over positives), z a logit.

    logits, targets, known: as in binary_cross_entropy. It is the mean over images with a known
    entry, not over entries, so that duplicating a label changes it. Its scores are not
    probabilities; their intended threshold is 0.5.
    Source: Su et al. 2022, arXiv:2208.02955.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _shares(targets, known)
    # softplus(log of a sum) = log(1 + the sum)
    losses = F.softplus(_log_sum_exp(logits, negative, 1)) + F.softplus(
        _log_sum_exp(-logits, positive, 1)
    )
    return mean_of_known(losses, None if known is None else known.any(dim=1))


def hill_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    lamb: float = 1.5,
    margin: float = 1.0,
    gamma: float = 2.0,
) -> Tensor:
    """Loss with a smaller gradient for negatives of high score, which may be missing labels.

    logits, targets, known: as in binary_cross_entropy. lamb: (lamb - p) p^2 is the loss of
    negatives, with its maximum at 2/3 lamb. margin: subtracted from the logits of positives.
    gamma: of their focal loss.
    Source: Zhang et al. 2021, arXiv:2112.07368.
    """
    logits, targets = _prepare(logits, targets)
    positive, _ = _focal(logits - margin, gamma)
    p = torch.sigmoid(logits)
    return mean_of_known(targets * positive + (1 - targets) * (lamb - p) * p**2, known)


def splc_loss(
    logits: Tensor,
    targets: Tensor,
    known: Tensor | None = None,
    *,
    is_correcting: bool,
    threshold: float = 0.6,
    margin: float = 1.0,
    gamma: float = 2.0,
) -> Tensor:
    """Self-paced loss correction: a negative with a high score is treated as a positive.

    logits, targets, known: as in binary_cross_entropy. is_correcting: false in the first epochs,
    when scores are not meaningful. threshold: score above which a negative is treated as a missing
    label; the loss is discontinuous there, so that half precision can change the side. margin,
    gamma: of positives, as in hill_loss.
    Source: Zhang et al. 2021, arXiv:2112.07368.
    """
    logits, targets = _prepare(logits, targets)
    if is_correcting:
        is_missing = (targets < 0.5) & (torch.sigmoid(logits.detach()) > threshold)
        targets = torch.where(is_missing, 1 - targets, targets)
    positive, _ = _focal(logits - margin, gamma)
    return mean_of_known(targets * positive + (1 - targets) * F.softplus(logits), known)


def smooth(targets: Tensor, share: float) -> Tensor:
    """Move targets in [0, 1] towards 0.5 by a fraction of the distance."""
    return targets.float() * (1 - share) + share / 2


def mean_of_known(entries: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean of the known entries; 0 if none is known."""
    if known is None:
        return entries.mean()
    return torch.where(known, entries, 0).sum() / known.sum().clamp(min=1)


def _prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to float32, or to float64 if the logits are."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)}, but targets {tuple(targets.shape)}; "
            "both must be (N, C)"
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, targets.to(logits.dtype)


def _log_loss(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return -log p and -log(1 - p), finite for any logit."""
    return F.softplus(-logits), F.softplus(logits)


def _focal(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return -(1 - p)^gamma log p and -p^gamma log(1 - p); powers by logs keep the gradients."""
    positive, negative = _log_loss(logits)
    return torch.exp(-gamma * negative) * positive, torch.exp(-gamma * positive) * negative


def _shares(targets: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weights of entries as positives and as negatives; both 0 if unknown."""
    if known is None:
        return targets, 1 - targets
    return targets * known, (1 - targets) * known


def _log_sum_exp(values: Tensor, shares: Tensor, dim: int) -> Tensor:
    """Return log(sum(shares * e^values)); the lowest finite number for an empty sum."""
    lowest = torch.finfo(values.dtype).min
    counts = shares > 0
    # Not -inf, for which the gradient of logsumexp is NaN where all are -inf.
    terms = torch.where(counts, values + torch.where(counts, shares, 1).log(), lowest)
    return torch.where(counts.any(dim), torch.logsumexp(terms, dim), lowest)


def create_criterion(config: Config, counts: LabelCounts, *, epoch: int) -> Criterion:
    """Build the loss that the config names for an epoch, counted from 0.

    counts: of the training split only, on the device of the logits. Raises click.UsageError for an
    unknown name.
    """
    loss = lookup(LOSSES, "loss", config.loss)(config, counts, epoch)
    if not config.label_smoothing:
        return loss
    return lambda logits, targets, known: loss(
        logits, smooth(targets, config.label_smoothing), known
    )


# Each creates a loss from the config, train's counts and the epoch.
LOSSES: dict[str, Callable[[Config, LabelCounts, int], Criterion]] = {
    "bce": lambda config, counts, epoch: binary_cross_entropy,
    "weighted_bce": lambda config, counts, epoch: partial(
        weighted_binary_cross_entropy, positive_weights=balance(counts, cap=config.weighted_bce_cap)
    ),
    "focal": lambda config, counts, epoch: partial(focal_loss, gamma=config.focal_gamma),
    "asl": lambda config, counts, epoch: partial(
        asymmetric_loss,
        gamma_neg=config.asl_gamma_neg,
        gamma_pos=config.asl_gamma_pos,
        clip=config.asl_clip,
    ),
    "class_balanced": lambda config, counts, epoch: partial(
        class_balanced_loss, weights=effective_weights(counts, beta=config.class_balanced_beta)
    ),
    "distribution_balanced": lambda config, counts, epoch: partial(
        distribution_balanced_loss,
        counts=counts,
        mu=config.distribution_balanced_mu,
        neg_scale=config.distribution_balanced_lambda,
    ),
    "two_way": lambda config, counts, epoch: partial(
        two_way_loss, t_pos=config.two_way_t_pos, t_neg=config.two_way_t_neg
    ),
    "zlpr": lambda config, counts, epoch: zlpr_loss,
    "hill": lambda config, counts, epoch: partial(hill_loss, lamb=config.hill_lambda),
    "splc": lambda config, counts, epoch: partial(
        splc_loss, is_correcting=epoch >= config.splc_from_epoch, threshold=config.splc_threshold
    ),
}
