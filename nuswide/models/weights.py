"""Weight files: ours, torchvision's and timm's.

Owns reading and fitting them. Nothing in a file is executed.

    load_weights(model, config, labels=("sky", "sea"))
"""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import click
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.models.backbones import TIMM, first_line

StateDict = dict[str, Tensor]


def load_weights(model: nn.Module, config: Config, labels: Sequence[str] | None) -> None:
    """Load the weights that the config names into a network with `backbone` and `head`.

    labels: of the network; a file that names other labels leaves the head as it is. A head that
    does not fit also stays as it is. Raises click.ClickException for weights that cannot be read
    or do not fit the backbone.
    """
    is_timm = config.backbone.startswith(TIMM)
    if config.weights == "none" or (config.weights == "imagenet" and is_timm):
        return  # timm's backbones are created with theirs
    if config.weights == "imagenet":
        state = _download_imagenet(config.backbone)
    else:
        state = _read_weights(Path(config.weights), labels)
    if not any(key.startswith("backbone.") for key in state):  # torchvision's or timm's own file
        prefix = "backbone.network." if is_timm else "backbone."
        state = {f"{prefix}{k}": v for k, v in state.items()}
    _load_fitting(model, state, config.weights)


def _download_imagenet(backbone: str) -> StateDict:
    weights = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
    try:
        state: StateDict = weights.get_state_dict(check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise click.ClickException(
            f"cannot download the ImageNet weights ({error}); connect to the network, or fetch "
            f"{weights.url} elsewhere and use weights=FILE"
        ) from error
    return state


def _read_weights(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a .safetensors or torch file; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, labels)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many types for other files
        raise click.ClickException(
            f"cannot read weights={path} ({first_line(error)}); give none, imagenet, or a "
            ".safetensors or .pth file of tensors"
        ) from error
    if (
        isinstance(state, dict) and "progress" in state
    ):  # a checkpoint: its best weights, else its last
        state = state["best"]["weights"] if state["best"] else state["ema"] or state["model"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise click.ClickException(f"weights={path} holds no state dict of tensors")
    return state


def _read_safetensors(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a file, without its head if it names other labels."""
    with safe_open(path, "pt") as file:
        own = (file.metadata() or {}).get("labels")
    state: StateDict = load_file(path)
    if own and labels is not None and json.loads(own) != list(labels):
        return {k: v for k, v in state.items() if k.startswith("backbone.")}
    return state


def _load_fitting(model: nn.Module, state: StateDict, name: str) -> None:
    """Load the backbone, and the head if all of it fits."""
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
