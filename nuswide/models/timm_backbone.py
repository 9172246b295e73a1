"""Networks of timm as backbones, which lose nothing but their pooling and classifier.

>>> backbone = create_timm(Config(backbone="timm/test_vit", image_size_px=64))
>>> backbone(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 64, 4, 4])
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self
from urllib.error import HTTPError
from urllib.request import urlopen

import click
import torch
from torch import Tensor, nn

from nuswide.config import Config, unknown_name

TIMM = "timm/"
IMAGENET, IMAGENET_V2 = "imagenet", "imagenet_v2"  # the weights that are downloaded
_PATIENCE_S = 10.0  # for the first answer of the hub that timm loads weights from


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
        self.requires_grad_()
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *_: self._rename_earlier(state, f"{prefix}network.")
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the feature map."""
        return _WAYS[self.way](self.network, images)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Train all parameters that the map depends on, or none."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(requires_grad and name not in self.unused)
        return self

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
    network = remove_classifier(_build(name, config)).eval()
    way = _find_way(network, config)
    unused = _unused(network, way, config.image_size_px)
    return TimmBackbone(network.train(), way, unused)


def timm_settings(backbone: str) -> tuple[str, Any]:
    """Return the name of timm/NAME, and timm's PretrainedCfg or None.

    NAME may end in a tag of pretrained weights, as in resnet50.a1_in1k. Raises click.UsageError for
    an unknown name or tag, click.ClickException if timm is not installed.
    """
    name = backbone.removeprefix(TIMM)
    try:
        import timm
    except ImportError as error:
        raise click.ClickException(
            f"backbone={backbone} needs timm; install it with pip install 'nuswide[timm]'"
        ) from error
    network, is_tagged, tag = name.partition(".")
    if not timm.is_model(network):
        known = {known: None for known in timm.list_models()}
        raise click.UsageError(unknown_name("timm backbone", name, known))
    if is_tagged and name not in (there := timm.list_pretrained(f"{network}.*")):
        tags = ", ".join(one.partition(".")[2] for one in there) or "none"
        raise click.UsageError(
            f"timm has no weights {tag!r} for backbone={TIMM}{network}; its tags: {tags}"
        )
    return name, timm.get_pretrained_cfg(name)


def timm_names() -> list[str]:
    """Return the names of timm's networks; none if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def untrained(name: str) -> Any:
    """Return timm's network of this name at its own size, without classifier and weights."""
    import timm

    return remove_classifier(timm.create_model(name))


def remove_classifier(network: Any) -> Any:
    """Remove a network's classifier, and its pooling if it can be turned off; return the network.

    Networks are built with both: without, timm gives those that normalize after pooling another,
    untrained norm.
    """
    if not hasattr(network, "reset_classifier"):  # an encoder
        return network
    try:
        network.reset_classifier(0, "")
    except AssertionError:
        network.reset_classifier(0)
    return network


def native_size_px(name: str) -> int:
    """Return the image size that timm's network of this name was made for."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    return int(settings.input_size[-1]) if settings else 224


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _build(name: str, config: Config) -> Any:
    """Build a network with pooling and classifier, for images of image_size_px."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if settings and settings.fixed_input_size and config.image_size_px != native_size_px(name):
        options["img_size"] = config.image_size_px
    is_pretrained = config.weights == IMAGENET
    try:
        with _without_retries() if is_pretrained else nullcontext():
            return timm.create_model(name, pretrained=is_pretrained, **options)
    except Exception as error:  # many types, of the hub and of each network
        if "unexpected keyword argument 'img_size'" in str(error):
            raise click.ClickException(
                f"backbone={config.backbone} takes image_size_px={native_size_px(name)} alone, not "
                f"{config.image_size_px}; give this, or another backbone"
            ) from error
        way_out = "; fetch the weights elsewhere and use weights=FILE" if is_pretrained else ""
        raise click.ClickException(
            f"cannot build backbone={config.backbone} with weights={config.weights} at "
            f"image_size_px={config.image_size_px} ({first_line(error)}){way_out}"
        ) from error


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
