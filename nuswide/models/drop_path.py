"""Stochastic depth: in training, blocks of the backbone are skipped at random, per image.

Source: Huang et al., Deep Networks with Stochastic Depth, arXiv:1603.09382.
"""

import click
from torch import nn

from nuswide.config import Config

_RATES = {"StochasticDepth": "p", "DropPath": "drop_prob"}  # of torchvision's and timm's layers


def set_drop_path(backbone: nn.Module, config: Config) -> None:
    """Set the rates of a network's layers of stochastic depth by drop_path; -1 leaves them.

    In torchvision's networks they rise linearly, from 0 in the first block. timm's have been built
    with them, but for 0. Raises click.UsageError if the network has no such layers.
    """
    layers = [m for m in backbone.modules() if type(m).__name__ in _RATES]
    if config.drop_path > 0 and not layers:
        raise click.UsageError(no_drop_path(config))
    for number, layer in enumerate(layers):
        name = _RATES[type(layer).__name__]
        if name == "p" and config.drop_path >= 0:
            setattr(layer, name, config.drop_path * number / (len(layers) - 1))
        elif config.drop_path == 0:
            setattr(layer, name, 0.0)


def no_drop_path(config: Config) -> str:
    """Return the message about a network without stochastic depth."""
    return (
        f"drop_path={config.drop_path} is for networks with stochastic depth, which backbone="
        f"{config.backbone} lacks; give drop_path=-1, or another one, such as convnext_tiny"
    )
