"""The initial weights of a network: ImageNet's, or those of a file that fits its backbone.

Owns fitting them to the network's names and shapes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from urllib.error import URLError

import click
from torch import nn

from nuswide.config import Config
from nuswide.models.backbones import imagenet_weights
from nuswide.models.nearest import find_backbone
from nuswide.models.timm_backbone import TimmBackbone
from nuswide.models.timm_networks import IMAGENET, IMAGENET_V2, TIMM, native_size_px
from nuswide.models.weights import StateDict, choose_network, read_weights

_UNUSED = "num_batches_tracked"  # which torch before 0.4.1 did not save
_CLASSIFIERS = ("fc", "classifier", "head")  # of torchvision and timm, which our heads replace


def load_weights(model: nn.Module, config: Config, labels: Sequence[str] | None) -> None:
    """Load the weights that the config names into a network with `backbone` and `head`.

    labels: of the network; a file that names other labels leaves the head as it is. A head that
    does not fit also stays as it is. Raises click.ClickException for weights that cannot be read
    or do not fit the backbone.
    """
    is_timm = config.backbone.startswith(TIMM)
    if config.weights == "none" or (config.weights == IMAGENET and is_timm):
        return  # timm's backbones are created with theirs
    if config.weights in (IMAGENET, IMAGENET_V2):
        state = _download_imagenet(config)
    else:
        state = read_weights(Path(config.weights), labels)
    own = model.state_dict()
    try:
        state = _fit(state, own, Path(config.weights), model.get_submodule("backbone"))
    except _MisfitError as error:
        raise click.ClickException(
            f"weights={config.weights} do not fit backbone={config.backbone}: {error}; "
            f"{_way_out(state, config)}"
        ) from error
    model.load_state_dict(_fitting(state, own), strict=False)


def _download_imagenet(config: Config) -> StateDict:
    weights = imagenet_weights(config.backbone, config.weights)
    try:
        state: StateDict = weights.get_state_dict(check_hash=True, weights_only=True)
    except (URLError, OSError) as error:
        raise click.ClickException(
            f"cannot download the ImageNet weights ({error}); connect to the network, or fetch "
            f"{weights.url} elsewhere and use weights=FILE"
        ) from error
    return state


class _MisfitError(Exception):
    """The tensors of a file are not those of a backbone."""


def _fit(
    state: StateDict, own: StateDict, path: Path, backbone: nn.Module | None = None
) -> StateDict:
    """Return a file's tensors under the names of a network, whose backbone they fit.

    own: the network's. backbone: of the network, where one of timm adapts some tensors itself.
    Raises _MisfitError, click.ClickException for a file of several such networks.
    """
    prefix = "backbone.network." if isinstance(backbone, TimmBackbone) else "backbone."
    state = _with_own_names(state, own, prefix, path)
    if isinstance(backbone, TimmBackbone):
        state = backbone.fit(state, prefix)
    _require_fitting(state, own, prefix)
    return state


def _way_out(state: StateDict, config: Config) -> str:
    """Return what to do about weights of another network, by the backbone that they fit."""

    def fits(shapes: StateDict) -> bool:
        try:
            _fit(state, {f"backbone.{name}": value for name, value in shapes.items()}, path)
        except _MisfitError:
            return False
        return True

    path = Path(config.weights)
    if name := find_backbone(config.backbone, re.split("[.-]", path.name)[0], fits):
        if name == config.backbone.partition(".")[0]:  # which was tried at its own size
            return f"they fit it at image_size_px={native_size_px(name.removeprefix(TIMM))}"
        return f"they fit backbone={name}"
    return "give the backbone they were trained with, or rename their tensors"


def _with_own_names(state: StateDict, own: StateDict, backbone: str, path: Path) -> StateDict:
    """Rename the tensors of a file to the network's names.

    own: the network's. backbone: begins the names of its backbone. In the file they may begin by
    anything, such as `module.` of a network trained in parallel, or by nothing; of several networks
    the moving average is taken. Raises _MisfitError if the file has none of the names.
    """
    names = [name.removeprefix(backbone) for name in own if name.startswith(backbone)]
    counts = _prefixes(state, set(names))
    if not counts:
        raise _MisfitError(
            f"the file names its tensors {_first(state)}, the backbone {_first(names)}"
        )
    (prefix, n_most), *_ = counts.most_common(1)
    if n_most == len(names):
        whole = [f"{name}*" for name, n in counts.items() if n == n_most]
        prefix = choose_network(path, whole).removesuffix("*")
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


def _require_fitting(state: StateDict, own: StateDict, backbone: str) -> None:
    """Raise _MisfitError unless the backbone's tensors are all there, and no others."""
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
    raise _MisfitError(f"{reason}, {(lost or surplus)[0].removeprefix(backbone)} first")


def _part(name: str, backbone: str) -> str | None:
    """Return the part of the backbone that a tensor is in, such as layer1; None if outside."""
    inside = name.removeprefix(backbone)
    return None if inside == name else inside.partition(".")[0]


def _fitting(state: StateDict, own: StateDict) -> StateDict:
    """Return the tensors of the backbone, and those of the head if all of it fits."""
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    is_whole = fitting.keys() == own.keys()
    return {k: v for k, v in fitting.items() if is_whole or k.startswith("backbone.")}
