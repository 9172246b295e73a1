"""Gradient checkpointing of a backbone: activations are computed again instead of kept.

Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
"""

from collections import OrderedDict
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nuswide.config import Config
from nuswide.models.timm_backbone import TimmBackbone


def with_checkpointing(backbone: nn.Module, config: Config) -> nn.Module:
    """Return a backbone that computes the activations of its blocks again in the backward pass.

    Raises click.UsageError for one of timm's that cannot, or for options that exclude it.
    """
    excluded = {
        "compile=on": config.compile == "on", "cuda_graph=true": config.cuda_graph,
        "sync_batchnorm=true": config.sync_batchnorm,
    }  # fmt: skip
    if any(excluded.values()):
        others = " and ".join(option for option, is_given in excluded.items() if is_given)
        raise click.UsageError(f"grad_checkpointing=true excludes {others}; leave out either")
    if isinstance(backbone, TimmBackbone):
        try:
            backbone.enable_checkpointing()
        except (AssertionError, AttributeError) as error:  # as timm's networks refuse it
            raise click.UsageError(
                f"backbone={config.backbone} has no gradient checkpointing; give "
                "grad_checkpointing=false"
            ) from error
    else:
        assert isinstance(backbone, nn.Sequential)
        backbone = _checkpoint_blocks(backbone)
    _count_batches_once(backbone)
    return backbone


class _Checkpointed(nn.Sequential):
    """A sequence of which each block keeps its input alone in training."""

    def forward(self, input: Tensor) -> Tensor:
        for part in self:
            is_block = not isinstance(part, _Checkpointed) and any(True for _ in part.children())
            if is_block and self.training and torch.is_grad_enabled():
                input = checkpoint(part, input, use_reentrant=False)
            else:
                input = part(input)
        return input


def _checkpoint_blocks(network: nn.Sequential) -> nn.Sequential:
    """Return one of torchvision's networks with each of its blocks checkpointed, such as layer1.0.

    The names of parameters and buffers stay.
    """
    parts = {
        name: _checkpoint_blocks(part) if type(part) is nn.Sequential else part
        for name, part in network.named_children()
    }
    return _Checkpointed(OrderedDict(parts))


def _count_batches_once(network: nn.Module) -> None:
    """Let batch norms update their running statistics in the first computation alone."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(_update_copies)
            # Computing again ends by an exception where all that is needed is there.
            module.register_forward_hook(_restore, always_call=True)


_statistics: dict[nn.Module, dict[str, Tensor | None]] = {}  # of the layers computed just now


def _update_copies(module: nn.Module, inputs: Any) -> None:
    if torch._C._current_graph_task_id() >= 0:  # during the backward pass
        _statistics[module] = dict(module._buffers)
        module._buffers = {n: b if b is None else b.clone() for n, b in module._buffers.items()}


def _restore(module: nn.Module, inputs: Any, output: Any) -> None:
    module._buffers.update(_statistics.pop(module, {}))
