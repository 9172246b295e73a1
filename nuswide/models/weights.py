"""Weight files: ours, torchvision's and timm's.

Owns reading them. Nothing in a file is executed.
"""

import argparse
import hashlib
import json
import pickle
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.core import distributed
from nuswide.models.timm_networks import first_line

StateDict = dict[str, Tensor]
# The only key, because safetensors writes several in any order, and the digest names a version.
METADATA = "nuswide"
_WRAPPERS = ("state_dict", "model")  # what training programs call the network in their checkpoints
_AVERAGE = re.compile(r"(^|[._])ema([._]|$)")  # in what they call its moving average
# timm and torchvision save their options as one, which is attributes and no more.
_HARMLESS: list[Any] = [argparse.Namespace]
_MOST_NAMED = 3
# Of a checkpoint of ours.
_CHECKPOINT = {"config", "digest", "world_size", "progress", "best", "ema", "model"}


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the labels and preprocessing that a .safetensors file of ours states; {} for others.

    Version 0.2.0 stated the labels alone. Raises SafetensorError for a file of another format.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if METADATA in metadata:
        return dict(json.loads(metadata[METADATA]))
    return {"labels": json.loads(metadata["labels"])} if "labels" in metadata else {}


def checkpoint_fields(path: Path) -> dict[str, Any] | None:
    """Return the experiment's fields in a checkpoint of ours; None for any other file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # many types, of another file, which load_weights refuses
        return None
    is_ours = isinstance(state, dict) and _CHECKPOINT <= state.keys()
    return dict(state["config"]) if is_ours else None


def weights_digest(model: nn.Module) -> str:
    """Return a digest of a network's parameters and buffers; 16 hex digits."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        content.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]


def read_weights(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a safetensors or torch file, whatever its name; nothing in it is executed."""
    try:
        if _is_safetensors(path):
            return _read_safetensors(path, labels)
        with path.open("rb") as file, torch.serialization.safe_globals(_HARMLESS):
            # By a path, torch goes by its suffix.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many types for other files
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch advises to execute it
        reason = _why_unread(path) if is_pickle else first_line(error)
        raise click.ClickException(
            f"cannot read weights={path} ({reason}); give none, imagenet, imagenet_v2, or a "
            ".safetensors or .pth file of a state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(state, dict) and _CHECKPOINT <= state.keys():  # its best weights, else its last
        state = state["best"]["weights"] if state["best"] else state["ema"] or state["model"]
    return _unwrap(state, path)


def _why_unread(path: Path) -> str:
    """Return what a pickle holds besides tensors, as far as it is known without executing it."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # of another format, or damaged
        names = []
    shown = ", ".join(sorted(n for n in names if n.isprintable())[:_MOST_NAMED])
    return f"it holds more than tensors{f': {shown}' if shown else ', or is damaged'}"


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object in 8 bytes, then it."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrap(content: Any, path: Path) -> StateDict:
    """Return the state dict that a torch file is, or the one that it holds among other things.

    A moving average takes precedence, as in timm: it is what was evaluated.
    """
    if _is_state_dict(content):
        return dict(content)
    items = content.items() if isinstance(content, dict) else ()
    inside = {str(name): value for name, value in items if _is_state_dict(value) and value}
    wrappers = [name for name in _WRAPPERS if name in inside][:1]
    names = [*wrappers, *filter(_AVERAGE.search, inside)] if wrappers else list(inside)
    if not names:
        raise click.ClickException(f"weights={path} holds no state dict of tensors")
    return dict(inside[choose_network(path, names)])


def choose_network(path: Path, names: Sequence[str]) -> str:
    """Return which of a file's networks to start from: of several, their one moving average.

    That is printed. Raises click.ClickException for several networks of another kind.
    """
    if len(names) == 1:
        return names[0]
    averages = list(filter(_AVERAGE.search, names))
    if len(averages) != 1:
        raise click.ClickException(
            f"weights={path} holds several networks ({', '.join(names)}); save the one to start "
            "from alone"
        )
    others = ", ".join(name for name in names if name not in averages)
    _print_once(f"weights={path}: from {averages[0]}, the moving average, not from {others}")
    return averages[0]


@cache
def _print_once(line: str) -> None:
    """Print a line, in one process: a run reads its initial weights several times."""
    if distributed.is_main():
        click.echo(line)


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _read_safetensors(path: Path, labels: Sequence[str] | None) -> StateDict:
    """Read a file, without its head if it names other labels."""
    own = read_metadata(path).get("labels")
    state: StateDict = load_file(path)
    if own and labels is not None and own != list(labels):
        return {k: v for k, v in state.items() if k.startswith("backbone.")}
    return state
