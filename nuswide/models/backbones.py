"""Backbones: images (N, 3, H, W) in, feature map (N, F, h, w) out.

Owns BACKBONES, of torchvision; timm's networks are in timm_backbone.py.

    >>> config = Config(backbone="resnet18", image_size_px=32)
    >>> count_features(create_backbone(config), config)
    512
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import click
import torch
import torchvision
from torch import nn

from nuswide.config import Config, lookup
from nuswide.models.checkpointing import with_checkpointing
from nuswide.models.drop_path import set_drop_path
from nuswide.models.timm_backbone import TimmBackbone, create_timm
from nuswide.models.timm_networks import IMAGENET_V2, TIMM, first_line, timm_names


def create_backbone(config: Config) -> nn.Module:
    """Build the backbone that the config names; one of timm's has its ImageNet weights if asked.

    Raises click.UsageError for an unknown name or an option that it does not have,
    click.ClickException if timm cannot build it.
    """
    if config.backbone.startswith(TIMM):
        backbone: nn.Module = create_timm(config)
    else:
        check_name(config.backbone)
        backbone = BACKBONES[config.backbone]()
    set_drop_path(backbone, config)
    return with_checkpointing(backbone, config) if config.grad_checkpointing else backbone


def imagenet_weights(backbone: str, weights: str) -> Any:
    """Return torchvision's entry for weights=imagenet or imagenet_v2: its file and preprocessing.

    For other weights it is that of `imagenet`. Raises click.UsageError where there is none.
    """
    check_name(backbone)
    name = "IMAGENET1K_V2" if weights == IMAGENET_V2 else "IMAGENET1K_V1"
    known = {b: torchvision.models.get_model_weights(b).__members__ for b in BACKBONES}
    if name not in known[backbone]:
        there = [b for b in BACKBONES if name in known[b]]
        raise click.UsageError(
            f"torchvision has no weights={weights} for backbone={backbone}, but imagenet; "
            f"{weights} is for {', '.join(there)}"
        )
    return known[backbone][name]


def check_name(backbone: str) -> None:
    """Raise click.UsageError if this is none of BACKBONES."""
    if backbone not in BACKBONES and backbone.partition(".")[0] in timm_names():
        raise click.UsageError(f"unknown backbone {backbone!r}; did you mean {TIMM}{backbone}?")
    lookup(BACKBONES, "backbone", backbone)


@torch.no_grad()
def count_features(backbone: nn.Module, config: Config) -> int:
    """Run a backbone on images of each configured size; return F of its map (N, F, h, w)."""
    backbone.eval()
    for name in ("start_size_px", "image_size_px"):
        if not (size := getattr(config, name)):
            continue
        try:
            features = backbone(torch.zeros(1, 3, size, size))
        except Exception as error:  # timm's networks raise many types for an unsupported size
            raise click.ClickException(
                f"backbone={config.backbone} does not take {name}={size} "
                f"({first_line(error)}); give another of either"
            ) from error
    backbone.train()
    if features.ndim != 4:
        raise click.ClickException(
            f"backbone={config.backbone} returns no feature map, but {tuple(features.shape)}; "
            "choose another"
        )
    return int(features.shape[1])


def layer_indices(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, counted from the images: 0, 1 and so on.

    timm groups its own networks; of torchvision's a layer is a block of a ResNet, or else a stage.
    """
    if isinstance(backbone, TimmBackbone):
        return backbone.layer_indices()
    blocks = [".".join(name.split(".")[:-1][:2]) for name, _ in backbone.named_parameters()]
    order = {block: i for i, block in enumerate(dict.fromkeys(blocks))}
    names = (name for name, _ in backbone.named_parameters())
    return {name: order[block] for name, block in zip(names, blocks, strict=True)}


def norm_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the normalization layers of a backbone."""
    return [module for module in backbone.modules() if isinstance(module, _NORMS)]


def _before(create: Callable[[], nn.Module], last: str) -> nn.Sequential:
    """Return the layers before one of a torchvision network, under torchvision's names."""
    parts = list(create().named_children())
    return nn.Sequential(OrderedDict(parts[: [name for name, _ in parts].index(last)]))


def _convnext(create: Callable[[], Any]) -> nn.Sequential:
    """Return a ConvNeXt whose map is normalized per location, as torchvision does after pooling."""
    network = create()
    classifier = nn.Sequential(network.classifier[0])
    return nn.Sequential(OrderedDict(features=network.features, classifier=classifier))


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

# Each creates a network from images (N, 3, H, W) to a feature map (N, F, h, w).
BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: _before(torchvision.models.resnet18, "avgpool"),
    "resnet50": lambda: _before(torchvision.models.resnet50, "avgpool"),
    "resnet101": lambda: _before(torchvision.models.resnet101, "avgpool"),
    "resnext50_32x4d": lambda: _before(torchvision.models.resnext50_32x4d, "avgpool"),
    "resnext101_32x8d": lambda: _before(torchvision.models.resnext101_32x8d, "avgpool"),
    "convnext_tiny": lambda: _convnext(torchvision.models.convnext_tiny),
    "efficientnet_v2_s": lambda: _before(torchvision.models.efficientnet_v2_s, "avgpool"),
    "mobilenet_v3_large": lambda: _before(torchvision.models.mobilenet_v3_large, "avgpool"),
    "mobilenet_v3_small": lambda: _before(torchvision.models.mobilenet_v3_small, "avgpool"),
    "swin_t": lambda: _before(torchvision.models.swin_t, "avgpool"),
}
