"""Losses of a multi-label network.

Owns the functions (logits, targets) -> scalar, computed in float32 whatever comes in. Knows nothing
of models or of the training loop.

    loss = pick(LOSSES, "loss", config.loss)(logits, targets)
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

Criterion = Callable[[Tensor, Tensor], Tensor]


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy from logits; the mean over N*C.

    logits: (N, C), any real. targets: (N, C), 0 or 1.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())


LOSSES: dict[str, Criterion] = {"bce": binary_cross_entropy}
