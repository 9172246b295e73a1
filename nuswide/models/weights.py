"""Weight files: ours, torchvision's and timm's.

Owns reading and fitting them. Nothing in a file is executed.
"""

import hashlib
import json
import pickle
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from nuswide.config import Config
from nuswide.models.timm_backbone import TIMM, TimmBackbone, first_line

StateDict = dict[str, Tensor]
# The only key, because safetensors writes several in any order, and the digest names a version.
METADATA = "nuswide"
_WRAPPERS = ("state_dict", "model")  # what training programs call the network in their checkpoints
_CHECKPOINT = {"progress", "best", "ema", "model"}  # of a checkpoint of ours
_UNUSED = "num_batches_tracked"  # which torch before 0.4.1 did not save
_CLASSIFIERS = ("fc", "classifier", "head")  # of torchvision and timm, which our heads replace


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
    prefix = "backbone.network." if is_timm else "backbone."
    own = model.state_dict()
    state = _with_own_names(state, own, prefix, config)
    if isinstance(model.backbone, TimmBackbone):
        state = model.backbone.fit(state, prefix)
    _require_fitting(state, own, prefix, config)
    model.load_state_dict(_fitting(state, own), strict=False)


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


def _with_own_names(state: StateDict, own: StateDict, backbone: str, config: Config) -> StateDict:
    """Rename the tensors of a file to the network's names.

    own: the network's. backbone: begins the names of its backbone. In the file they may begin by
    anything, such as `module.` of a network trained in parallel, or by nothing. Raises
    click.ClickException if the file has none of them.
    """
    names = [name.removeprefix(backbone) for name in own if name.startswith(backbone)]
    counts = _prefixes(state, set(names))
    if not counts:
        raise click.ClickException(
            f"weights={config.weights} do not fit backbone={config.backbone}: the file names its "
            f"tensors {_first(state)}, the backbone {_first(names)}; "
            "rename them, or give the backbone they were trained with"
        )
    (prefix, n_most), *others = counts.most_common(2)
    if others and others[0][1] == n_most == len(names):
        raise click.ClickException(
            f"weights={config.weights} hold several networks ({prefix}* and {others[0][0]}*); "
            "save the one to start from alone"
        )
    if prefix.endswith(backbone):  # of a whole network of ours
        prefix, backbone = prefix.removesuffix(backbone), ""
    return {f"{backbone}{k.removeprefix(prefix)}": v for k, v in state.items()
            if k.startswith(prefix)}  # fmt: skip


def _prefixes(keys: Iterable[str], names: set[str]) -> Counter[str]:
    """Count what comes before the names in the keys."""
    counts: Counter[str] = Counter()
    for key in keys:
        starts = [0, *(at + 1 for at, letter in enumerate(key) if letter == ".")]
        counts.update(key[:start] for start in starts if key[start:] in names)
    return counts


def _first(names: Iterable[str]) -> str:
    return ", ".join([*islice(names, 3), "..."])


def _require_fitting(state: StateDict, own: StateDict, backbone: str, config: Config) -> None:
    """Raise click.ClickException unless the backbone's tensors are all there, and no others."""
    wanted = {name: value for name, value in own.items() if name.startswith(backbone)}
    lost = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if all(k.endswith(_UNUSED) for k in lost):
        lost = []
    parts = {_part(name, backbone) for name in wanted} - set(_CLASSIFIERS)
    surplus = [k for k in state if k not in wanted and _part(k, backbone) in parts]
    if lost:
        reason = f"{len(lost)} of its {len(wanted)} tensors are missing or of another shape"
    elif surplus:
        reason = f"{len(surplus)} of the file's {len(state)} tensors are of a larger one"
    else:
        return
    raise click.ClickException(
        f"weights={config.weights} do not fit backbone={config.backbone}: {reason}, "
        f"{(lost or surplus)[0].removeprefix(backbone)} first; give the backbone they were trained "
        "with"
    )


def _part(name: str, backbone: str) -> str | None:
    """Return the part of the backbone that a tensor is in, such as layer1; None if outside."""
    inside = name.removeprefix(backbone)
    return None if inside == name else inside.partition(".")[0]


def _fitting(state: StateDict, own: StateDict) -> StateDict:
    """Return the tensors of the backbone, and those of the head if all of it fits."""
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    is_whole = fitting.keys() == own.keys()
    return {k: v for k, v in fitting.items() if is_whole or k.startswith("backbone.")}
