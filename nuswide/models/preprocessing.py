"""The preprocessing that a network's weights were trained with.

Owns where it comes from: the experiment, the file of weights, or the backbone.

    >>> config, source = resolve_preprocessing(Config(backbone="swin_t", image_size_px=0))
    >>> preprocessing_of(config)[:3], source
    ((224, 'squash', 'bicubic'), 'swin_t')
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from safetensors import SafetensorError

from nuswide.config import IMAGENET_MEAN, IMAGENET_STD, Config, with_defaults
from nuswide.data.transforms import Normalization
from nuswide.models.backbones import imagenet_weights
from nuswide.models.timm_networks import TIMM, timm_settings
from nuswide.models.weights import checkpoint_fields, read_metadata
from nuswide.tagger import Preprocessing
from nuswide.values import read_channels

_AUTOMATIC = ("interpolation", "mean", "std")


def resolve_preprocessing(config: Config) -> tuple[Config, str]:
    """Return the config with values for `auto` and image_size_px=0, and where they come from.

    A value of the experiment takes precedence over the metadata of a file of weights, and that
    over the backbone's pretrained weights. Raises click.UsageError for an unknown backbone, or if
    the size is not one for the other fields, click.ClickException if timm is missing.
    """
    wanted = [name for name in _AUTOMATIC if getattr(config, name) == "auto"]
    if not wanted and config.image_size_px:
        return config, "the experiment"
    found, source = of_backbone(config.backbone, config.weights), config.backbone
    if own := _of_file(Path(config.weights)):
        found, source = {**found, **own}, "the initial weights"
    if not config.image_size_px:
        wanted.append("image_size_px")
    try:
        return replace(config, **{name: found[name] for name in wanted}), source
    except ValueError as error:
        raise click.UsageError(f"with the preprocessing of {source}: {error}") from error


def as_recorded(config: Config, recorded: Mapping[str, Any]) -> Config:
    """Return the config with recorded values for `auto`: a resumed run keeps its preprocessing."""
    wanted = [name for name in _AUTOMATIC if getattr(config, name) == "auto" and name in recorded]
    return replace(config, **{name: recorded[name] for name in wanted})


def preprocessing_of(config: Config) -> Preprocessing:
    """Return the preprocessing of images of a resolved config."""
    red, green, blue = (round(255 * mean) for mean in read_channels("mean", config.mean))
    return Preprocessing(config.image_size_px, config.fit, config.interpolation, (red, green, blue))


def normalization_of(config: Config) -> Normalization:
    """Return the normalization of a resolved config."""
    return Normalization(read_channels("mean", config.mean), read_channels("std", config.std))


def metadata_of(config: Config) -> dict[str, Any]:
    """Return the preprocessing of a resolved config as metadata of its weights."""
    return {name: getattr(config, name) for name in (*_AUTOMATIC, "image_size_px")}


def of_backbone(backbone: str, weights: str = "none") -> dict[str, Any]:
    """Return the values for `auto` and image_size_px=0 by the backbone's pretrained weights.

    weights: `imagenet_v2`, or others for those of `imagenet`.
    """
    if backbone.startswith(TIMM):
        _, settings = timm_settings(backbone)
        if settings is None:
            return _values((IMAGENET_MEAN, IMAGENET_STD), "bilinear", 224)
        constants = tuple(",".join(map(str, c)) for c in (settings.mean, settings.std))
        return _values(constants, settings.interpolation, settings.input_size[-1])
    preset = imagenet_weights(backbone, weights).transforms()
    constants = tuple(",".join(map(str, c)) for c in (preset.mean, preset.std))
    return _values(constants, preset.interpolation.value, preset.crop_size[0])


def _values(constants: tuple[str, ...], interpolation: str, size_px: int) -> dict[str, Any]:
    mean, std = constants
    return {
        "mean": mean, "std": std, "image_size_px": size_px,
        "interpolation": interpolation if interpolation in ("bilinear", "bicubic") else "bilinear",
    }  # fmt: skip


def _of_file(path: Path) -> Mapping[str, Any]:
    """Return what weights or a checkpoint of ours say of their preprocessing; {} for other files.

    Those of version 0.2.0 say nothing, and have what was then everyone's.
    """
    if not path.is_file():
        return {}
    try:
        metadata = read_metadata(path)
        own = metadata.get("preprocessing", {}) if "labels" in metadata else None
    except SafetensorError:
        own = checkpoint_fields(path)
    except (OSError, ValueError):  # damaged: see load_weights
        return {}
    if not isinstance(own, dict):  # another program's
        return {}
    completed = with_defaults(own)
    names = [k for k in (*_AUTOMATIC, "image_size_px") if k in own or k in _AUTOMATIC]
    # A checkpoint of `fit` alone may hold a config that was not resolved: the backbone's values.
    return {k: completed[k] for k in names if completed[k] not in ("auto", 0)}
