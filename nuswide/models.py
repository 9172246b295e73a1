"""Networks: a torchvision backbone and a head of ours.

Owns BACKBONES, HEADS and the reading of weight files. Never trains, nor moves a model to a device.

    model = create_model(config, n_labels=27)
    logits = model(normalize(images))  # (N, 27)
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.config import Config, pick
from nuswide.transforms import normalize

StateDict = dict[str, Tensor]


class LinearHead(nn.Sequential):
    """Average pool, dropout, linear: feature map (N, F, h, w) to logits (N, C)."""

    def __init__(self, n_features: int, n_labels: int, dropout: float) -> None:
        super().__init__(
            OrderedDict(
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                linear=nn.Linear(n_features, n_labels),
            )
        )


class TaggerNet(nn.Module):
    """Normalised images (N, 3, H, W) to logits (N, C)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (N, C) of normalised images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class Scorer(nn.Module):
    """The network as it is served: uint8 images (N, 3, S, S) to scores (N, C) in [0, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Give the scores (N, C) of uint8 images."""
        return torch.sigmoid(self.model(normalize(images)).float())


def create_model(config: Config, *, n_labels: int) -> TaggerNet:
    """Build the network that the config names, from its seed, and load its starting weights.

    Raises click.UsageError for an unknown name, click.ClickException for weights that can't be had.
    """
    torch.manual_seed(config.seed)
    create_backbone = pick(BACKBONES, "backbone", config.backbone)
    create_head = pick(HEADS, "head", config.head)
    network = create_backbone()
    # A ResNet's children end in avgpool and fc; what is before them keeps torchvision's names.
    backbone = nn.Sequential(OrderedDict(list(network.named_children())[:-2]))
    head = create_head(network.fc.in_features, n_labels, config.dropout)
    model = TaggerNet(backbone, head)
    if config.weights == "imagenet":
        _load_into(model, _download_imagenet(config.backbone), config.weights)
    elif config.weights != "none":
        _load_into(model, _read_weights(Path(config.weights)), config.weights)
    return model


def _download_imagenet(backbone: str) -> StateDict:
    weights = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
    try:
        state: StateDict = weights.get_state_dict(check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise click.ClickException(
            f"cannot download the ImageNet weights ({error}); connect to the network, or fetch "
            f"{weights.url} elsewhere and give weights=FILE"
        ) from error
    return state


def _read_weights(path: Path) -> StateDict:
    """Read a .safetensors or torch file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds for a file of another kind
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.ClickException(
            f"cannot read weights={path} ({reason}); give none, imagenet, or a .safetensors or "
            ".pth file of tensors"
        ) from error
    if isinstance(state, dict) and "progress" in state:  # a checkpoint: its best, or else its last
        state = state["best"]["weights"] if state["best"] else state["ema"] or state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise click.ClickException(f"weights={path} holds no state dict of tensors")
    return state


def _load_into(model: TaggerNet, state: StateDict, name: str) -> None:
    """Load our own or torchvision's weights; a head for another number of labels starts afresh."""
    if not any(key.startswith("backbone.") for key in state):
        state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    missing = [k for k in own if k.startswith("backbone.") and k not in fitting]
    if missing:
        raise click.ClickException(
            f"weights={name} do not fit the backbone: {len(missing)} of its tensors are missing or "
            f"of another shape, {missing[0]} first; give the backbone they were trained with"
        )
    model.load_state_dict(fitting, strict=False)


BACKBONES: dict[str, Callable[[], Any]] = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "resnext50_32x4d": torchvision.models.resnext50_32x4d,
}
HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {"linear": LinearHead}
