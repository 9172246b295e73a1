"""Backbones: images (N, 3, H, W) in, feature map (N, F, h, w) out.

Owns BACKBONES, of torchvision, and the way to timm's networks.

    >>> config = Config(backbone="resnet18", image_size_px=32)
    >>> count_features(create_backbone(config), config)
    512
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import click
import torch
import torchvision
from torch import Tensor, nn

from nuswide.config import Config, lookup, unknown_name

TIMM = "timm/"
_PATIENCE_S = 10.0  # for the first answer of the hub that timm loads weights from


class TimmBackbone(nn.Module):
    """A timm network without pooling and classifier: images (N, 3, H, W) to a map (N, F, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_channels_last = str(getattr(network, "output_fmt", "")) == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map, for each of timm's layouts."""
        features: Tensor = self.network(images)
        if features.ndim == 3:  # tokens, row by row, after prefix tokens such as the class token
            tokens = features[:, self.network.num_prefix_tokens :]
            side = math.isqrt(tokens.shape[1])
            return tokens.transpose(1, 2).unflatten(2, (side, side))
        return features.permute(0, 3, 1, 2) if self.is_channels_last else features


def create_backbone(config: Config) -> nn.Module:
    """Build the backbone that the config names; one of timm's has its ImageNet weights if asked.

    Raises click.UsageError for an unknown name, click.ClickException if timm cannot build it.
    """
    if config.backbone.startswith(TIMM):
        return _create_timm(config)
    check_name(config.backbone)
    return BACKBONES[config.backbone]()


def check_name(backbone: str) -> None:
    """Raise click.UsageError if this is none of BACKBONES."""
    if backbone not in BACKBONES and _is_timms(backbone):
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


def _is_timms(name: str) -> bool:
    """Whether timm is installed and has a network of this name."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def timm_settings(backbone: str) -> tuple[str, Any]:
    """Return the name of timm/NAME, and timm's PretrainedCfg or None.

    Raises click.UsageError for an unknown name, click.ClickException if timm is not installed.
    """
    name = backbone.removeprefix(TIMM)
    try:
        import timm
    except ImportError as error:
        raise click.ClickException(
            f"backbone={backbone} needs timm; install it with pip install 'nuswide[timm]'"
        ) from error
    if not timm.is_model(name):
        known = {known: None for known in timm.list_models()}
        raise click.UsageError(unknown_name("timm backbone", name, known))
    return name, timm.get_pretrained_cfg(name)


def _create_timm(config: Config) -> TimmBackbone:
    """Build timm/NAME, with timm's own weights for weights=imagenet."""
    name, settings = timm_settings(config.backbone)
    import timm

    options: dict[str, Any] = {}
    if settings and settings.fixed_input_size:
        options["img_size"] = config.image_size_px
    is_pretrained = config.weights == "imagenet"
    try:
        with _without_retries() if is_pretrained else nullcontext():
            network = timm.create_model(
                name, pretrained=is_pretrained, num_classes=0, global_pool="", **options
            )
    except Exception as error:  # many types, of the hub and of each network
        way_out = "; fetch the weights elsewhere and use weights=FILE" if is_pretrained else ""
        raise click.ClickException(
            f"cannot build backbone={config.backbone} with weights={config.weights} at "
            f"image_size_px={config.image_size_px} ({first_line(error)}){way_out}"
        ) from error
    return TimmBackbone(network)


@contextmanager
def _without_retries() -> Iterator[None]:
    """Take weights from the hub's local cache alone while the hub cannot be reached.

    timm's client would try again for a minute, with a line for each time.
    """
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=_PATIENCE_S).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _before(create: Callable[[], nn.Module], last: str) -> nn.Sequential:
    """Return the layers before one of a torchvision network, under torchvision's names."""
    parts = list(create().named_children())
    return nn.Sequential(OrderedDict(parts[: [name for name, _ in parts].index(last)]))


def _convnext(create: Callable[[], Any]) -> nn.Sequential:
    """Return a ConvNeXt whose map is normalized per location, as torchvision does after pooling."""
    network = create()
    classifier = nn.Sequential(network.classifier[0])
    return nn.Sequential(OrderedDict(features=network.features, classifier=classifier))


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
