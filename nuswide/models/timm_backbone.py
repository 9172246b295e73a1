"""Networks of timm as backbones, which lose nothing but their pooling and classifier.

>>> backbone = create_timm(Config(backbone="timm/test_vit", image_size_px=64))
>>> backbone(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 64, 4, 4])
"""

import math
import sys
from collections.abc import Callable
from typing import Any, Self

import click
import torch
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.models.timm_networks import (
    IMAGENET,
    IMAGENET_V2,
    TIMM,
    build_timm,
    first_line,
    native_size_px,
    remove_classifier,
    timm_settings,
)


class TimmBackbone(nn.Module):
    """A timm network without pooling and classifier: images (N, 3, H, W) to a map (N, F, h, w).

    way: of _WAYS, in which the network yields its map. unused: the names of its parameters that the
    map does not depend on, such as those of a pooling by attention; they are never trained.
    """

    def __init__(self, network: nn.Module, way: str, unused: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.network = network
        self.way = way
        self.unused = unused
        self.is_checkpointed = False
        self.requires_grad_()
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *_: self._rename_earlier(state, f"{prefix}network.")
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        if self.is_checkpointed:  # in evaluation and export there is nothing to compute again
            network: Any = self.network
            network.set_grad_checkpointing(self.training)
        return _WAYS[self.way](self.network, images)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters that the map depends on, or none."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(requires_grad and name not in self.unused)
        return self

    def enable_checkpointing(self) -> None:
        """Compute activations again in the backward pass of training, by timm's own blocks.

        Raises AssertionError or AttributeError if the network cannot.
        """
        network: Any = self.network
        network.set_grad_checkpointing(self.training)
        self.is_checkpointed = True

    def layer_indices(self) -> dict[str, int]:
        """Return the layer of each parameter by timm's own grouping, counted from the images."""
        from timm.models import group_parameters

        network: Any = self.network
        groups = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
        return {f"network.{name}": int(layer) for name, layer in groups.items()}

    def fit(self, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return a state dict with this version's names and embeddings of this network's size.

        prefix: begins the names of the network's tensors. Position embeddings are interpolated.
        """
        state = dict(state)
        self._rename_earlier(state, prefix)
        own = self.network.state_dict()
        others = [n for n, v in own.items() if state.get(prefix + n, v).shape != v.shape]
        adapt = getattr(sys.modules[type(self.network).__module__], "checkpoint_filter_fn", None)
        if not adapt or not others or not all("pos" in name for name in others):
            return state
        theirs = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            adapted = adapt(theirs, self.network)
        except Exception:  # many types, for the file of another network, which is refused later
            return state
        return state | {prefix + name: adapted[name] for name in others if name in adapted}

    def _rename_earlier(self, state: dict[str, Tensor], prefix: str) -> None:
        """Rename the norm of networks saved when it stood before the pooling, not after it."""
        own = self.network.state_dict()
        for part in ("weight", "bias"):
            old, new = f"norm.{part}", f"fc_norm.{part}"
            if new in own and old not in own and prefix + old in state:
                state[prefix + new] = state.pop(prefix + old)


# By name and image size: the way to the map, and the parameters on which it does not depend.
_INSPECTED: dict[tuple[str, int], tuple[str, frozenset[str]]] = {}


def create_timm(config: Config) -> TimmBackbone:
    """Build timm/NAME, with timm's own weights for weights=imagenet.

    Raises click.UsageError for an unknown name, click.ClickException if timm is not installed, or
    the network cannot be built, does not take the size, or has no feature map.
    """
    name, _ = timm_settings(config.backbone)
    if config.weights == IMAGENET_V2:
        raise click.UsageError(
            f"weights={IMAGENET_V2} is torchvision's; for backbone={config.backbone} give "
            f"weights={IMAGENET}, and choose among timm's weights by a tag: {TIMM}NAME.TAG"
        )
    network = remove_classifier(build_timm(name, config)).eval()
    key = (name, config.image_size_px)
    if key not in _INSPECTED:  # which takes longer than building
        way = _find_way(network, config)
        _INSPECTED[key] = way, _unused(network, way, config.image_size_px)
    return TimmBackbone(network.train(), *_INSPECTED[key])


@torch.no_grad()
def _find_way(network: nn.Module, config: Config) -> str:
    """Return the first way in which the network yields a feature map."""
    images = torch.zeros(1, 3, config.image_size_px, config.image_size_px)
    for way, take in _WAYS.items():
        try:
            take(network, images)
        except _NoMapError as error:
            reason = f"has no feature map ({error}); choose another"
        except Exception as error:  # networks raise many types for an unsupported size
            size = native_size_px(config.backbone.removeprefix(TIMM))
            reason = (
                f"does not take image_size_px={config.image_size_px} ({first_line(error)}); "
                f"give another of either (it was made for {size})"
            )
        else:
            return way
    raise click.ClickException(f"backbone={config.backbone} {reason}")


@torch.enable_grad()
def _unused(network: nn.Module, way: str, size_px: int) -> frozenset[str]:
    """Return the names of the parameters that the feature map does not depend on."""
    _WAYS[way](network, torch.zeros(1, 3, size_px, size_px)).sum().backward()
    unused = [name for name, value in network.named_parameters() if value.grad is None]
    network.zero_grad()
    return frozenset(unused)


class _NoMapError(Exception):
    """A network returned something else than a map."""


def _through_head(network: Any, images: Tensor) -> Tensor:
    """Return the map with what the head does before and after pooling, such as a norm."""
    return _as_map(network, network(images))


def _before_head(network: Any, images: Tensor) -> Tensor:
    features = _as_map(network, network.forward_features(images))
    before_pooling = getattr(getattr(network, "head", None), "in_conv", None)  # of EfficientViT
    return before_pooling(features) if before_pooling else features


def _last_stage(network: Any, images: Tensor) -> Tensor:
    """Return the map of the last stage, normalized if the network can."""
    if not hasattr(network, "forward_intermediates"):
        raise _NoMapError("only a later timm returns the map of its last stage")
    options = {"indices": 1, "intermediates_only": True, "output_fmt": "NCHW"}
    try:
        maps = network.forward_intermediates(images, norm=True, **options)
    except AssertionError:
        maps = network.forward_intermediates(images, **options)
    return _as_map(network, maps[-1], is_channels_last=False)


# In the order of how much of the trained network they keep.
_WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "forward": _through_head,
    "forward_features": _before_head,
    "forward_intermediates": _last_stage,
}


def _as_map(network: Any, features: Any, *, is_channels_last: bool | None = None) -> Tensor:
    """Return a map (N, F, h, w) from each of timm's layouts."""
    if not isinstance(features, Tensor):
        raise _NoMapError(f"it returns {type(features).__name__} of {len(features)}")
    if features.ndim == 3:  # tokens, row by row, after prefix tokens such as the class token
        tokens = features[:, getattr(network, "num_prefix_tokens", 0) :]
        side = math.isqrt(tokens.shape[1])
        if side * side == tokens.shape[1] > 1:  # a single one is a class token, as in PiT
            return tokens.transpose(1, 2).unflatten(2, (side, side))
    if features.ndim != 4:
        raise _NoMapError(f"it returns {tuple(features.shape)}")
    if is_channels_last is None:
        is_channels_last = str(getattr(network, "output_fmt", "")) == "NHWC"
    return features.permute(0, 3, 1, 2) if is_channels_last else features
