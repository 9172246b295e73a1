"""Losses of a multi-label network.

Owns the functions (logits, targets, known) -> scalar, computed in float32 whatever comes in. Knows
nothing of models or of the training loop.

    loss = pick(LOSSES, "loss", config.loss)(logits, targets, known)
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def binary_cross_entropy(logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
    """Binary cross-entropy from logits; the mean over the known entries.

    logits: (N, C), any real. targets: (N, C), 0 or 1. known: (N, C) bool, None if all are.
    """
    entries = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return mean_of_known(entries, known)


def mean_of_known(entries: Tensor, known: Tensor | None) -> Tensor:
    """The mean of the entries (N, C) that are known; 0 if none is."""
    if known is None:
        return entries.mean()
    return (entries * known).sum() / known.sum().clamp(min=1)


LOSSES: dict[str, Criterion] = {"bce": binary_cross_entropy}
