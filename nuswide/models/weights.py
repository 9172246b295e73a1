"""Weight files: ours, torchvision's and timm's.

Owns reading them. Nothing in a file is executed.
"""

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.models.timm_backbone import first_line

StateDict = dict[str, Tensor]
# The only key, because safetensors writes several in any order, and the digest names a version.
METADATA = "nuswide"
_WRAPPERS = ("state_dict", "model")  # what training programs call the network in their checkpoints
_CHECKPOINT = {"progress", "best", "ema", "model"}  # of a checkpoint of ours


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
        with path.open("rb") as file:  # by a path, torch goes by its suffix
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors and torch raise many types for other files
        is_pickle = isinstance(error, pickle.UnpicklingError)  # torch advises to execute it
        reason = "it holds more than tensors, or is damaged" if is_pickle else first_line(error)
        raise click.ClickException(
            f"cannot read weights={path} ({reason}); give none, imagenet, or a .safetensors or "
            ".pth file of a state dict: torch.save(model.state_dict(), FILE)"
        ) from error
    if isinstance(state, dict) and _CHECKPOINT <= state.keys():  # its best weights, else its last
        state = state["best"]["weights"] if state["best"] else state["ema"] or state["model"]
    return _unwrap(state, path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON object in 8 bytes, then it."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _unwrap(content: Any, path: Path) -> StateDict:
    """Return the state dict that a torch file is, or the one that it holds among other things."""
    if _is_state_dict(content):
        return dict(content)
    items = content.items() if isinstance(content, dict) else ()
    inside = {name: value for name, value in items if value and _is_state_dict(value)}
    names = [name for name in _WRAPPERS if name in inside] or list(inside)
    if not names:
        raise click.ClickException(f"weights={path} holds no state dict of tensors")
    if names[0] not in _WRAPPERS and len(names) > 1:
        raise click.ClickException(
            f"weights={path} holds several state dicts ({', '.join(map(str, names))}); "
            "save the one to start from alone"
        )
    return dict(inside[names[0]])


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
