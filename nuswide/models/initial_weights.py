"""The initial weights of a network: ImageNet's, or those of a file that fits its backbone.

Owns fitting them to the network's names and shapes.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from urllib.error import URLError

import click
import torchvision
from torch import nn

from nuswide.config import Config
from nuswide.models.timm_backbone import TIMM, TimmBackbone
from nuswide.models.weights import StateDict, read_weights

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
        state = read_weights(Path(config.weights), labels)
    prefix = "backbone.network." if is_timm else "backbone."
    own = model.state_dict()
    state = _with_own_names(state, own, prefix, config)
    if isinstance(model.backbone, TimmBackbone):
        state = model.backbone.fit(state, prefix)
    _require_fitting(state, own, prefix, config)
    model.load_state_dict(_fitting(state, own), strict=False)


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
