"""Optimizers, learning rate schedules, and the moving average of the weights.

Owns OPTIMIZERS, SCHEDULES and Ema. Depends on neither the data nor the training loop.

    >>> config = Config(lr=1e-3, schedule="cosine", epochs=10)
    >>> round(learning_rate(config, step=500, steps_per_epoch=100), 6)
    0.0005
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nuswide.config import Config, lookup
from nuswide.models.backbones import layer_indices
from nuswide.models.networks import TaggerNet


def create_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that the config names; biases and norms have no weight decay.

    Each group of parameters has `lr_scale`, its learning rate as a fraction of the schedule's.
    """
    scales = _lr_scales(config, model)
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        key = -scales.get(name, 1.0), parameter.ndim <= 1
        members.setdefault(key, []).append(parameter)
    groups = [
        {
            "params": members[scale, is_vector], "lr_scale": -scale,
            "weight_decay": 0.0 if is_vector else config.weight_decay,
        }
        for scale, is_vector in sorted(members)
    ]  # fmt: skip
    return lookup(OPTIMIZERS, "optimizer", config.optimizer)(groups, config)


def _lr_scales(config: Config, model: nn.Module) -> dict[str, float]:
    """Return the learning rates of the backbone's parameters as fractions of the schedule's.

    Layer-wise decay as in Clark et al., ELECTRA, arXiv:2003.10555: the head has the full rate.
    """
    if config.backbone_lr_scale == config.layer_decay == 1:
        return {}
    layers = layer_indices(model.get_submodule("backbone"))
    n_layers = max(layers.values()) + 1
    return {
        f"backbone.{name}": config.backbone_lr_scale * config.layer_decay ** (n_layers - layer)
        for name, layer in layers.items()
    }


def _sgd(groups: list[dict[str, Any]], config: Config) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Config], torch.optim.Optimizer]] = {
    "adam": lambda groups, config: torch.optim.Adam(groups, lr=config.lr, fused=True),
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr, fused=True),
    "sgd": _sgd,
}


def learning_rate(config: Config, *, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then the schedule."""
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / math.ceil(warmup)
    total = config.epochs * steps_per_epoch
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * lookup(SCHEDULES, "schedule", config.schedule)(done)


def _one_cycle(done: float) -> float:
    """Rise from 1/25 over 30 % of the steps, then fall to 0, both along a cosine.

    Source: Smith and Topin, arXiv:1708.07120; the shape is that of torch's OneCycleLR.
    """
    if done < 0.3:
        return 1 / 25 + (1 - 1 / 25) * (1 - _cosine(done / 0.3))
    return _cosine((done - 0.3) / 0.7)


def _cosine(done: float) -> float:
    """Fall from 1 to 0 along half a cosine (Loshchilov and Hutter, arXiv:1608.03983)."""
    return (1 + math.cos(math.pi * done)) / 2


# Each maps the fraction of steps done, in [0, 1), to a factor of lr.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}


class Ema:
    """A moving average of a network's weights and running statistics.

    It spans `epochs` epochs, and fewer at first, so that the initial weights are soon forgotten:
    after t steps the decay is at most (1 + t) / (10 + t).
    """

    def __init__(self, model: TaggerNet, *, epochs: float, steps_per_epoch: int) -> None:
        self.model = copy.deepcopy(model)
        self.model.requires_grad_(False)
        self.decay = max(0.0, 1 - 1 / (epochs * steps_per_epoch))

    @torch.no_grad()
    def update(self, model: nn.Module, *, step: int) -> None:
        """Update the average with the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, new = _floats(self.model), _floats(model)
        torch._foreach_lerp_(own, new, 1 - decay)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t for t in model.state_dict().values() if t.is_floating_point()]
