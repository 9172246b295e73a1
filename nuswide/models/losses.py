"""Losses of a multi-label network.

Owns the functions (logits, targets, known) -> scalar, computed in float32 whatever comes in, and
their choice by the configuration. Knows nothing of models or of the training loop.

    criterion = create_criterion(config, counts, epoch=0)
    loss = criterion(logits, targets, known)

Targets are 0 or 1; what lies between, as mixup and label smoothing give it, is read as a share of
either. Where a loss is no mean over the entries, its docstring says so.
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
    """How many of train's images have a label, and in how many that is known; (C,) floats each."""

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
    """Binary cross-entropy whose positive terms are multiplied by a weight of their label.

    logits, targets, known: as in binary_cross_entropy. positive_weights: (C,), see balance.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _log_loss(logits)
    entries = targets * positive_weights * positive + (1 - targets) * negative
    return mean_of_known(entries, known)


def balance(counts: LabelCounts, *, cap: float) -> Tensor:
    """Negatives to a positive, by label, from 1/cap to cap; (C,)."""
    negatives = counts.known - counts.positives
    return (negatives / counts.positives.clamp(min=1)).clamp(1 / cap, cap)


def focal_loss(
    logits: Tensor, targets: Tensor, known: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Binary cross-entropy times (1 - p_t)^gamma, p_t the score of what is true; the mean.

    logits, targets, known: as in binary_cross_entropy. gamma: at least 0, where it is that.
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
    """Focal-style loss that discounts easy negatives; the mean over the known entries.

    logits, targets, known: as in binary_cross_entropy. clip: probability margin in [0, 1), by which
    the scores of negatives are lowered. Its scores are not calibrated.
    Source: Ridnik et al. 2021, arXiv:2009.14119; the authors' training script has gamma_pos 0.
    """
    logits, targets = _prepare(logits, targets)
    positive, _ = _focal(logits, gamma_pos)
    margin = torch.full_like(logits, math.log(clip) if clip else -math.inf)
    # log(1 - p + clip), at most 0; sigmoid's own rounding would make it -inf without a margin.
    log_miss = torch.logaddexp(F.logsigmoid(-logits), margin).clamp(max=0)
    # The floor keeps the slope of a power below 1 finite; with log_miss 0, its value is not seen.
    shifted = (torch.sigmoid(logits) - clip).clamp(min=1e-12)
    return mean_of_known(targets * positive - (1 - targets) * shifted**gamma_neg * log_miss, known)


def class_balanced_loss(
    logits: Tensor, targets: Tensor, known: Tensor | None = None, *, weights: Tensor
) -> Tensor:
    """Binary cross-entropy times a weight of the label; the mean over the known entries.

    logits, targets, known: as in binary_cross_entropy. weights: (C,), see effective_weights.
    Source: Cui et al. 2019, arXiv:1901.05555. It gives an image the weight of its one class; for
    images of many labels, a label's own entries get the label's weight here.
    """
    logits, targets = _prepare(logits, targets)
    entries = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return mean_of_known(entries * weights, known)


def effective_weights(counts: LabelCounts, *, beta: float = 0.999) -> Tensor:
    """(1 - beta) / (1 - beta^n) of each label's n positives, over their mean; (C,).

    beta: in [0, 1), 0 for equal weights. The paper tries 0.9, 0.99, 0.999 and 0.9999 (as cited from
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
    """Focal loss, rebalanced for labels that come together and tolerant of negatives; the mean.

    logits, targets, known: as in binary_cross_entropy. counts: of train. alpha, beta, mu: floor,
    slope and centre of the weights. kappa: share of a label's prior that is put on its logit.
    neg_scale: lambda, the sharpness of negatives. An entry's weight depends on the other labels of
    its image, so that labels that are there twice change the loss.
    Source: Wu et al. 2020, arXiv:2007.09654; mu is 0.3 and lambda 5 there for VOC.
    """
    logits, targets = _prepare(logits, targets)
    rarity = 1 / counts.positives.clamp(min=1)
    is_there = targets >= 0.5 if known is None else (targets >= 0.5) & known
    # An image without a label has the greatest weight, alpha + 1, as in the limit of frequent ones.
    sampled = (is_there * rarity).sum(dim=1, keepdim=True).clamp(min=1e-9)
    weights = alpha + torch.sigmoid(beta * (rarity / sampled - mu))
    # Half an image keeps the prior finite for a label that is always or never there.
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
    """Ranks positives above negatives, among a label's images and among an image's labels.

    logits, targets, known: as in binary_cross_entropy. t_pos, t_neg: temperatures, above 0. The
    mean over labels plus the mean over images, of those that have a positive. Its log-sum-exp runs
    over the batch, so that a doubled batch has another loss. Its scores are no probabilities.
    Source: Kobayashi 2023, "Two-way Multi-Label Loss", CVPR.
    """
    logits, targets = _prepare(logits, targets)
    positive, negative = _shares(targets, known)
    total = logits.new_zeros(())
    for dim in (0, 1):
        high_negatives = t_neg * _log_sum_exp(logits / t_neg, negative, dim)
        low_positives = t_pos * _log_sum_exp(-logits / t_pos, positive, dim)
        # What has no negative, too, has nothing to be ranked.
        counted = (positive >= 0.5).any(dim) & (negative > 0).any(dim)
        losses = torch.where(counted, F.softplus(high_negatives + low_positives), 0)
        total = total + losses.sum() / (positive >= 0.5).any(dim).sum().clamp(min=1)
    return total


def zlpr_loss(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """log(1 + sum of e^z over negatives) + log(1 + sum of e^-z over positives), z a logit.

    logits, targets, known: as in binary_cross_entropy. The mean over images with a known entry, not
    over entries, so that labels that are there twice change the loss. Its scores are no
    probabilities; 0.5 is the threshold that it aims at.
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
    """Loss that pulls less at negatives with a high score, which may be missing labels; the mean.

    logits, targets, known: as in binary_cross_entropy. lamb: where (lamb - p) p^2 of negatives
    turns, at 2/3 of it. margin: taken off the logits of positives. gamma: of their focal loss.
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
    """Self-paced loss correction: a negative whose score is high counts as a positive; the mean.

    logits, targets, known: as in binary_cross_entropy. is_correcting: false at first, while scores
    mean nothing. threshold: the score from which on a negative is taken for a missing label. It
    jumps there, so that logits in half precision can fall on its other side. margin, gamma: of
    positives, as in hill_loss.
    Source: Zhang et al. 2021, arXiv:2112.07368.
    """
    logits, targets = _prepare(logits, targets)
    if is_correcting:
        is_missing = (targets < 0.5) & (torch.sigmoid(logits.detach()) > threshold)
        targets = torch.where(is_missing, 1 - targets, targets)
    positive, _ = _focal(logits - margin, gamma)
    return mean_of_known(targets * positive + (1 - targets) * F.softplus(logits), known)


def smooth(targets: Tensor, share: float) -> Tensor:
    """Move targets in [0, 1] towards 0.5 by a share of the way."""
    return targets.float() * (1 - share) + share / 2


def mean_of_known(entries: Tensor, known: Tensor | None) -> Tensor:
    """The mean of the entries that are known; 0 if none is."""
    if known is None:
        return entries.mean()
    return torch.where(known, entries, 0).sum() / known.sum().clamp(min=1)


def _prepare(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where the logits are."""
    if logits.shape != targets.shape:
        raise ValueError(
            f"logits are {tuple(logits.shape)}, but targets {tuple(targets.shape)}; "
            "both must be (N, C)"
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits, targets.to(logits.dtype)


def _log_loss(logits: Tensor) -> tuple[Tensor, Tensor]:
    """-log p and -log(1 - p), finite for any logit."""
    return F.softplus(-logits), F.softplus(logits)


def _focal(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """-(1 - p)^gamma log p and -p^gamma log(1 - p); powers by logarithms, so that slopes stay."""
    positive, negative = _log_loss(logits)
    return torch.exp(-gamma * negative) * positive, torch.exp(-gamma * positive) * negative


def _shares(targets: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor]:
    """How much of a positive and of a negative an entry is; nothing of either if it is unknown."""
    if known is None:
        return targets, 1 - targets
    return targets * known, (1 - targets) * known


def _log_sum_exp(values: Tensor, shares: Tensor, dim: int) -> Tensor:
    """The log of the sum of shares * e^values; the least number of its type for an empty sum."""
    lowest = torch.finfo(values.dtype).min
    counts = shares > 0
    # Not -inf, for which the slope of logsumexp is not a number where all are that.
    terms = torch.where(counts, values + torch.where(counts, shares, 1).log(), lowest)
    return torch.where(counts.any(dim), torch.logsumexp(terms, dim), lowest)


def create_criterion(config: Config, counts: LabelCounts, *, epoch: int) -> Criterion:
    """Build the loss that the config names for an epoch, counted from 0.

    counts: of the train split alone, on the device of the logits. Raises click.UsageError for an
    unknown name.
    """
    loss = lookup(LOSSES, "loss", config.loss)(config, counts, epoch)
    if not config.label_smoothing:
        return loss
    return lambda logits, targets, known: loss(
        logits, smooth(targets, config.label_smoothing), known
    )


# Each makes a loss from the configuration, train's counts and the epoch.
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
