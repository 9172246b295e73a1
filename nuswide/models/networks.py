"""Networks: a backbone of torchvision or timm, and a head of ours.

Owns BACKBONES and the reading of weight files. Never trains, nor moves a model to a device.

    model = create_model(config, n_labels=27, train=TrainLabels.of(manifest))
    logits = model(normalize(images))  # (N, 27)
"""

import json
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.config import Config, lookup, unknown_name
from nuswide.data.label_stats import TrainLabels
from nuswide.data.transforms import normalize
from nuswide.models.heads import HEADS

StateDict = dict[str, Tensor]


class TaggerNet(nn.Module):
    """Normalised images (N, 3, H, W) to logits (N, C).

    test_flips: whether Scorer asks it about the mirror images, too.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, *, test_flips: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.test_flips = test_flips

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits (N, C) of normalised images."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


class Scorer(nn.Module):
    """The network as it scores, in evaluations and where it is served.

    Takes uint8 images (N, 3, S, S) to scores (N, C) in [0, 1].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.test_flips = getattr(model, "test_flips", False)

    def forward(self, images: Tensor) -> Tensor:
        """Give the scores (N, C) of uint8 images, means over both ways round with test_flips."""
        if self.test_flips:
            images = torch.cat([images, images.flip(-1)])
        scores = torch.sigmoid(self.model(normalize(images)).float())
        return scores.unflatten(0, (2, -1)).mean(0) if self.test_flips else scores


class TimmBackbone(nn.Module):
    """A timm network without pooling and classifier: images (N, 3, H, W) to a map (N, F, h, w)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.is_channels_last = str(getattr(network, "output_fmt", "")) == "NHWC"

    def forward(self, images: Tensor) -> Tensor:
        """Give the feature map, whichever form timm has it in."""
        features: Tensor = self.network(images)
        if features.ndim == 3:  # a token a place, row by row, behind those that stand for no place
            tokens = features[:, self.network.num_prefix_tokens :]
            side = math.isqrt(tokens.shape[1])
            return tokens.transpose(1, 2).unflatten(2, (side, side))
        return features.permute(0, 3, 1, 2) if self.is_channels_last else features


def create_model(config: Config, *, n_labels: int, train: TrainLabels | None = None) -> TaggerNet:
    """Build the network that the config names, from its seed, and load its starting weights.

    train: what heads that learn from the labels themselves, such as gcn, need. Raises
    click.UsageError for an unknown name, click.ClickException for weights that can't be had.
    """
    torch.manual_seed(config.seed)
    create_head = lookup(HEADS, "head", config.head)
    if config.backbone.startswith(_TIMM):
        backbone: nn.Module = _create_timm(config)
    else:
        backbone = lookup(BACKBONES, "backbone", config.backbone)()
    head = create_head(_count_features(backbone, config), n_labels, config, train)
    model = TaggerNet(backbone, head, test_flips=config.test_flips)
    if config.weights == "imagenet":
        if not config.backbone.startswith(_TIMM):  # which has them already
            _load_into(model, _download_imagenet(config.backbone), config.weights)
    elif config.weights != "none":
        names = train.names if train else None
        _load_into(model, _read_weights(Path(config.weights), names), config.weights)
    return model


@torch.no_grad()
def _count_features(backbone: nn.Module, config: Config) -> int:
    """Try a backbone on images of the sizes at hand; gives F of its map (N, F, h, w)."""
    backbone.eval()
    for name in ("start_size_px", "image_size_px"):
        if not (size := getattr(config, name)):
            continue
        try:
            features = backbone(torch.zeros(1, 3, size, size))
        except Exception as error:  # timm's networks raise many kinds for a size they don't take
            raise click.ClickException(
                f"backbone={config.backbone} does not take {name}={size} "
                f"({_first_line(error)}); give another of either"
            ) from error
    backbone.train()
    if features.ndim != 4:
        raise click.ClickException(
            f"backbone={config.backbone} gives no feature map, but {tuple(features.shape)}; "
            "give another"
        )
    return int(features.shape[1])


def _create_timm(config: Config) -> TimmBackbone:
    """Build timm/NAME, with timm's own weights for weights=imagenet."""
    name = config.backbone.removeprefix(_TIMM)
    try:
        import timm
    except ImportError as error:
        raise click.ClickException(
            f"backbone={config.backbone} needs timm; install it with pip install 'nuswide[timm]'"
        ) from error
    if not timm.is_model(name):
        known = {known: None for known in timm.list_models()}
        raise click.UsageError(unknown_name("timm backbone", name, known))
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if settings and settings.fixed_input_size:
        options["img_size"] = config.image_size_px
    try:
        network = timm.create_model(
            name,
            pretrained=config.weights == "imagenet",
            num_classes=0,
            global_pool="",
            **options,
        )
    except Exception as error:  # the hub's and each network's own kinds
        raise click.ClickException(
            f"cannot build backbone={config.backbone} with weights={config.weights} at "
            f"image_size_px={config.image_size_px} ({_first_line(error)})"
        ) from error
    return TimmBackbone(network)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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


def _read_weights(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a .safetensors or torch file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, labels)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many kinds for a file of another kind
        raise click.ClickException(
            f"cannot read weights={path} ({_first_line(error)}); give none, imagenet, or a "
            ".safetensors or .pth file of tensors"
        ) from error
    if isinstance(state, dict) and "progress" in state:  # a checkpoint: its best, or else its last
        state = state["best"]["weights"] if state["best"] else state["ema"] or state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise click.ClickException(f"weights={path} holds no state dict of tensors")
    return state


def _read_safetensors(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a file of ours or another's; one that names its labels gives no head for others."""
    with safe_open(path, "pt") as file:
        own = (file.metadata() or {}).get("labels")
    state: StateDict = load_file(path)
    if own and labels is not None and json.loads(own) != list(labels):
        return {k: v for k, v in state.items() if k.startswith("backbone.")}
    return state


def _load_into(model: TaggerNet, state: StateDict, name: str) -> None:
    """Load our own, torchvision's or timm's weights; a head that does not fit starts afresh."""
    if not any(key.startswith("backbone.") for key in state):
        prefix = "backbone.network." if isinstance(model.backbone, TimmBackbone) else "backbone."
        state = {f"{prefix}{k}": v for k, v in state.items()}
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    missing = [k for k in own if k not in fitting]
    if lost := [k for k in missing if k.startswith("backbone.")]:
        raise click.ClickException(
            f"weights={name} do not fit the backbone: {len(lost)} of its tensors are missing or "
            f"of another shape, {lost[0]} first; give the backbone they were trained with"
        )
    if missing:
        fitting = {k: v for k, v in fitting.items() if k.startswith("backbone.")}
    model.load_state_dict(fitting, strict=False)


def _before(create: Callable[[], nn.Module], last: str) -> nn.Sequential:
    """What comes before a part of a torchvision network, under torchvision's names."""
    parts = list(create().named_children())
    return nn.Sequential(OrderedDict(parts[: [name for name, _ in parts].index(last)]))


def _convnext(create: Callable[[], Any]) -> nn.Sequential:
    """A ConvNeXt's map, normalised at each place as torchvision does after pooling."""
    network = create()
    classifier = nn.Sequential(network.classifier[0])
    return nn.Sequential(OrderedDict(features=network.features, classifier=classifier))


# Each builds a network from images (N, 3, H, W) to a feature map (N, F, h, w).
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
_TIMM = "timm/"
